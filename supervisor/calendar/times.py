"""Times of an entry of the schedule: when it began last, and when it begins next.

All moments are Unix seconds, since zoned times of one zone are compared by their digits alone, even
where the clocks were set back between them.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo

from supervisor.config.schedule import DAYS, ScheduleEntry

_DAY = timedelta(days=1)
_WEEK_DAYS = 8
"""Days from one beginning of a window on one day of the week to the next, both included."""

_FOLD = timedelta(hours=3)
"""More than any clock is set back at once: so far back may the first of two equal times lie."""


class Span(NamedTuple):
    """When an entry began, and when its window ends; None: it has no window."""

    start: float
    end: float | None


class Times(Protocol):
    """When an entry begins and ends."""

    def last(self, at: float) -> Span | None:
        """Return the last time that it began, `at` included; None: it never did."""
        ...

    def following(self, at: float) -> Iterator[float]:
        """Yield when it begins or ends next after `at`, each once and in no order."""
        ...


def times_of(entry: ScheduleEntry, zone: ZoneInfo) -> Times:
    """Return the times of an entry in a zone."""
    if entry.cron is not None:
        return CronTimes(entry.cron, zone)
    return WindowTimes(entry, zone)


class CronTimes:
    """The times of a cron expression, as cronsim and Debian's cron have them.

    What falls into an hour that is skipped is due at its end; what falls into one that comes twice,
    the first time only, unless it is due each hour or oftener.
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._expression = expression
        self._zone = zone

    def last(self, at: float) -> Span | None:
        """Return the last time that it was due."""
        later = datetime.fromtimestamp(at, self._zone) + _FOLD
        for due in self._dues(later, reverse=True):
            if due.timestamp() <= at:
                return Span(due.timestamp(), None)
        return None

    def following(self, at: float) -> Iterator[float]:
        """Yield the next time that it is due."""
        for due in self._dues(datetime.fromtimestamp(at, self._zone)):
            if due.timestamp() > at:
                yield due.timestamp()
                return

    def _dues(self, since: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        from cronsim import CronSim  # noqa: PLC0415 - most serve without a schedule

        return CronSim(self._expression, since, reverse=reverse)


class WindowTimes:
    """The times of a window: some hours on some days of the week, over midnight, too."""

    def __init__(self, entry: ScheduleEntry, zone: ZoneInfo) -> None:
        self._from = timedelta(minutes=entry.from_ or 0)
        until = timedelta(minutes=entry.to or 0)
        self._until = until if until > self._from else until + _DAY
        self._days = frozenset(DAYS.index(day) for day in entry.days or DAYS)
        self._zone = zone

    def last(self, at: float) -> Span | None:
        """Return the window that began last."""
        today = datetime.fromtimestamp(at, self._zone).date()
        days = (today - _DAY * back for back in range(_WEEK_DAYS))
        return next((span for span in self._spans(days) if span.start <= at), None)

    def following(self, at: float) -> Iterator[float]:
        """Yield the next beginning, and the end of the window that has begun."""
        today = datetime.fromtimestamp(at, self._zone).date()
        days = (today + _DAY * ahead for ahead in range(_WEEK_DAYS))
        yield from [span.start for span in self._spans(days) if span.start > at][:1]
        begun = self.last(at)
        if begun is not None and begun.end is not None and begun.end > at:
            yield begun.end

    def _spans(self, days: Iterator[date]) -> Iterator[Span]:
        for day in days:
            if day.weekday() in self._days:
                midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - zoned in moment_of
                start = moment_of(midnight + self._from, self._zone)
                end = moment_of(midnight + self._until, self._zone)
                if start < end:  # else it lies in an hour that is skipped
                    yield Span(start, end)


def moment_of(local: datetime, zone: ZoneInfo) -> float:
    """Return when the clocks of a zone first show a time; one that is skipped counts as its end."""
    while True:
        zoned = local.replace(tzinfo=zone)
        if zoned.astimezone(UTC).astimezone(zone).replace(tzinfo=None) == local:
            return zoned.timestamp()
        local += timedelta(minutes=1)
