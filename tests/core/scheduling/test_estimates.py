"""What is learned: robust, of the last 20, and kept as JSON."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.scheduling.estimates import (
    SWITCH_S,
    Estimates,
    costs_of,
    longest_switch_s,
    note_drain,
    note_return,
    note_revision,
    note_stay,
    note_switch,
)

seconds = st.floats(0.001, 100.0)


def of_switches(*values: float) -> Estimates:
    estimates = Estimates()
    for took_s in values:
        estimates = note_switch(estimates, "chat", took_s, is_cold=False)
    return estimates


def test_nothing_is_known_of_a_model_that_was_never_live() -> None:
    costs = costs_of(Estimates(), "chat")
    assert (costs.switch_s, costs.drain_s, costs.service_s) == (SWITCH_S, 0.0, 0.0)
    assert costs.return_s is None


def test_a_few_odd_switches_do_not_count() -> None:
    assert costs_of(of_switches(0.4, 0.4, 0.4, 60.0, 90.0), "chat").switch_s == 0.4


def test_what_a_server_took_with_other_settings_is_forgotten() -> None:
    """And what its clients do is not: they are the same."""
    known = note_revision(of_switches(0.4), "chat", "on the CPU")
    assert costs_of(known, "chat").switch_s == 0.4  # what is known was not known to be of others

    known = stay(note_drain(note_return(known, "chat", 0.01), "chat", 3.0), 3, 4, 2.0)
    same = note_revision(known, "chat", "on the CPU")
    other = note_revision(known, "chat", "on the GPU")

    assert same == known
    was, now = costs_of(known, "chat"), costs_of(other, "chat")
    assert (now.switch_s, now.drain_s, now.service_s) == (SWITCH_S, 0.0, 0.0)
    assert (now.return_s, now.arrivals_per_s) == (was.return_s, was.arrivals_per_s)


def test_a_cold_switch_teaches_nothing() -> None:
    estimates = note_switch(of_switches(0.4), "chat", 60.0, is_cold=True)
    assert estimates == of_switches(0.4)


def test_what_changed_for_good_counts_after_eleven_times() -> None:
    assert costs_of(of_switches(*[1.0] * 20, *[2.0] * 11), "chat").switch_s == 2.0


def test_a_lead_is_as_long_as_slow_switches_and_not_as_the_one_slowest() -> None:
    estimates = of_switches(1.0, 2.0)
    assert longest_switch_s(estimates, "chat", ["embed"]) == 1.25 * 2.0
    for drain_s in (720.0, 1.0, 2.0):
        estimates = note_drain(estimates, "embed", drain_s)
    assert longest_switch_s(estimates, "chat", ["embed"]) == 1.25 * (2.0 + 2.0)


def test_each_model_has_its_own() -> None:
    estimates = note_drain(of_switches(0.4), "embed", 3.0)
    assert costs_of(estimates, "chat").drain_s == 0.0
    assert costs_of(estimates, "embed").drain_s == 3.0
    assert costs_of(estimates, "embed").switch_s == SWITCH_S


def stay(estimates: Estimates, answered: int, arrived: int, elapsed_s: float) -> Estimates:
    return note_stay(
        estimates, "chat", answered=answered, busy_s=1.0, arrived=arrived, elapsed_s=elapsed_s
    )


def test_service_is_the_time_in_work_for_each_answer() -> None:
    assert costs_of(stay(Estimates(), 50, 50, 10.0), "chat").service_s == pytest.approx(0.02)


def test_a_stretch_without_answers_or_without_length_does_no_harm() -> None:
    estimates = stay(stay(Estimates(), 0, 30, 100.0), 0, 0, 0.0)
    costs = costs_of(estimates, "chat")
    assert costs.service_s == 0.0
    assert costs.arrivals_per_s == pytest.approx(0.3)


def test_a_few_in_a_short_stay_are_no_flood() -> None:
    assert costs_of(stay(Estimates(), 2, 2, 0.1), "chat").arrivals_per_s == 0.0


def test_the_rate_forgets_a_quiet_night_once_twenty_have_come() -> None:
    estimates = stay(Estimates(), 1, 1, 30_000.0)
    assert costs_of(stay(estimates, 9, 9, 3.0), "chat").arrivals_per_s < 0.001
    assert costs_of(stay(estimates, 20, 20, 4.0), "chat").arrivals_per_s == pytest.approx(5.0)


def test_short_stretches_in_which_nobody_comes_count_too() -> None:
    estimates = Estimates()
    for number in range(20):
        estimates = stay(estimates, 0, number % 4 == 0, 1.0)
    assert costs_of(estimates, "chat").arrivals_per_s == pytest.approx(0.25)


def of_returns(*values: float) -> Estimates:
    estimates = Estimates()
    for after_s in values:
        estimates = note_return(estimates, "chat", after_s)
    return estimates


def test_one_absence_tells_nothing_of_returns() -> None:
    assert costs_of(of_returns(0.01), "chat").return_s is None


@given(before=st.lists(seconds, max_size=30), loops=st.lists(st.floats(0.0, 0.003), min_size=2))
def test_two_absences_show_loops_whatever_was_before(
    before: list[float], loops: list[float]
) -> None:
    return_s = costs_of(of_returns(*before, *loops[:2]), "chat").return_s
    assert return_s is not None
    assert return_s <= 0.003


@given(before=st.lists(st.floats(0.0, 0.003), max_size=30), late=st.floats(0.01, 9.0))
def test_two_absences_show_that_loops_are_over_and_one_does_not(
    before: list[float], late: float
) -> None:
    assert costs_of(of_returns(*before, late, late), "chat").return_s == late
    if len(before) > 1:
        once = costs_of(of_returns(*before, late), "chat").return_s
        assert once == max(before[-2:])


@given(switches=st.lists(seconds, max_size=30), returns=st.lists(seconds, max_size=30))
def test_estimates_survive_as_json(switches: list[float], returns: list[float]) -> None:
    estimates = of_switches(*switches)
    for gap_s in returns:
        estimates = note_return(estimates, "embed", gap_s)
    estimates = stay(estimates, 3, 4, 2.0)
    assert msgspec.json.decode(msgspec.json.encode(estimates), type=Estimates) == estimates


@given(st.lists(seconds, min_size=1, max_size=60))
def test_an_estimate_lies_among_the_last_twenty(values: list[float]) -> None:
    last = values[-20:]
    assert min(last) <= costs_of(of_switches(*values), "chat").switch_s <= max(last)
