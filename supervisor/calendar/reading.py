"""Reads the schedule for the core: what it makes of the wall clock, with models as they are now."""

from collections.abc import Callable
from datetime import datetime
from typing import Protocol
from zoneinfo import ZoneInfo

import structlog
from msgspec.structs import replace

from supervisor.calendar.plan import Plan, Planned, Planner
from supervisor.calendar.wall_clock import WallClock
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.schedule import ScheduleEntry, ScheduleSettings, ServedSettings
from supervisor.core.machine.agenda import Period
from supervisor.core.machine.events import ScheduleRead
from supervisor.core.machine.values import Mode, Target
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

SHOWN = 3
"""Changes to come that are shown."""

PART = "schedule"
"""What an impairment of the schedule is called."""

REREAD_S = 60.0
"""Seconds of the wall clock until it is asked again: it may have been set, or have been asleep."""


class Work(Protocol):
    """What periods are for, beside requests."""

    async def modes_left(self) -> frozenset[Mode]:
        """Return the modes of which jobs need models. Raises RequestRefused where nobody tells."""
        ...

    async def optimize_vectors(self) -> None:
        """Build the indexes over all vectors that were stored."""
        ...


class ScheduleReader:
    """Answers the core's `ReadSchedule`. The schedule is the one that is configured now."""

    def __init__(
        self,
        *,
        configuration: ConfigurationHolder,
        targets: Targets,
        work: Callable[[], Work],
        clock: WallClock,
        impairments: Impairments,
    ) -> None:
        """`work` is asked for at each use."""
        self._configuration = configuration
        self._targets = targets
        self._work = work
        self._clock = clock
        self._impairments = impairments
        self._modes_left = frozenset(Mode)
        """As it was told last. Before that, all: no period is given up for want of an answer."""

    async def read(self, ended: float | None) -> ScheduleRead:
        """Say what holds now, and what follows; without a schedule: nothing."""
        schedule = self._configuration.current.settings.schedule
        if schedule is None:
            self._impairments.clear(PART)
            return ScheduleRead(at=self._clock.moment_of(self._clock.now()))
        waits_for_work = any(entry.until_done for entry in schedule.entries)
        modes = await self._ask_modes_left() if waits_for_work else frozenset()

        def has_work(entry: ScheduleEntry) -> bool:
            mode = self._mode(entry)
            return bool(modes) if mode is None else mode in modes

        now = self._clock.now()
        plan = Planner(schedule).plan(now, ended=ended, has_work=has_work)
        coming = plan.periods[1].entry if len(plan.periods) > 1 else None
        may_begin = coming is not None and coming.until_done and has_work(coming)
        return self._written(schedule, plan, now, has_work=may_begin)

    async def _ask_modes_left(self) -> frozenset[Mode]:
        try:
            self._modes_left = await self._work().modes_left()
        except RequestRefused as refusal:
            log.warning("schedule.work_unknown", reason=refusal.message)
        return self._modes_left

    def _mode(self, served: ServedSettings) -> Mode | None:
        """Return the mode that is served; None for all."""
        if served.model is None:
            return served.served_mode
        return self._configuration.current.resolve(served.model).mode

    async def optimize_vectors(self) -> None:
        """Build the indexes over all vectors that were stored."""
        log.info("schedule.optimizing_vectors")
        await self._work().optimize_vectors()

    def _written(
        self, schedule: ScheduleSettings, plan: Plan, now: float, *, has_work: bool
    ) -> ScheduleRead:
        """Write a plan as the core takes it, in monotonic seconds."""
        holding, *following = (self._period(schedule, planned) for planned in plan.periods)
        again = min(now + REREAD_S, plan.next_boundary or now + REREAD_S)
        return ScheduleRead(
            at=self._clock.moment_of(now),
            periods=(self._able(holding), *following),
            refuses=schedule.outside_window == "refuse",
            lead_s=schedule.lead_s,
            has_work=has_work,
            ended=None if plan.ended is None else self._period(schedule, plan.ended),
            read_again_at=self._clock.moment_of(again),
        )

    def _period(self, schedule: ScheduleSettings, planned: Planned) -> Period:
        entry = planned.entry
        served = schedule.baseline if entry is None else entry
        name = self._configuration.current.model_name(served.model) if served.model else None
        return Period(
            starts_at=self._clock.moment_of(planned.starts_at),
            began=planned.began,
            local=local_time(planned.starts_at, schedule.time_zone) if planned.starts_at else "",
            mode=served.served_mode,
            model=name,
            target=self._target(served),
            until_done=entry is not None and entry.until_done,
            optimizes=entry is not None and entry.optimize,
            entry=described(entry),
            over=described_over(planned),
        )

    def _target(self, served: ServedSettings) -> Target | None:
        mode, name = served.served_mode, served.model
        if mode is not None:
            name = self._configuration.current.default_of(mode)
        if name is None:
            return None
        return self._targets.target(name)

    def _able(self, period: Period) -> Period:
        """Return the period, without its target where its device cannot be used now."""
        if period.target is None:
            return period
        try:
            self._targets.require_device(period.target)
        except RequestRefused as refusal:
            reason = f"'{period.target.model}' cannot be made live: {refusal.message}"
            if self._impairments.note(PART, reason):
                log.warning("schedule.impaired", reason=reason)
            return replace(period, target=None)
        self._impairments.clear(PART)
        return period


def described(entry: ScheduleEntry | None) -> str:
    """Say which entry it is."""
    return "baseline" if entry is None else entry.describe()


def described_over(planned: Planned) -> tuple[str, ...]:
    """Say what else is in force, the last begun first."""
    return () if planned.entry is None else (*map(described, planned.over), described(None))


def next_changes(schedule: ScheduleSettings, now: float) -> list[str]:
    """Say what the schedule has now, and its next changes, as if there were work at any time."""
    periods = Planner(schedule).plan(now, ended=None, has_work=lambda _: True).periods
    return [
        f"{local_time(each.starts_at if number else now, schedule.time_zone)}: "
        f"{(each.entry or schedule.baseline).serves} ({described(each.entry)})"
        for number, each in enumerate(periods[: 1 + SHOWN])
    ]


def local_time(unix_s: float, time_zone: str) -> str:
    """Write a time for people: `2026-11-26 08:00 KST (Asia/Seoul)`."""
    local = datetime.fromtimestamp(unix_s, ZoneInfo(time_zone))
    return f"{local:%Y-%m-%d %H:%M} {local.tzname()} ({time_zone})"
