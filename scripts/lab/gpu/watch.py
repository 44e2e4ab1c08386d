"""Watches the device for as long as the check runs, apart from the controller under check.

It asks through the product's own telemetry, so that the vendor's library stays in a sampler
process, and a driver that hangs costs a part and not the run.
"""

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.port import HOST, DeviceInfo, DeviceReading
from supervisor.telemetry.telemetry import Telemetry

PERIOD_S = 0.010
"""Pause between two samples: the resolution of every release that is told."""

LOAD_EVERY = 10
"""Each so-many-th sample asks for the load, too; drivers renew it a few times a second only."""

OPEN_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 10.0

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The device at a time of the monotonic clock; `utilisation_percent` None: not asked."""

    at: float
    used_bytes: int
    free_bytes: int
    utilisation_percent: float | None = None


class Watch:
    """Samples the first GPU from a thread of its own while the context lasts.

    Entering raises TelemetryError, with the reason, where no GPU can be read. `points` grows;
    `failures` holds each sentence that a reading failed with once.
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.failures: list[str] = []
        self._opened: Future[DeviceInfo] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._telemetry: Telemetry | None = None
        self._should_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            self.info = self._opened.result(OPEN_TIMEOUT_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        self._should_stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            if not self._opened.done():
                self._opened.set_exception(error)

    async def _watch(self) -> None:
        async with Telemetry() as telemetry:
            device = next(iter(telemetry.gpus()), HOST)
            infos = {info.device: info for info in telemetry.devices()}
            if device == HOST or infos[device].fault is not None:
                problems = "; ".join(telemetry.problems) or "no driver was found"
                raise TelemetryError(f"no GPU can be read here: {problems}")
            self._loop, self._telemetry = asyncio.get_running_loop(), telemetry
            self._opened.set_result(infos[device])
            await self._take_points(telemetry, device)

    async def _take_points(self, telemetry: Telemetry, device: str) -> None:
        number = 0
        while not self._should_stop.is_set():
            try:
                if number % LOAD_EVERY == 0:
                    reading = await telemetry.read(device)
                    self._add(reading.sample, reading.utilisation_percent)
                else:
                    self._add(await telemetry.sample(device), None)
            except TelemetryError as error:
                if str(error) not in self.failures:
                    self.failures.append(str(error))
            number += 1
            await asyncio.sleep(PERIOD_S)

    def _add(self, sample: MemorySample, utilisation_percent: float | None) -> None:
        self.points.append(
            Point(
                at=sample.taken_at,
                used_bytes=sample.used_bytes,
                free_bytes=sample.free_bytes,
                utilisation_percent=utilisation_percent,
            )
        )

    def _ask(self, question: Coroutine[Any, Any, Answer]) -> Answer:
        if self._loop is None:
            raise TelemetryError("the watch has ended")
        return asyncio.run_coroutine_threadsafe(question, self._loop).result(ANSWER_TIMEOUT_S)

    @property
    def _open_telemetry(self) -> Telemetry:
        if self._telemetry is None:
            raise TelemetryError("the watch has ended")
        return self._telemetry

    def sample(self) -> MemorySample:
        """Read the memory now. Raises TelemetryError."""
        return self._ask(self._open_telemetry.sample(self.info.device))

    def read(self) -> DeviceReading:
        """Read everything now, the processes too. Raises TelemetryError."""
        return self._ask(self._open_telemetry.read(self.info.device))

    def wait_until_used(self, used_bytes: int, timeout_s: float) -> bool:
        """Wait until no more than that is in use; tell whether it came so far in time."""
        ends_at = time.monotonic() + timeout_s
        while self.sample().used_bytes > used_bytes:
            if time.monotonic() > ends_at:
                return False
            time.sleep(PERIOD_S / 2)
        return True

    def time_samples(self, seconds: float) -> list[float]:
        """Sample back to back for so long; return how long each took, in seconds."""
        return self._ask(self._time_samples(seconds))

    async def _time_samples(self, seconds: float) -> list[float]:
        took_s = []
        ends_at = time.monotonic() + seconds
        while (began_at := time.monotonic()) < ends_at:
            await self._open_telemetry.sample(self.info.device)
            took_s.append(time.monotonic() - began_at)
        return took_s

    def between(self, began_at: float, ended_at: float) -> Sequence[Point]:
        """Return the points of a time."""
        return [point for point in self.points if began_at <= point.at <= ended_at]
