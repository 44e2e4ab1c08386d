"""An arbiter over the real telemetry of two simulated GPUs, whose servers only hold memory.

The driver's own books are the judge: what was really free when something was started or unparked.
"""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from immutables import Map
from lab.drivers.amd import SimulatedAmd
from lab.drivers.nvidia import GIB, SimulatedGpu

from supervisor.arbiter.arbiter import Arbiter
from supervisor.core.byte_size import MIB
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemoryPolicy, MemorySample, OnUnconfirmed
from supervisor.core.machine.rules import Limits, ModelRules, SwitchRules
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Device, Mode, Phase, Target, TargetNeed
from supervisor.engine.servers.backend import Backend
from supervisor.errors import EngineError
from supervisor.telemetry.port import HOST
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendor_sampler import SamplerPolicy
from tests.patience import PATIENCE_S
from tests.telemetry.holders import (
    GPUS,
    PARKED_HOST_BYTES,
    TOTAL_BYTES,
    Driver,
    Holder,
    HoldingBackend,
    NextStart,
    Tenant,
)

NEEDS: Mapping[str, Mapping[str, int]] = {
    "small": {"gpu0": 20 * GIB},
    "middle": {"gpu0": 45 * GIB},
    "large": {"gpu0": 70 * GIB},
    "elsewhere": {"gpu1": 55 * GIB},
    "wide": {"gpu0": 40 * GIB, "gpu1": 40 * GIB},
    "lopsided": {"gpu1": 65 * GIB, "gpu0": 25 * GIB},
    "sleeper": {"gpu0": 35 * GIB},
    "wide sleeper": {"gpu1": 30 * GIB, "gpu0": 15 * GIB},
    "steady": {"gpu1": 10 * GIB},
    "vectors": {"gpu1": 12 * GIB},
    "vectors (twin)": {HOST: 64 * MIB},
}
"""What each model takes of which GPU; its own, which is asked about last, stands first."""

PARKING = ("sleeper", "wide sleeper")
PINNED = "steady"
"""Never stopped for others where servers share a GPU; where they do not, as any other."""

SPILLING, TWIN = "vectors", "vectors (twin)"

ANYWHERE, ANYWHERE_BYTES = "anywhere", 30 * GIB
"""A model that goes where it costs least."""

MODELS = (*(model for model in NEEDS if model != TWIN), ANYWHERE)

MARGIN_BYTES, TOLERANCE_BYTES = 256 * MIB, 64 * MIB
FLOOR_BYTES = 4 * MIB
"""By which each start raises the use of a GPU for good, as some drivers do."""

RELEASE_TIMEOUT_S = 2.0  # several times the latest release drawn, for a machine that is busy


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


class Unquestioned:
    """The comparison of twins whose vectors are always those of their models."""

    async def fault_of(self, *_: Backend | Target) -> None:
        return None

    async def learn(self, *_: Backend | Target) -> Mapping[int, str]:
        return {}


class World:
    """The arbiter, the machine, its tenants, and the judge of every start."""

    def __init__(
        self, gpu: Driver, telemetry: Telemetry, calls: Calls, *, is_exclusive: bool
    ) -> None:
        self.gpu = gpu
        self.calls = calls
        self.is_exclusive, self.pins = is_exclusive, not is_exclusive
        self.telemetry = telemetry
        self.next_start = NextStart()
        self.backends: list[HoldingBackend] = []
        self.took: dict[tuple[str, str], int] = {}
        """What each model has taken of each device when it was started there last."""
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
                    | {HOST: Device(name=HOST, budget_bytes=GIB, is_host_memory=True)}
                ),
                limits=Limits(breaker_deaths=10_000),
                rules=SwitchRules(
                    warms=False,
                    models={PINNED: ModelRules(is_pinned=True)} if self.pins else {},
                    parked_max_bytes=PARKED_HOST_BYTES,  # so that one is stopped for another
                ),
            ),
            launcher=self,
            memory=telemetry,
            observers=(),
            comparison=Unquestioned(),
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

    def there(self) -> tuple[HoldingBackend, ...]:
        """All servers that the arbiter knows of, whatever their state."""
        known = {b.epoch for b in self.arbiter.snapshot.backends}
        return tuple(backend for backend in self.backends if backend.epoch in known)

    def twin(self) -> HoldingBackend | None:
        """The twin that admits requests."""
        ready = {b.epoch for b in self.arbiter.snapshot.admitting()}
        twins = (b for b in self.backends if b.epoch in ready and b.target.is_twin)
        return next(twins, None)

    def room_for(self, *targets: Target) -> bool:
        """Whether they have room together, beside the pinned and the most of the tenants."""
        needs = [needs_of(target) for target in targets]
        if self.pins and PINNED not in {target.model for target in targets}:
            needs += [needs_of(b.target) for b in self.live() if b.model == PINNED]
        return all(
            sum(need.get(name, 0) for need in needs) + MARGIN_BYTES
            <= TOTAL_BYTES - self.gpu.devices[device].used_bytes - self.tenants[device].most_bytes
            for device, name in enumerate(GPUS)
            if any(name in need for need in needs)
        )

    def books(self) -> str:
        """What is really there: the driver's books of each device, and who the arbiter knows."""
        devices = [
            f"{name}: {self.gpu.used_bytes(number) / GIB:.2f} GiB used, the tenant has "
            f"{tenant.held_bytes / GIB:.2f} and had {tenant.most_bytes / GIB:.2f} at most"
            for number, (name, tenant) in enumerate(zip(GPUS, self.tenants, strict=True))
        ]
        known = [
            f"{b.target.model} ({b.state}, {b.footprint.total_bytes / GIB:.2f} GiB)"
            for b in self.arbiter.snapshot.backends
        ]
        return "\n".join([*devices, ", ".join(known)])

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
        process = Holder(leaves=self.next_start.left_bytes > 0 and target.device in GPUS)
        for name, size_bytes in needs_on_gpus(target).items():
            device = GPUS.index(name)
            self.gpu.devices[device].used_bytes += min(FLOOR_BYTES, self._room_on(device))
            taken_bytes = min(int(size_bytes * self.next_start.share), self._room_on(device))
            self.gpu.allocate(process.pid, taken_bytes, device)
            self.took[target.model, name] = taken_bytes
        if process.left_pid is not None:
            device = GPUS.index(target.device)
            left_bytes = min(self.next_start.left_bytes, self._room_on(device))
            self.gpu.allocate(process.left_pid, left_bytes, device)
        backend = HoldingBackend(target, epoch, process, self.gpu, on_waking=self._judge_waking)
        self.backends.append(backend)
        return cast("Backend", backend)

    def _room_on(self, device: int) -> int:
        return max(0, TOTAL_BYTES - self.gpu.used_bytes(device))

    def _judge_waking(self, backend: HoldingBackend) -> None:
        known = self.arbiter.snapshot.backend(backend.epoch)
        self._judge(known.target if known else backend.target, backend)

    def _judge(self, target: Target, parked: HoldingBackend | None = None) -> None:
        """Compare a start, or that of a parked server, with the driver's books and the budgets."""
        snapshot = self.arbiter.snapshot
        for name in snapshot.devices:
            accounted = sum(b.footprint.on(name) for b in snapshot.backends)
            if accounted > snapshot.devices[name].budget_bytes:
                self.faults.append(f"{accounted / GIB:.1f} GiB are accounted for on {name}")
        if target.memory.on_unconfirmed is not OnUnconfirmed.PROCEED:
            for name, need_bytes in needs_on_gpus(target).items():
                kept_bytes = parked.held_bytes(GPUS.index(name)) if parked else 0
                # What returns to where it ran needs what it took there.
                took_bytes = self.took.get((target.model, name), need_bytes)
                needed_bytes = min(need_bytes, took_bytes) if self._returns() else need_bytes
                self._judge_device(
                    target, name, needed_bytes - kept_bytes, wakes=parked is not None
                )

    def _judge_device(self, target: Target, name: str, need_bytes: int, *, wakes: bool) -> None:
        device = GPUS.index(name)
        free_bytes = TOTAL_BYTES - self.gpu.used_bytes(device)
        if (reading := self._reading_of(name)) is not None:
            free_bytes += self.tenants[device].taken_since(reading.taken_at)
            if wakes and reading.holders is None:  # then others pass for what it keeps
                free_bytes += self.tenants[device].held_bytes
        held_bytes = self._still_held(device)
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
                f"stopped or parked: {switch and switch.gate.reason}"
            )

    def _returns(self) -> bool:
        switch = self.arbiter.snapshot.switch
        return switch is not None and (switch.order.is_recovery or switch.phase is Phase.RESTORING)

    def _reading_of(self, name: str) -> MemorySample | None:
        """The reading of the device for which the gate has let pass."""
        switch = self.arbiter.snapshot.switch
        opened = switch.gate.opened if switch else ()
        return next((s for question, s in opened if question.device == name), None)

    def _still_held(self, device: int) -> int:
        """What those still hold that were stopped, and the parked beyond what is accounted for."""
        kept = {b.epoch: b.footprint.on(GPUS[device]) for b in self.arbiter.snapshot.parked()}
        return sum(
            max(0, backend.held_bytes(device) - kept.get(backend.epoch, 0))
            for backend in self.backends
            if backend.epoch in kept or not backend.process.is_alive
        )


def needs_of(target: Target) -> Mapping[str, int]:
    """Give what a target takes of which GPU where it is put."""
    return NEEDS.get(target.model, {target.device: ANYWHERE_BYTES})


def needs_on_gpus(target: Target) -> Mapping[str, int]:
    return {name: need for name, need in needs_of(target).items() if name in GPUS}


def target_of(model: str, on_unconfirmed: OnUnconfirmed = OnUnconfirmed.REFUSE) -> Target:
    own, *others = NEEDS.get(model, GPUS[:1])
    return Target(
        model=model,
        mode=Mode.GENERATION,
        profile="p",
        device=own,
        split_over=(own, *others) if others else (),
        candidates=GPUS if model == ANYWHERE else (),
        parks=model in PARKING,
        parked_bytes=PARKED_HOST_BYTES,
        spill=target_of(TWIN) if model == SPILLING else None,
        twin_of=SPILLING if model == TWIN else None,
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
