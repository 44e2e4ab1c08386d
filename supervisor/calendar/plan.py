"""Which entry of the schedule holds at a time, and which ones follow.

Of the entries that are in force, the one that began last holds; where none is, the baseline. A
window is in force until its end, a cron expression from its time on. An entry that lasts until its
work is done is over then, or as soon as another begins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from supervisor.calendar.times import times_of
from supervisor.config.schedule import ScheduleEntry, ScheduleSettings

HORIZON_S = 8 * 86400.0
"""How far ahead is planned: each day of the week comes in it."""

MOST_PERIODS = 48
"""Periods that are planned at most."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A period: its entry (None: the baseline), when that began, and when it holds from on.

    Unix seconds; 0: from before anything that is planned. `over`: the other entries in force, the
    last begun first.
    """

    entry: ScheduleEntry | None
    began: float = 0.0
    starts_at: float = 0.0
    over: tuple[ScheduleEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The period that holds now, those that follow, and the last that its work has ended."""

    periods: tuple[Planned, ...]
    ended: Planned | None

    @property
    def next_boundary(self) -> float | None:
        """When the next period begins; None where none does."""
        return self.periods[1].starts_at if len(self.periods) > 1 else None


class Planner:
    """Plans by one schedule; all times are Unix seconds."""

    def __init__(self, schedule: ScheduleSettings) -> None:
        zone = ZoneInfo(schedule.time_zone)
        self._entries = [(entry, times_of(entry, zone)) for entry in schedule.entries]

    def plan(
        self, now: float, *, ended: float | None, has_work: Callable[[ScheduleEntry], bool]
    ) -> Plan:
        """Return what holds now, and what follows within `HORIZON_S`.

        `ended`: when the period began that is over as its work is done. `has_work`: whether there
        is any for an entry that lasts until then.
        """
        holding = self._holding(now, ended)
        over = None
        if holding.entry is not None and holding.entry.until_done and not has_work(holding.entry):
            over, holding = holding, self._holding(now, holding.began)
        elif ended is not None:
            over = self._ended(ended)
        ended = over.began if over is not None else ended
        return Plan(periods=tuple(self._periods(holding, now, ended)), ended=over)

    def _periods(self, holding: Planned, now: float, ended: float | None) -> Sequence[Planned]:
        periods, at = [holding], now
        while len(periods) < MOST_PERIODS:
            changes = [moment for _, times in self._entries for moment in times.following(at)]
            at = min(changes, default=now + 2 * HORIZON_S)
            if at > now + HORIZON_S:
                break
            following, last = self._holding(at, ended), periods[-1]
            if (following.entry, following.began) != (last.entry, last.began):
                periods.append(replace(following, starts_at=at))
        return periods

    def _holding(self, at: float, ended: float | None) -> Planned:
        """Return what holds; of entries that began at the same time, the one written last."""
        begun = [
            (span, entry) for entry, times in self._entries if (span := times.last(at)) is not None
        ]
        newest = max((span.start for span, _ in begun), default=0.0)
        in_force = [
            (span.start, entry)
            for span, entry in reversed(begun)
            if (span.end is None or at < span.end)
            and not (entry.until_done and (span.start < newest or span.start == ended))
        ]
        if not in_force:
            return Planned(None)
        (began, entry), *over = sorted(in_force, key=lambda each: each[0], reverse=True)
        return Planned(entry, began, began, tuple(other for _, other in over))

    def _ended(self, began: float) -> Planned | None:
        """Return the entry that began then."""
        begun = [
            e for e, times in self._entries if e.until_done and times.last(began) == (began, None)
        ]
        return Planned(begun[-1], began, began) if begun else None
