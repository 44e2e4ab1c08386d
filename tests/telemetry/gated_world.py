"""An arbiter over the real telemetry of a simulated GPU, whose servers are mere holders of memory.

Each server is a `sleep` that the driver lists, so that thousands of switches take a minute. The
driver's own books are the judge: what was really free when something was started.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from immutables import Map
from lab.drivers.nvidia import GIB, SimulatedGpu

from supervisor.arbiter.arbiter import Arbiter
from supervisor.core.byte_size import MIB
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemoryPolicy, OnUnconfirmed
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import (
    Device,
    Limits,
    Mode,
    Stop,
    SwitchRules,
    Target,
    TargetNeed,
)
from supervisor.engine.port import Address, Launch
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.process import ProcessExit
from supervisor.errors import EngineError
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendor_sampler import SamplerPolicy

TOTAL_BYTES = 100 * GIB
NEEDS: Mapping[str, int] = {"small": 20 * GIB, "middle": 45 * GIB, "large": 70 * GIB}
MARGIN_BYTES, TOLERANCE_BYTES = 256 * MIB, 64 * MIB
RELEASE_TIMEOUT_S = 1.0  # several times the latest release drawn, for a machine that is busy
JUST_NOW_S = 0.05
"""A tenant that grows after the gate has read the device cannot be known to it."""

DRIVER = SamplerPolicy(
    deadline_s=0.15, discovery_s=10.0, first_pause_s=0.01, longest_pause_s=0.05, calm_s=1.0
)


class Holder:
    """A process that does nothing but be there; with `leaves` another one of its session."""

    def __init__(self, *, leaves: bool = False) -> None:
        both = ("sh", "-c", "sleep 120 >&- 2>&- & echo $!; exec sleep 120")
        self._popen = subprocess.Popen(
            both if leaves else ("sleep", "120"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        self.left_pid = int(self._popen.stdout.readline()) if leaves else None
        self.pid = self._popen.pid
        self.last_lines: list[str] = []

    def end(self) -> None:
        with self._popen:
            self._popen.kill()

    def end_what_it_left(self) -> None:
        if self.left_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.left_pid, signal.SIGKILL)


class HoldingBackend:
    """What the arbiter reads of a backend, over a process that holds memory."""

    def __init__(self, target: Target, epoch: int, process: Holder) -> None:
        self.launch = Launch(
            argv=(),
            env={},
            address=Address(socket_path=Path(f"/run/backend-{epoch}.sock")),
            api_key="",
            model=target.model,
            profile=target.profile,
            epoch=epoch,
        )
        self.model, self.epoch, self.process = target.model, epoch, process
        self.is_gone = asyncio.Event()
        self.prompts_saved = self.prompts_restored = None
        self._ended: asyncio.Future[ProcessExit] = asyncio.get_running_loop().create_future()

    async def become_ready(self) -> None:
        pass

    async def wait(self) -> ProcessExit:
        return await asyncio.shield(self._ended)

    async def give_up_memory(self, how: Stop) -> None:
        _ = how
        self.end()
        await self.wait()

    def end(self) -> None:
        if not self._ended.done():
            self.process.end()
            self._ended.set_result(ProcessExit(exit_code=None, signal=9))


@dataclass(slots=True, kw_only=True)
class NextStart:
    """What the servers that are started next will be like."""

    share: float = 1.0
    """Of its need that a server really takes."""
    left_bytes: int = 0
    failing: str | None = None
    """The model that cannot be started."""


class World:
    """The arbiter, the machine, its one tenant, and the judge of every start."""

    def __init__(self, gpu: SimulatedGpu, telemetry: Telemetry) -> None:
        self.gpu = gpu
        self.telemetry = telemetry
        self.next_start = NextStart()
        self.backends: list[HoldingBackend] = []
        self.faults: list[str] = []
        """What was started without room for it; told with the arithmetic."""
        self.tenant = Holder()
        gpu.allocate(self.tenant.pid, 0)
        self._tenant_before_bytes, self._tenant_grew_at = 0, 0.0
        device = Device(name="gpu0", budget_bytes=TOTAL_BYTES, is_exclusive=True, pool="gpu0")
        self.arbiter = Arbiter(
            snapshot=Snapshot(
                devices=Map({"gpu0": device}),
                limits=Limits(breaker_deaths=10_000),
                rules=SwitchRules(warms=False),
            ),
            launcher=self,
            memory=telemetry,
            observers=(),
        )

    @property
    def tenant_bytes(self) -> int:
        return self.gpu.held_bytes(self.tenant.pid)

    def set_tenant(self, wanted_bytes: int) -> int:
        """Let the tenant hold so much, or as much as there is room for; give how much it is."""
        held_bytes = self.tenant_bytes
        room_bytes = TOTAL_BYTES - self.gpu.used_bytes() + held_bytes
        self._tenant_before_bytes, self._tenant_grew_at = held_bytes, time.monotonic()
        self._entry(self.tenant.pid).used_bytes = min(wanted_bytes, room_bytes)
        return self.tenant_bytes

    def set_release(self, pid: int, after_s: float, steps: int = 1) -> None:
        """Say how a process's memory will be given back."""
        entry = self._entry(pid)
        entry.release_steps, entry.release_after_s = steps, after_s

    def live(self) -> HoldingBackend | None:
        models = self.arbiter.snapshot.live_models()
        return next((b for b in reversed(self.backends) if b.model in models), None)

    async def switch_to(
        self, model: str, on_unconfirmed: OnUnconfirmed = OnUnconfirmed.REFUSE
    ) -> SwitchReport:
        async with asyncio.timeout(20):
            return await self.arbiter.request_switch(target_of(model, on_unconfirmed), "test")[1]

    # What the arbiter asks of a launcher.

    def check(self, target: Target) -> TargetNeed:
        return TargetNeed(footprint=Footprint.of({target.device: NEEDS[target.model]}))

    def warm(
        self, target: Target, child_pids: Collection[int], should_stop: threading.Event
    ) -> None:
        raise AssertionError(f"nothing is warmed: {target}, {child_pids}, {should_stop}")

    def launch(self, target: Target, epoch: int) -> Backend:
        if target.model == self.next_start.failing:
            raise EngineError("it was to fail")
        self._judge(target)
        process = Holder(leaves=self.next_start.left_bytes > 0)
        self.gpu.allocate(process.pid, int(NEEDS[target.model] * self.next_start.share))
        if process.left_pid is not None:
            self.gpu.allocate(process.left_pid, self.next_start.left_bytes)
        backend = HoldingBackend(target, epoch, process)
        self.backends.append(backend)
        return cast("Backend", backend)

    def _judge(self, target: Target) -> None:
        """Compare a start with the driver's books."""
        switch = self.arbiter.snapshot.switch
        reason = switch.gate.reason or "" if switch else ""
        is_at_own_risk = target.memory.on_unconfirmed is OnUnconfirmed.PROCEED
        if is_at_own_risk and "started even so" in reason:
            return
        grown_bytes = self.tenant_bytes - self._tenant_before_bytes
        is_unknown = time.monotonic() - self._tenant_grew_at < JUST_NOW_S and grown_bytes > 0
        free_bytes = TOTAL_BYTES - self.gpu.used_bytes() + (grown_bytes if is_unknown else 0)
        held_bytes = sum(self.gpu.held_bytes(b.process.pid) for b in self.backends)
        need_bytes = NEEDS[target.model]
        is_back = held_bytes <= TOLERANCE_BYTES
        if free_bytes + TOLERANCE_BYTES < need_bytes or not (
            is_back or free_bytes >= need_bytes + MARGIN_BYTES
        ):
            self.faults.append(
                f"'{target.model}' ({need_bytes / GIB:.1f} GiB) was started with "
                f"{free_bytes / GIB:.2f} GiB free and {held_bytes / GIB:.2f} GiB held by what was "
                f"stopped: {reason}"
            )

    def _entry(self, pid: int) -> Any:
        return next(p for p in self.gpu.devices[0].processes if p.pid == pid)


def target_of(model: str, on_unconfirmed: OnUnconfirmed = OnUnconfirmed.REFUSE) -> Target:
    return Target(
        model=model,
        mode=Mode.GENERATION,
        profile="p",
        device="gpu0",
        memory=MemoryPolicy(
            margin_bytes=MARGIN_BYTES,
            tolerance_bytes=TOLERANCE_BYTES,
            release_timeout_s=RELEASE_TIMEOUT_S,
            on_unconfirmed=on_unconfirmed,
        ),
    )


def make_machine(folder: Path, library: Path) -> SimulatedGpu:
    folder.mkdir()
    return SimulatedGpu(folder, library=library, total_bytes=(TOTAL_BYTES,))


@asynccontextmanager
async def open_world(folder: Path, library: Path) -> AsyncIterator[World]:
    """Open a machine of its own; nothing is loaded."""
    gpu = await asyncio.to_thread(make_machine, folder, library)
    environ = gpu.full_environment()
    async with Telemetry(environ=environ, vendors=("NVIDIA",), policy=DRIVER) as telemetry:
        world = World(gpu, telemetry)
        try:
            yield world
        finally:
            gpu.heal()
            world.tenant.end()
            await world.arbiter.shut_down(0)
            for backend in world.backends:
                backend.process.end_what_it_left()
