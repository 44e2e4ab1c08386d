"""What is learned of a server's need: its own use, never others', and never without bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.sizing.learned import (
    MAX_GROWTH,
    MAX_TIMES_ESTIMATED,
    SETTLING_READINGS,
    LearnedPeak,
    UseReading,
    UseSeen,
    count_need,
    follow_use,
    growth_of_device,
)

sizes = st.integers(1, 10**12)
told = st.none() | sizes
readings = st.builds(UseReading, own_bytes=st.none() | st.integers(0, 10**12), growth_bytes=told)


def seen_after(*read: UseReading) -> UseSeen:
    seen = UseSeen()
    for reading in read:
        seen = follow_use(seen, reading)
    return seen


def growths(*bytes_grown: int) -> list[UseReading]:
    return [UseReading(growth_bytes=grown) for grown in bytes_grown]


SETTLED = growths(*[1000] * SETTLING_READINGS)


# What is a server's own


@given(st.lists(readings))
def test_peak_is_the_largest_share_that_was_told_whatever_else_the_device_holds(
    read: list[UseReading],
) -> None:
    shares = [reading.own_bytes for reading in read if reading.own_bytes]

    peak = seen_after(*read).peak_bytes

    if shares:
        assert peak == max(shares)


@given(st.lists(readings), readings)
def test_what_was_told_once_is_never_unlearned(read: list[UseReading], last: UseReading) -> None:
    seen = seen_after(*read)
    if seen.own_bytes is not None:
        assert (follow_use(seen, last).peak_bytes or 0) >= seen.own_bytes


@given(st.lists(st.builds(UseReading, own_bytes=st.sampled_from([None, 0]))))
def test_nothing_told_is_nothing_learned(read: list[UseReading]) -> None:
    assert seen_after(*read).peak_bytes is None


@given(st.lists(told.map(lambda grown: UseReading(growth_bytes=grown)), max_size=30))
def test_growth_counts_once_it_has_settled_and_then_by_a_quarter_more_at_most(
    read: list[UseReading],
) -> None:
    grown = [reading.growth_bytes for reading in read if reading.growth_bytes is not None]

    peak = seen_after(*read).peak_bytes

    if len(grown) < SETTLING_READINGS:
        assert peak is None
    else:
        settled = min(grown[:SETTLING_READINGS])
        assert peak is not None
        assert settled <= peak <= settled * MAX_GROWTH


def test_memory_that_an_old_server_gives_back_late_is_not_learned() -> None:
    late = growths(9000, 5000, 1000, 1000, 1000)

    assert seen_after(*late).peak_bytes == 1000


def test_growth_of_a_tenant_that_the_driver_does_not_list_is_not_learned() -> None:
    assert seen_after(*SETTLED, *growths(1100, 9000, 9000)).peak_bytes == 1100


@pytest.mark.parametrize(
    ("used", "baseline", "is_alone", "listed", "growth"),
    [
        (1500, 500, True, None, 1000),
        (1500, 500, True, 0, 1000),  # in a container the driver may list nobody
        (1500, 500, True, 1, 1000),
        (1500, 500, True, 2, None),
        (1500, 500, False, 1, None),
        (1500, None, True, 1, None),
        (400, 500, True, 1, None),  # another tenant has left
    ],
)
def test_growth_is_a_servers_own_only_where_nobody_else_can_have_grown(
    used: int, baseline: int | None, is_alone: bool, listed: int | None, growth: int | None
) -> None:
    assert growth == growth_of_device(
        used_bytes=used, baseline_bytes=baseline, is_alone=is_alone, listed_processes=listed
    )


# What of it counts


@given(sizes, sizes)
def test_counted_is_the_larger_of_both_and_bounded_by_the_estimate(
    estimated: int, peak: int
) -> None:
    counted = count_need(estimated, LearnedPeak(peak_bytes=peak, seen_on="2026-11-21")).need_bytes

    assert estimated <= counted <= MAX_TIMES_ESTIMATED * estimated
    if peak <= MAX_TIMES_ESTIMATED * estimated:
        assert counted == max(estimated, peak)


@given(sizes)
def test_without_anything_learned_the_estimate_counts_and_nothing_is_said(estimated: int) -> None:
    counted = count_need(estimated, None)

    assert (counted.need_bytes, counted.sentence) == (estimated, "")


def test_sentence_tells_both_figures_the_day_and_how_to_drop_it() -> None:
    gib = 1024**3
    learned = LearnedPeak(peak_bytes=round(8.4 * gib), seen_on="2026-11-21")

    sentence = count_need(round(7.9 * gib), learned).sentence

    assert sentence.startswith(
        "learned: 8.4 GiB used at its peak on 2026-11-21, estimated 7.9 GiB; "
    )
    assert "--forget" in sentence
    assert "of which 2.0 GiB count" in count_need(gib, learned).sentence
    assert "--forget" not in count_need(9 * gib, learned).sentence
