"""The last hour of every device, one point a second, in a fixed amount of memory."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields

from supervisor.errors import TelemetryError
from supervisor.observability.guarded_task import start_guarded
from supervisor.telemetry.port import DeviceReading
from supervisor.telemetry.telemetry import Telemetry

HOUR_POINTS = 3600
_UNKNOWN = float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class RingPoint:
    """A device at one time, `taken_at` in seconds of the monotonic clock.

    None is what the driver did not report, and for `children_bytes` also what nobody asked for.
    """

    taken_at: float
    used_bytes: float
    free_bytes: float
    children_bytes: float | None
    utilisation_percent: float | None
    temperature_c: float | None
    power_w: float | None


_COLUMNS = tuple(field.name for field in fields(RingPoint))


class Ring:
    """The last points of a device, oldest first; about 200 KB for an hour of seconds."""

    def __init__(self, capacity: int = HOUR_POINTS) -> None:
        self._capacity = capacity
        self._count = 0
        self._values = array("d", bytes(8 * len(_COLUMNS) * capacity))

    def __len__(self) -> int:
        return min(self._count, self._capacity)

    def add(self, point: RingPoint) -> None:
        """Keep a point; the oldest goes where there is no room."""
        start = (self._count % self._capacity) * len(_COLUMNS)
        for offset, name in enumerate(_COLUMNS):
            value = getattr(point, name)
            self._values[start + offset] = _UNKNOWN if value is None else value
        self._count += 1

    def points(self, since: float = 0.0) -> Iterator[RingPoint]:
        """Yield the points taken at `since` or later."""
        for number in range(self._count - len(self), self._count):
            start = (number % self._capacity) * len(_COLUMNS)
            if self._values[start] >= since:
                row = self._values[start : start + len(_COLUMNS)]
                known = (None if value != value else value for value in row)  # noqa: PLR0124 - NaN
                yield RingPoint(**dict(zip(_COLUMNS, known, strict=True)))  # type: ignore[arg-type]


@asynccontextmanager
async def record_devices(
    telemetry: Telemetry,
    *,
    period_s: float = 1.0,
    child_pids: Callable[[], Collection[int]] | None = None,
) -> AsyncIterator[dict[str, Ring]]:
    """Read every device each `period_s` seconds while the context lasts; yields its ring by id.

    A reading that fails leaves a gap. `child_pids` gives our processes, for their share.
    """
    rings: dict[str, Ring] = {}
    task = start_guarded(
        lambda: _record(telemetry, rings, period_s, child_pids), name="record-devices"
    )
    try:
        yield rings
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _record(
    telemetry: Telemetry,
    rings: dict[str, Ring],
    period_s: float,
    child_pids: Callable[[], Collection[int]] | None,
) -> None:
    due_at = time.monotonic()
    while True:
        pids = child_pids() if child_pids is not None else None
        for info in telemetry.devices():
            try:
                reading = await telemetry.read(info.device, pids or ())
            except TelemetryError:
                continue  # telemetry has noted it
            if info.device not in rings:
                rings[info.device] = Ring()
            rings[info.device].add(_point(reading, has_children=pids is not None))
        # What was missed while the machine slept is not made up for.
        due_at = max(due_at + period_s, time.monotonic())
        await asyncio.sleep(due_at - time.monotonic())


def _point(reading: DeviceReading, *, has_children: bool) -> RingPoint:
    sample = reading.sample
    return RingPoint(
        taken_at=sample.taken_at,
        used_bytes=sample.used_bytes,
        free_bytes=sample.free_bytes,
        children_bytes=sample.children_bytes if has_children else None,
        utilisation_percent=reading.utilisation_percent,
        temperature_c=reading.temperature_c,
        power_w=reading.power_w,
    )
