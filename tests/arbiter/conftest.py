"""An arbiter over backends that are ready, answer and die when the test says so."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, cast

import pytest
import uvloop
from immutables import Map

from supervisor.arbiter.arbiter import Arbiter
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemoryPolicy, MemorySample
from supervisor.core.machine.rules import Limits
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Device, Mode, Stop, Target, TargetNeed
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.process import ProcessExit
from tests.launches import launch_of
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests of this room on the loop that the command line runs on."""
    return {"uvloop": uvloop.new_event_loop}


class FakeProcess:
    """What the arbiter reads of a process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.last_lines = ["first words", "last words"]

    def abandon(self, why: str) -> ProcessExit:
        self.last_lines.append(f"(ended by the controller: {why})")
        return ProcessExit(exit_code=None, signal=9)


class FakeBackend:
    """A backend without a process. It is ready, and gone, when the test says so."""

    def __init__(self, target: Target, epoch: int) -> None:
        self.launch = launch_of(target, epoch)
        self.model = target.model
        self.epoch = epoch
        self.process = FakeProcess(pid=1000 + epoch)
        self.ready = asyncio.Event()
        self.graces: list[float] = []
        self.obeys = True
        self.ready_fault: Exception | None = None
        self.is_gone = asyncio.Event()
        self.prompts_saved = None
        self.prompts_restored = None
        self._ended: asyncio.Future[ProcessExit] = asyncio.get_running_loop().create_future()

    async def become_ready(self, timeout_s: float) -> None:
        _ = timeout_s
        await self.ready.wait()
        if self.ready_fault:
            raise self.ready_fault

    def end_lost(self, why: str) -> None:
        self.process.last_lines.append(f"(ended by the controller: {why})")
        self.end(signal=15)

    async def wait(self) -> ProcessExit:
        return await asyncio.shield(self._ended)

    async def give_up_memory(self, how: Stop, on_begun: Callable[[], None]) -> None:
        on_begun()
        self.graces.append(how.grace_s)
        if self.obeys:
            self.end(signal=15)
        await self.wait()

    def fail_to_watch(self, fault: Exception) -> None:
        self._ended.set_exception(fault)

    def end(self, *, exit_code: int | None = None, signal: int | None = None) -> None:
        if not self._ended.done():
            self._ended.set_result(ProcessExit(exit_code=exit_code, signal=signal))


class FakeLauncher:
    """Starts fake backends, which are ready at once unless `is_slow`. `faults` are raised."""

    def __init__(self) -> None:
        self.backends: dict[int, FakeBackend] = {}
        self.check_fault: Exception | None = None
        self.launch_fault: Exception | None = None
        self.is_slow = False
        self.warmed: list[Target] = []

    def check(self, target: Target) -> TargetNeed:
        assert target.device == "gpu0"
        if self.check_fault:
            raise self.check_fault
        return TargetNeed(footprint=Footprint.of({target.device: 100}))

    def warm(
        self, target: Target, child_pids: Collection[int], should_stop: threading.Event
    ) -> None:
        _ = child_pids, should_stop
        self.warmed.append(target)

    def launch(self, target: Target, epoch: int) -> Backend:
        if self.launch_fault:
            raise self.launch_fault
        backend = self.backends[epoch] = FakeBackend(target, epoch)
        if not self.is_slow:
            backend.ready.set()
        return cast("Backend", backend)

    @property
    def newest(self) -> FakeBackend:
        return self.backends[max(self.backends)]


class FakeMemory:
    """A device whose memory is free, but for all readings after the first `held_after`.

    It raises `fault` where there is one.
    """

    def __init__(self) -> None:
        self.fault: Exception | None = None
        self.held_after: int | None = None
        self.asked: list[tuple[str, tuple[int, ...]]] = []

    async def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        _ = former_pids
        self.asked.append((device, tuple(child_pids)))
        if self.fault:
            raise self.fault
        is_held = self.held_after is not None and len(self.asked) > self.held_after
        free = 0 if is_held else 1000
        return MemorySample(
            device=device,
            taken_at=time.monotonic(),
            total_bytes=1000,
            used_bytes=1000 - free,
            free_bytes=free,
            source="fake",
            children_bytes=0,
        )


class World:
    """The arbiter under test, and what it stands on."""

    def __init__(self, *, hold_timeout_s: float = 60.0) -> None:
        self.launcher = FakeLauncher()
        self.memory = FakeMemory()
        self.observed: list[tuple[Any, Snapshot, Snapshot, Any]] = []
        device = Device(name="gpu0", budget_bytes=1000, is_exclusive=True)
        self.arbiter = Arbiter(
            snapshot=Snapshot(
                devices=Map({"gpu0": device}),
                limits=Limits(hold_timeout_s=hold_timeout_s),
            ),
            launcher=self.launcher,
            memory=self.memory,
            observers=(lambda *seen: self.observed.append(seen),),
        )

    @property
    def snapshot(self) -> Snapshot:
        return self.arbiter.snapshot

    async def switch_to(self, target: Target | None) -> SwitchReport:
        async with asyncio.timeout(PATIENCE_S):
            return await self.arbiter.request_switch(target, "test")[1]

    async def shut_down(self) -> None:
        """End it as the product does, with backends that end however they were told to behave."""
        for backend in self.launcher.backends.values():
            backend.obeys = True
            backend.end(signal=9)
        async with asyncio.timeout(PATIENCE_S):
            await self.arbiter.shut_down(0)


MakeTarget = Callable[..., Target]


@pytest.fixture
def make_target() -> MakeTarget:
    """Makes targets that differ from a plain one as the test says."""

    def make(model: str = "chat", **changes: Any) -> Target:
        policy = MemoryPolicy(
            margin_bytes=0, tolerance_bytes=0, stable_samples=1, release_timeout_s=0.05
        )
        fields: dict[str, Any] = {
            "mode": Mode.GENERATION,
            "profile": "p",
            "device": "gpu0",
            "memory": policy,
        }
        return Target(model=model, **(fields | changes))

    return make


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """An arbiter with nothing loaded."""
    made = World()
    yield made
    await made.shut_down()


@pytest.fixture
async def impatient_world() -> AsyncIterator[World]:
    """An arbiter whose requests wait for a switch no longer than 50 ms."""
    made = World(hold_timeout_s=0.05)
    yield made
    await made.shut_down()


@pytest.fixture
def eventually() -> Eventually:
    """Waits until a condition holds; fails when it does not within `within_s` seconds."""

    async def wait(condition: Callable[[], object], *, within_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true"
            await asyncio.sleep(0.001)

    return wait
