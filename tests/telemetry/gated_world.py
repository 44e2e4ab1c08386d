"""An arbiter over the real telemetry of two simulated GPUs, whose servers only hold memory.

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
from lab.drivers.amd import SimulatedAmd
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
from tests.patience import PATIENCE_S

GPUS = ("gpu0", "gpu1")
TOTAL_BYTES = 100 * GIB  # of each
NEEDS: Mapping[str, Mapping[str, int]] = {
    "small": {"gpu0": 20 * GIB},
    "middle": {"gpu0": 45 * GIB},
    "large": {"gpu0": 70 * GIB},
    "elsewhere": {"gpu1": 55 * GIB},
    "wide": {"gpu0": 40 * GIB, "gpu1": 40 * GIB},
    "lopsided": {"gpu1": 65 * GIB, "gpu0": 25 * GIB},
}
"""What each model takes of which GPU; its own, which is asked about last, stands first."""

ANYWHERE, ANYWHERE_BYTES = "anywhere", 30 * GIB
"""A model that goes where it costs least."""

MODELS = (*NEEDS, ANYWHERE)

MARGIN_BYTES, TOLERANCE_BYTES = 256 * MIB, 64 * MIB
FLOOR_BYTES = 4 * MIB
"""By which each start raises the use of a GPU for good, as some drivers do."""

RELEASE_TIMEOUT_S = 1.0  # several times the latest release drawn, for a machine that is busy
JUST_NOW_S = 0.05
"""A tenant that grows after the gate has read the device cannot be known to it."""

Driver = SimulatedGpu | SimulatedAmd


@dataclass(frozen=True, slots=True)
class Calls:
    """What a vendor's library calls what is broken here, and the errors that it gives."""

    memory: str
    processes: str
    failed: int
    not_supported: int


CALLS: Mapping[str, Calls] = {
    "NVIDIA": Calls("nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3", 15, 3),
    "AMD": Calls("amdsmi_get_gpu_memory_usage", "amdsmi_get_gpu_process_list", -1, 2),
}

DRIVER = SamplerPolicy(
    deadline_s=0.25, discovery_s=10.0, first_pause_s=0.01, longest_pause_s=0.05, calm_s=1.0
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

    @property
    def is_alive(self) -> bool:
        return self._popen.returncode is None

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
        self.target, self.model, self.epoch, self.process = target, target.model, epoch, process
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


class Tenant:
    """A foreign process that holds memory of one GPU, more or less of it."""

    def __init__(self, gpu: Driver, device: int) -> None:
        self._gpu, self._device = gpu, device
        self._process = Holder()
        self.pid = self._process.pid
        gpu.allocate(self.pid, 0, device)
        self._before_bytes, self._grew_at = 0, 0.0
        self.most_bytes = 0
        self.most_ever_bytes = 0
        """The most that it has held since that was set to what it holds."""

    @property
    def held_bytes(self) -> int:
        return self._gpu.held_bytes(self.pid, self._device)

    def hold(self, wanted_bytes: int) -> None:
        """Hold so much, or as much as there is room for."""
        held_bytes = self.held_bytes
        room_bytes = TOTAL_BYTES - self._gpu.used_bytes(self._device) + held_bytes
        self._before_bytes, self._grew_at = held_bytes, time.monotonic()
        entry_of(self._gpu, self.pid, self._device).used_bytes = max(
            0, min(wanted_bytes, room_bytes)
        )
        self.most_bytes = max(self.most_bytes, self.held_bytes)
        self.most_ever_bytes = max(self.most_ever_bytes, self.held_bytes)

    def unknown_bytes(self, within_s: float) -> int:
        """What it has taken so shortly before that nobody can have seen it."""
        is_unknown = time.monotonic() - self._grew_at < within_s
        return max(0, self.held_bytes - self._before_bytes) if is_unknown else 0

    def end(self) -> None:
        self._process.end()


class World:
    """The arbiter, the machine, its tenants, and the judge of every start."""

    def __init__(
        self, gpu: Driver, telemetry: Telemetry, calls: Calls, *, is_exclusive: bool
    ) -> None:
        self.gpu = gpu
        self.calls = calls
        self.is_exclusive = is_exclusive
        self.telemetry = telemetry
        self.next_start = NextStart()
        self.backends: list[HoldingBackend] = []
        self.faults: list[str] = []
        """What was started without room for it; told with the arithmetic."""
        self.tenants = tuple(Tenant(gpu, device) for device in range(len(GPUS)))
        self.arbiter = Arbiter(
            snapshot=Snapshot(
                devices=Map(
                    {
                        name: Device(
                            name=name,
                            budget_bytes=TOTAL_BYTES,
                            is_exclusive=is_exclusive,
                            pool=name,
                        )
                        for name in GPUS
                    }
                ),
                limits=Limits(breaker_deaths=10_000),
                rules=SwitchRules(warms=False),
            ),
            launcher=self,
            memory=telemetry,
            observers=(),
        )

    def set_release(self, pid: int, after_s: float, steps: int = 1) -> None:
        """Say how a process's memory will be given back."""
        for device in range(len(GPUS)):
            for entry in self.gpu.devices[device].processes:
                if entry.pid == pid:
                    entry.release_steps, entry.release_after_s = steps, after_s

    def kill_sampler(self) -> None:
        """Kill the process that reads the driver, if there is one now."""
        for sampler in self.telemetry._samplers:
            if sampler._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(sampler._process.pid, signal.SIGKILL)

    def live(self) -> tuple[HoldingBackend, ...]:
        """The servers that admit requests, the oldest first."""
        ready = {b.epoch for b in self.arbiter.snapshot.ready_backends()}
        return tuple(backend for backend in self.backends if backend.epoch in ready)

    def room_for(self, *targets: Target) -> bool:
        """Whether they have room together, beside the most that the tenants have held."""
        needs = [needs_of(target) for target in targets]
        return all(
            sum(need.get(name, 0) for need in needs) + MARGIN_BYTES
            <= TOTAL_BYTES - self.gpu.devices[device].used_bytes - self.tenants[device].most_bytes
            for device, name in enumerate(GPUS)
            if any(name in need for need in needs)
        )

    async def switch_to(
        self, model: str, on_unconfirmed: OnUnconfirmed = OnUnconfirmed.REFUSE
    ) -> SwitchReport:
        async with asyncio.timeout(PATIENCE_S):
            return await self.arbiter.request_switch(target_of(model, on_unconfirmed), "test")[1]

    # What the arbiter asks of a launcher.

    def check(self, target: Target) -> TargetNeed:
        return TargetNeed(footprint=Footprint.of(needs_of(target)))

    def warm(
        self, target: Target, child_pids: Collection[int], should_stop: threading.Event
    ) -> None:
        raise AssertionError(f"nothing is warmed: {target}, {child_pids}, {should_stop}")

    def launch(self, target: Target, epoch: int) -> Backend:
        if target.model == self.next_start.failing:
            raise EngineError("it was to fail")
        self._judge(target)
        process = Holder(leaves=self.next_start.left_bytes > 0)
        for name, size_bytes in needs_of(target).items():
            device = GPUS.index(name)
            left_bytes = TOTAL_BYTES - self.gpu.used_bytes(device)
            self.gpu.devices[device].used_bytes += max(0, min(FLOOR_BYTES, left_bytes))
            room_bytes = max(0, TOTAL_BYTES - self.gpu.used_bytes(device))
            taken_bytes = min(int(size_bytes * self.next_start.share), room_bytes)
            self.gpu.allocate(process.pid, taken_bytes, device)
        if process.left_pid is not None:
            device = GPUS.index(target.device)
            self.gpu.allocate(process.left_pid, self.next_start.left_bytes, device)
        backend = HoldingBackend(target, epoch, process)
        self.backends.append(backend)
        return cast("Backend", backend)

    def _judge(self, target: Target) -> None:
        """Compare a start with the driver's books, and with the budgets."""
        snapshot = self.arbiter.snapshot
        for name in GPUS:
            accounted = sum(b.footprint.on(name) for b in snapshot.backends)
            if accounted > TOTAL_BYTES:
                self.faults.append(f"{accounted / GIB:.1f} GiB are accounted for on {name}")
        if target.memory.on_unconfirmed is not OnUnconfirmed.PROCEED:
            for name, need_bytes in needs_of(target).items():
                self._judge_device(target, name, need_bytes)

    def _judge_device(self, target: Target, name: str, need_bytes: int) -> None:
        device = GPUS.index(name)
        free_bytes = TOTAL_BYTES - self.gpu.used_bytes(device)
        # The GPUs of a split are asked one after the other, and the first is not asked again.
        within_s = RELEASE_TIMEOUT_S if target.split_over else JUST_NOW_S
        free_bytes += self.tenants[device].unknown_bytes(within_s)
        held_bytes = sum(
            self.gpu.held_bytes(backend.process.pid, device)
            for backend in self.backends
            if not backend.process.is_alive
        )
        # What others have given back hides as much of ours where the driver does not list them.
        hidden_bytes = self.tenants[device].most_ever_bytes - self.tenants[device].held_bytes
        is_back = held_bytes <= TOLERANCE_BYTES + hidden_bytes
        if free_bytes + TOLERANCE_BYTES < need_bytes or not (
            is_back or free_bytes >= need_bytes + MARGIN_BYTES
        ):
            switch = self.arbiter.snapshot.switch
            self.faults.append(
                f"'{target.model}' ({need_bytes / GIB:.1f} GiB of {name}) was started with "
                f"{free_bytes / GIB:.2f} GiB free and {held_bytes / GIB:.2f} GiB held by what was "
                f"stopped: {switch and switch.gate.reason}"
            )


def entry_of(gpu: Driver, pid: int, device: int) -> Any:
    """The driver's own line on a process that holds memory of a device."""
    return next(p for p in gpu.devices[device].processes if p.pid == pid)


def needs_of(target: Target) -> Mapping[str, int]:
    """Give what a target takes of which GPU where it is put."""
    return NEEDS.get(target.model, {target.device: ANYWHERE_BYTES})


def target_of(model: str, on_unconfirmed: OnUnconfirmed = OnUnconfirmed.REFUSE) -> Target:
    own, *others = NEEDS.get(model, GPUS[:1])
    return Target(
        model=model,
        mode=Mode.GENERATION,
        profile="p",
        device=own,
        split_over=(own, *others) if others else (),
        candidates=GPUS if model == ANYWHERE else (),
        memory=MemoryPolicy(
            margin_bytes=MARGIN_BYTES,
            tolerance_bytes=TOLERANCE_BYTES,
            release_timeout_s=RELEASE_TIMEOUT_S,
            on_unconfirmed=on_unconfirmed,
        ),
    )


def make_machine(folder: Path, vendor: str, library: Path) -> Driver:
    folder.mkdir()
    machine = SimulatedGpu if vendor == "NVIDIA" else SimulatedAmd
    return machine(folder, library=library, total_bytes=(TOTAL_BYTES,) * len(GPUS))


@asynccontextmanager
async def open_world(
    folder: Path, vendor: str, library: Path, *, is_exclusive: bool
) -> AsyncIterator[World]:
    """Open a machine of its own; nothing is loaded."""
    gpu = await asyncio.to_thread(make_machine, folder, vendor, library)
    environ = gpu.full_environment()
    async with Telemetry(environ=environ, vendors=(vendor,), policy=DRIVER) as telemetry:
        world = World(gpu, telemetry, CALLS[vendor], is_exclusive=is_exclusive)
        try:
            yield world
        finally:
            gpu.heal()
            for tenant in world.tenants:
                tenant.end()
            await world.arbiter.shut_down(0)
            for backend in world.backends:
                backend.process.end_what_it_left()
