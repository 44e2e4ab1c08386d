"""Which entry holds: the latest start wins, work ends its own, and the baseline is what is left."""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.calendar.plan import HORIZON_S, Planned, Planner
from supervisor.config.schedule import DAYS, ScheduleEntry, ScheduleSettings
from tests.conftest import ROOT

SEOUL = ZoneInfo("Asia/Seoul")
NEW_YORK = ZoneInfo("America/New_York")


def schedule_of(*entries: dict[str, Any], time_zone: str = "Asia/Seoul") -> ScheduleSettings:
    written = {"time_zone": time_zone, "baseline": {"mode": "generation"}, "entries": entries}
    return ScheduleSettings.model_validate(written)


def shipped_example() -> ScheduleSettings:
    example = yaml.safe_load((ROOT / "docs/examples/supervisor.yaml").read_text())
    return ScheduleSettings.model_validate(example["schedule"])


def is_work_left(_: ScheduleEntry) -> bool:
    return True


def is_done(_: ScheduleEntry) -> bool:
    return False


def told(periods: tuple[Planned, ...], zone: ZoneInfo = SEOUL) -> list[str]:
    """Each period as `Thu 08:00 generation`, the baseline's as `-`."""
    return [
        f"{datetime.fromtimestamp(each.starts_at, zone):%a %H:%M} "
        + ("-" if each.entry is None else each.entry.serves)
        for each in periods
    ]


def at(day: int, hour: int, minute: int = 0, zone: ZoneInfo = SEOUL) -> float:
    """A time in the week that begins on Monday, the 23rd of November."""
    return datetime(2026, 11, 23 + day, hour, minute, tzinfo=zone).timestamp()


def test_the_shipped_day_and_night() -> None:
    plan = Planner(shipped_example()).plan(at(3, 1), ended=None, has_work=is_work_left)

    assert told(plan.periods[1:6]) == [
        "Thu 02:00 embedding",
        "Thu 08:00 generation",
        "Thu 18:00 mixed",
        "Fri 00:00 -",
        "Fri 02:00 embedding",
    ]
    assert plan.periods[0] == Planned(None)
    assert plan.next_boundary == at(3, 2)


def test_work_that_is_done_gives_the_night_back_and_does_not_begin_it_again() -> None:
    planner = Planner(shipped_example())
    plan = planner.plan(at(3, 4), ended=None, has_work=is_done)
    assert plan.periods[0].entry is None
    assert plan.ended is not None
    assert plan.ended.began == at(3, 2)

    later = planner.plan(at(3, 5), ended=plan.ended.began, has_work=is_work_left)
    assert later.periods[0].entry is None
    assert later.ended == plan.ended
    assert told(later.periods[1:2]) == ["Thu 08:00 generation"]

    next_night = planner.plan(at(4, 3), ended=plan.ended.began, has_work=is_work_left)
    assert next_night.periods[0].began == at(4, 2)


def test_work_that_was_not_done_is_not_gone_on_with_behind_the_next_entry() -> None:
    plan = Planner(shipped_example()).plan(at(3, 0, 30), ended=None, has_work=is_work_left)

    assert plan.periods[0].entry is None


def test_cron_holds_until_another_one_and_windows_stand_over_it() -> None:
    planner = Planner(
        schedule_of(
            {"cron": "0 2 * * *", "mode": "embedding"},
            {"cron": "0 20 * * *", "mode": "mixed"},
            {"from": "12:00", "to": "13:00", "mode": "generation"},
        )
    )
    plan = planner.plan(at(0, 11), ended=None, has_work=is_done)

    assert told(plan.periods[:5]) == [
        "Mon 02:00 embedding",
        "Mon 12:00 generation",
        "Mon 13:00 embedding",
        "Mon 20:00 mixed",
        "Tue 02:00 embedding",
    ]
    assert [each.serves for each in plan.periods[1].over] == ["embedding", "mixed"]


def test_window_over_midnight_on_some_days() -> None:
    planner = Planner(
        schedule_of({"from": "22:00", "to": "06:00", "days": ["fri"], "mode": "embedding"})
    )
    plan = planner.plan(at(0, 12), ended=None, has_work=is_done)

    assert told(plan.periods[1:]) == ["Fri 22:00 embedding", "Sat 06:00 -"]
    assert planner.plan(at(5, 5, 59), ended=None, has_work=is_done).periods[0].began == at(4, 22)


def test_of_two_that_begin_at_once_the_one_written_last_holds() -> None:
    planner = Planner(
        schedule_of(
            {"from": "08:00", "to": "12:00", "mode": "embedding"},
            {"from": "08:00", "to": "10:00", "mode": "mixed"},
        )
    )

    assert told(planner.plan(at(0, 7), ended=None, has_work=is_done).periods[1:4]) == [
        "Mon 08:00 mixed",
        "Mon 10:00 embedding",
        "Mon 12:00 -",
    ]


windows = st.builds(
    lambda start, length, days, mode: {
        "from": f"{start // 60:02}:{start % 60:02}",
        "to": f"{(start + length) % 1440 // 60:02}:{(start + length) % 60:02}",
        "days": sorted(days),
        "mode": mode,
    },
    st.integers(0, 1439),
    st.integers(1, 1439),
    st.sets(st.sampled_from(DAYS), min_size=1),
    st.sampled_from(["generation", "embedding", "mixed"]),
)


@settings(max_examples=30)
@given(entries=st.lists(windows, min_size=1, max_size=4), minute=st.integers(0, 14 * 1440))
def test_latest_start_wins_minute_by_minute(entries: list[dict[str, Any]], minute: int) -> None:
    """Around the end of daylight saving in New York, against a walk over all minutes before."""
    planner = Planner(schedule_of(*entries, time_zone="America/New_York"))
    now = datetime(2026, 10, 25, tzinfo=NEW_YORK).timestamp() + minute * 60.0
    plan = planner.plan(now, ended=None, has_work=is_done)

    for period, following in zip(plan.periods, plan.periods[1:], strict=False):
        for moment in (max(now, period.starts_at), following.starts_at - 60.0):
            assert (
                planner.plan(moment, ended=None, has_work=is_done).periods[0].entry == period.entry
            )
    starts = [each.starts_at for each in plan.periods[1:]]
    assert starts == sorted(set(starts))
    assert all(now < start <= now + HORIZON_S for start in starts)
    begun = [latest(entry, now) for entry in schedule_of(*entries).entries]
    in_force = [(start, number) for number, (start, end) in enumerate(begun) if now < end]
    expected = max(in_force, default=None)
    held = plan.periods[0]
    assert held.began == (expected[0] if expected else 0.0)


def latest(entry: ScheduleEntry, now: float) -> tuple[float, float]:
    """When a window began last, and ends: by walking back minute by minute."""
    moment = now - now % 60.0
    for _ in range(9 * 1440):
        local = datetime.fromtimestamp(moment, NEW_YORK)
        minutes = local.hour * 60 + local.minute
        if minutes == entry.from_ and DAYS[local.weekday()] in entry.days and not local.fold:
            end = moment
            while True:
                end += 60.0
                local = datetime.fromtimestamp(end, NEW_YORK)
                if local.hour * 60 + local.minute == (entry.to or 0) % 1440 and not local.fold:
                    return moment, end
        moment -= 60.0
    return 0.0, 0.0
