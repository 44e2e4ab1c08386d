"""Learns what servers take on their devices: looks at each once a second while it serves.

On host memory a server's own share is what only its end gives back (anonymous and shared memory),
and of its weights what it has mapped: that is page cache, which counts as available, but without it
every token would wait for the disk. More than the weights is not counted, for libraries are mapped,
too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from supervisor.core.machine.events import BackendExited, BackendSpawned, Event
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, BackendState, Target
from supervisor.core.sizing.learned import (
    LearnedPeak,
    UseReading,
    UseSeen,
    exceeds_what_counts,
    follow_use,
    growth_of_device,
)
from supervisor.engine.models.page_cache import mapped_file_bytes
from supervisor.engine.needs.assessment import Assessment
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.errors import TelemetryError
from supervisor.observability.guarded_task import start_guarded
from supervisor.telemetry.port import HOST, DeviceInfo, DeviceReading

log = structlog.get_logger()

_NOTED_STEP = 1.01  # a peak is written again only when it has grown by a hundredth
_SERVING = frozenset({BackendState.READY, BackendState.DRAINING})


class DeviceReader(Protocol):
    """What the learner asks of telemetry."""

    def devices(self) -> Sequence[DeviceInfo]:
        """Give the devices that were found."""
        ...

    async def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        """Read one device, or raise TelemetryError."""
        ...


@dataclass(slots=True, kw_only=True)
class _Watched:
    """A server that serves, what it was assessed with, and what was seen and noted of it."""

    assessment: Assessment | None
    seen: UseSeen
    noted_bytes: int = 0


class Learner:
    """Follows the servers that serve, and notes their peaks.

    `assessed` returns what a target was last checked with. Nothing is learned of one that has no
    identity: its need is stated, or nobody can say which build runs it.
    """

    def __init__(
        self,
        *,
        store: LearnedStore,
        devices: DeviceReader,
        assessed: Callable[[Target], Assessment | None],
        today: Callable[[], str] = lambda: time.strftime("%Y-%m-%d"),
    ) -> None:
        self._store = store
        self._devices = devices
        self._assessed = assessed
        self._today = today
        self._watched: dict[int, _Watched] = {}
        self._had_company: set[int] = set()

    def observe(self, event: Event, _before: Snapshot, after: Snapshot, *_: object) -> None:
        """Note who was beside whom on a device: called after each event of the arbiter."""
        match event:
            case BackendSpawned():
                self._had_company |= _company(event.epoch, after.backends)
            case BackendExited():
                self._had_company.discard(event.epoch)
            case _:
                pass

    async def look(self, backends: Iterable[Backend]) -> None:
        """Read what each of them that serves takes now, and note new peaks."""
        serving = [backend for backend in backends if backend.state in _SERVING]
        for epoch in self._watched.keys() - {backend.epoch for backend in serving}:
            del self._watched[epoch]
        for backend in serving:
            if backend.pid is not None:
                await self._look_at(backend, backend.pid)

    async def _look_at(self, backend: Backend, pid: int) -> None:
        watched = self._watched.get(backend.epoch)
        if watched is None:
            watched = _Watched(assessment=self._assessed(backend.target), seen=UseSeen())
            self._watched[backend.epoch] = watched
        assessment = watched.assessment
        if assessment is None or assessment.identity is None or assessment.estimate is None:
            return
        device = backend.target.device
        try:
            reading = await self._devices.read(device, (pid,))
        except TelemetryError:
            return  # telemetry has noted it
        if device == HOST:
            use = _use_of_host(reading, pid, assessment.estimate.memory.weights_bytes)
        else:
            use = self._use_of_gpu(reading, backend)
        watched.seen = follow_use(watched.seen, use)
        peak_bytes = watched.seen.peak_bytes
        if peak_bytes is not None and peak_bytes > watched.noted_bytes * _NOTED_STEP:
            is_first, watched.noted_bytes = watched.noted_bytes == 0, peak_bytes
            peak = LearnedPeak(peak_bytes=peak_bytes, seen_on=self._today())
            await asyncio.to_thread(self._store.note, assessment.identity, peak)
            _report(backend.target, peak_bytes, assessment.estimate.total_bytes, is_first=is_first)

    def _use_of_gpu(self, reading: DeviceReading, backend: Backend) -> UseReading:
        sample = reading.sample
        baseline = backend.baseline(sample.device)
        shares_host = any(
            info.shares_host_memory
            for info in self._devices.devices()
            if info.device == sample.device
        )
        return UseReading(
            own_bytes=sample.children_bytes,
            growth_bytes=growth_of_device(
                used_bytes=sample.used_bytes,
                baseline_bytes=baseline.used_bytes if baseline else None,
                # The host's other programs come and go in memory that is the host's, too.
                is_alone=backend.epoch not in self._had_company and not shares_host,
                listed_processes=None if reading.processes is None else len(reading.processes),
            ),
        )


def _report(target: Target, peak_bytes: int, estimated_bytes: int, *, is_first: bool) -> None:
    fields = {
        "model": target.model,
        "profile": target.profile,
        "device": target.device,
        "peak_bytes": peak_bytes,
        "estimated_bytes": estimated_bytes,
    }
    if exceeds_what_counts(peak_bytes, estimated_bytes):
        log.warning("need.far_beyond_estimate", **fields)
    elif is_first:
        log.info("need.learned", **fields)


def _company(epoch: int, backends: Sequence[Backend]) -> set[int]:
    """Return the epochs that share a device with a new one, and its own, if any do."""
    new = next((b for b in backends if b.epoch == epoch), None)
    together = {b.epoch for b in backends if new and new.target.shared_devices(b.target)}
    return together if len(together) > 1 else set()


def _use_of_host(reading: DeviceReading, pid: int, weights_bytes: int) -> UseReading:
    held_bytes = reading.sample.children_bytes
    if not held_bytes:
        return UseReading()
    return UseReading(own_bytes=held_bytes + min(mapped_file_bytes((pid,)), weights_bytes))


@asynccontextmanager
async def keep_learning(
    learner: Learner, backends: Callable[[], Iterable[Backend]], *, period_s: float = 1.0
) -> AsyncIterator[None]:
    """Let the learner look at the backends each `period_s` seconds while the context lasts."""

    async def keep_looking() -> None:
        while True:
            await learner.look(backends())
            await asyncio.sleep(period_s)

    task = start_guarded(keep_looking, name="learn-needs")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
