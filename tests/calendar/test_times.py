"""Schedules agree with cronsim for ten years, over every change of the clocks."""

from datetime import datetime, timedelta
from functools import cache
from itertools import takewhile
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervisor.calendar.times import times_of
from supervisor.config.schedule import DAYS, ScheduleEntry

BERLIN, NEW_YORK, SEOUL, LORD_HOWE = (
    ZoneInfo(name)
    for name in ("Europe/Berlin", "America/New_York", "Asia/Seoul", "Australia/Lord_Howe")
)
zones = st.sampled_from([BERLIN, NEW_YORK, SEOUL, LORD_HOWE])

TEN_YEARS = timedelta(days=3653)
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S

crons = st.builds(
    "{} {} {} * {}".format,
    st.sampled_from(["0", "30", "15", "59"]),
    st.integers(0, 23).map(str) | st.sampled_from(["1", "2", "3", "0,2", "1-3"]),
    st.sampled_from(["*", "*", "1", "25-31"]),
    st.sampled_from(["*", "*", "0", "1-5", "6#1"]),
)
"""Times at which crons are due, most of them at night, when clocks are changed."""


def cron_entry(expression: str) -> ScheduleEntry:
    return ScheduleEntry.model_validate({"cron": expression, "mode": "embedding"})


def due_by_cronsim(expression: str, since: datetime, until: datetime) -> list[float]:
    """All times in one go: restarts are what the product does."""
    due = (each.timestamp() for each in CronSim(expression, since))
    return list(takewhile(lambda moment: moment < until.timestamp(), due))


@settings(max_examples=5)
@given(expression=crons, zone=zones)
@example("30 2 * * *", BERLIN)
@example("30 1 * * *", NEW_YORK)
@example("15 2 * * *", LORD_HOWE)
def test_each_time_follows_from_the_one_before_for_ten_years(
    expression: str, zone: ZoneInfo
) -> None:
    since = datetime(2024, 1, 1, tzinfo=zone)
    until = since + TEN_YEARS
    times = times_of(cron_entry(expression), zone)

    found, at = [], since.timestamp()
    while (at := min(times.following(at))) < until.timestamp():
        found.append(at)

    assert found == due_by_cronsim(expression, since, until)


@settings(max_examples=5)
@given(expression=crons | st.sampled_from(["*/20 * * * *", "0 * * * *"]), zone=zones)
@example("*/20 * * * *", NEW_YORK)
@example("30 2 * * *", BERLIN)
def test_the_last_time_is_the_last_that_came_around_every_change_of_the_clocks(
    expression: str, zone: ZoneInfo
) -> None:
    times = times_of(cron_entry(expression), zone)
    for change in changes_of_clocks(zone):
        since = datetime.fromtimestamp(change - 40 * DAY_S, zone)
        due = due_by_cronsim(expression, since, datetime.fromtimestamp(change + HOUR_S * 6, zone))
        for at in [change + 60.0 * minutes for minutes in range(-180, 300, 7)]:
            begun = times.last(at)
            expected = max((moment for moment in due if moment <= at), default=None)
            assert (begun and begun.start) == expected


@cache
def changes_of_clocks(zone: ZoneInfo) -> list[float]:
    """The full hours of two years before which the clocks of a zone were changed."""
    first = datetime(2024, 1, 1, tzinfo=zone).timestamp()
    hours = [first + HOUR_S * number for number in range(2 * 365 * 24)]
    return [hour for hour in hours if _offset(hour, zone) != _offset(hour - HOUR_S, zone)]


def _offset(unix_s: float, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(unix_s, zone).utcoffset()


@settings(max_examples=5)
@given(
    start=st.integers(0, 24 * 60 - 1),
    end=st.integers(1, 24 * 60),
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    zone=zones,
)
@example(2 * 60 + 15, 2 * 60 + 45, set(DAYS), BERLIN)
@example(22 * 60, 6 * 60, {"fri"}, NEW_YORK)
def test_windows_begin_and_end_when_cronsim_is_due_for_ten_years(
    start: int, end: int, days: set[str], zone: ZoneInfo
) -> None:
    if start == end:
        return
    window = {"from": _clock(start), "to": _clock(end), "days": sorted(days), "mode": "mixed"}
    times = times_of(ScheduleEntry.model_validate(window), zone)
    since = datetime(2024, 1, 7, tzinfo=zone)
    until = since + TEN_YEARS
    on = ",".join(str((DAYS.index(day) + 1) % 7) for day in days)
    starts = due_by_cronsim(f"{start % 60} {start // 60} * * {on}", since, until)

    begun, at = [], since.timestamp()
    while (at := min(times.following(at))) < until.timestamp():
        span = times.last(at)
        assert span is not None
        assert span.end is not None
        assert span.start < span.end
        if at == span.start:
            begun.append(at)
            ends = datetime.fromtimestamp(span.end, zone)
            is_moved = (ends.hour * 60 + ends.minute) != end % (24 * 60)
            assert not is_moved or _offset(span.end - 3601, zone) != _offset(span.end, zone)

    skipped = set(starts) - set(begun)
    assert set(begun) <= set(starts)
    assert all(_offset(each - 1, zone) != _offset(each, zone) for each in skipped)


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


@pytest.mark.parametrize(
    ("expression", "day", "due"),
    [
        ("30 2 * * *", (2026, 3, 29), ["03:00 CEST"]),  # skipped: at the end of the gap
        ("30 2 * * *", (2026, 10, 25), ["02:30 CEST"]),  # twice: the first time
    ],
)
def test_changes_of_the_clocks_in_berlin(
    expression: str, day: tuple[int, int, int], due: list[str]
) -> None:
    times = times_of(cron_entry(expression), BERLIN)
    midnight = datetime(*day, tzinfo=BERLIN)
    (first,) = times.following(midnight.timestamp())
    (second,) = times.following(first)

    assert [f"{datetime.fromtimestamp(first, BERLIN):%H:%M %Z}"] == due
    assert datetime.fromtimestamp(second, BERLIN).date() == midnight.date() + timedelta(days=1)
