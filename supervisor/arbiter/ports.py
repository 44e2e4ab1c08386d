"""What the performer asks of the rooms below, and of who reads the schedule or compares twins."""

import threading
from collections.abc import Collection, Mapping
from typing import Protocol

from supervisor.core.machine.events import (
    ScheduleRead,
)
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.values import Target, TargetNeed
from supervisor.engine.servers.backend import Backend


class BackendLauncher(Protocol):
    """What the performer asks of the engine room."""

    def check(self, target: Target) -> TargetNeed:
        """Return the need, or raise EngineError or ModelFileError. May block briefly."""
        ...

    def warm(
        self, target: Target, child_pids: Collection[int], should_stop: threading.Event
    ) -> None:
        """Read the target's file into the page cache until `should_stop`. Blocks; never raises."""
        ...

    def launch(self, target: Target, epoch: int) -> Backend:
        """Spawn, or raise EngineError."""
        ...


class MemorySource(Protocol):
    """What the performer asks of telemetry."""

    async def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        """Read one device, or raise TelemetryError. `former_pids`: leaders of reaped sessions."""
        ...


class Schedule(Protocol):
    """What the performer asks of whoever reads the schedule."""

    async def read(self, ended: float | None) -> ScheduleRead:
        """Say what the schedule makes of the clock now. `ended`: as in `ReadSchedule`."""
        ...

    async def optimize_vectors(self) -> None:
        """Build the indexes over all vectors that were stored."""
        ...


class TwinComparison(Protocol):
    """What the performer asks of whoever compares twins with their models."""

    async def fault_of(self, backend: Backend, target: Target) -> str | None:
        """Return why a twin must not serve; None: it may.

        Raises BackendUnreachable where it has died.
        """
        ...

    async def learn(self, backend: Backend, target: Target) -> Mapping[int, str] | None:
        """Take the vectors of a model that serves, to compare its twin with.

        Returns the epochs of twins that were found to differ, and how; None: it could not.
        """
        ...


class NoTwins:
    """The comparison of whoever has no twins."""

    async def fault_of(self, *_: Backend | Target) -> str | None:
        """There is nothing to compare."""
        return None

    async def learn(self, *_: Backend | Target) -> Mapping[int, str] | None:
        """There is nothing to learn."""
        return None


class NoSchedule:
    """The schedule of whoever has none."""

    async def read(self, _: float | None) -> ScheduleRead:
        """Say so."""
        return ScheduleRead(at=0.0)

    async def optimize_vectors(self) -> None:
        """Nothing is due."""
