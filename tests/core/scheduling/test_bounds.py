"""The published figures, by the formulas and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from supervisor.core.scheduling.bounds import Bounds, bounds, cycle_of
from supervisor.core.scheduling.values import Costs, SchedulingRules, View


def of(costs: dict[str, Costs], rules: SchedulingRules | None = None) -> Bounds:
    return bounds(View(at=0.0, stay=None, queues=(), costs=costs, rules=rules or SchedulingRules()))


def two(switch_s: float, drain_s: float = 0.0, return_s: float | None = 0.0) -> dict[str, Costs]:
    """By default, their clients ask again at once."""
    known = Costs(switch_s=switch_s, drain_s=drain_s, return_s=return_s)
    return dict.fromkeys(("chat", "embed"), known)


def test_with_two_models_the_bound_is_that_of_the_formula() -> None:
    published = of(two(0.4, 0.1))
    chat = published.models["chat"]
    assert chat.turn_s == pytest.approx(0.4 * 0.85 / 0.15)
    assert chat.longest_wait_s == pytest.approx(0.4 * (1 + 1 / 0.15) + 0.1)
    assert published.keeps_max_wait


def test_where_clients_come_whenever_they_like_the_turns_of_others_may_be_four_times_as_long() -> (
    None
):
    chat = of(two(0.4, 0.1, return_s=None)).models["chat"]
    turn_s = 0.4 * 0.85 / 0.15
    assert (chat.turn_s, chat.longest_turn_s) == pytest.approx((turn_s, 4 * turn_s))
    assert chat.longest_wait_s == pytest.approx(0.8 + 4 * turn_s + 0.1)


@pytest.mark.parametrize(
    ("hold_timeout_s", "longest_turn_s"),
    [(20.0, 4 * 0.4 * 0.85 / 0.15), (6.0, 6.0 - 0.4 - 0.8 - 0.1), (1.0, 0.4 * 0.85 / 0.15)],
)
def test_a_turn_is_not_lengthened_beyond_what_those_who_wait_are_held_for(
    hold_timeout_s: float, longest_turn_s: float
) -> None:
    published = of(two(0.4, 0.1, None), SchedulingRules(hold_timeout_s=hold_timeout_s))
    assert published.models["chat"].longest_turn_s == pytest.approx(longest_turn_s)


def test_a_bound_that_is_asked_for_is_kept_with_long_queues_too() -> None:
    chat = of(two(0.4, 0.1, return_s=None), SchedulingRules(max_wait_s=10.0)).models["chat"]
    assert chat.longest_wait_s == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("queued", "turns"),
    [(0, 1.0), (10, 1.0), (20, 1.25), (40, 2.5), (1000, 4.0)],
)
def test_a_turn_is_as_long_as_a_queue_takes_with_those_who_come_meanwhile(
    queued: int, turns: float
) -> None:
    """Half of the time is asked for: as many come while the queue is served as stood in it."""
    open_ = Costs(switch_s=0.15, service_s=0.85 / 32, arrivals_per_s=16 / 0.85)
    cycle = cycle_of("ab", {"a": open_, "b": open_}, SchedulingRules())
    assert cycle.turn_of(open_, queued) == pytest.approx(turns * 0.85)
    loops = replace(open_, return_s=0.01)
    assert cycle.turn_of(loops, queued) == pytest.approx(0.85)


def test_a_model_that_is_asked_for_more_than_it_can_serve_gets_the_longest_turn() -> None:
    flooded = Costs(switch_s=0.15, service_s=0.1, arrivals_per_s=10.0)
    cycle = cycle_of("ab", {"a": flooded, "b": flooded}, SchedulingRules())
    assert cycle.turn_of(flooded, 1) == pytest.approx(4 * 0.85)
    assert cycle.turn_of(flooded, 0) == pytest.approx(0.85)


@given(
    switches=st.lists(st.floats(0.05, 60), min_size=2, max_size=6),
    share=st.floats(0.02, 0.5),
)
def test_a_cycle_of_shortest_turns_serves_exactly_its_share(
    switches: list[float], share: float
) -> None:
    costs = {f"model{number}": Costs(switch_s=s) for number, s in enumerate(switches)}
    turn_s = of(costs, SchedulingRules(switching_share=share)).shortest_turn_s
    turns_s = len(switches) * turn_s
    assert turns_s / (turns_s + sum(switches)) == pytest.approx(1 - share)


def test_a_model_waits_for_the_turns_and_the_drains_of_the_others() -> None:
    costs = {
        "a": Costs(switch_s=1.0, drain_s=0.1, return_s=0.0),
        "b": Costs(switch_s=2.0, drain_s=0.2, return_s=0.0),
        "c": Costs(switch_s=3.0, drain_s=0.4, return_s=0.0),
    }
    published = of(costs, SchedulingRules(switching_share=0.5))
    assert published.shortest_turn_s == pytest.approx(2.0)
    waits = {model: each.longest_wait_s for model, each in published.models.items()}
    assert waits == pytest.approx({"a": 6 + 4 + 0.6, "b": 6 + 4 + 0.5, "c": 6 + 4 + 0.3})


def test_a_longer_bound_makes_turns_longer_until_it_is_met() -> None:
    published = of(two(0.4, 0.1), SchedulingRules(max_wait_s=10.0))
    assert published.models["chat"].turn_s == pytest.approx(10.0 - 0.8 - 0.1)
    assert published.models["chat"].longest_wait_s == pytest.approx(10.0)
    assert published.keeps_max_wait
    assert published.shortest_turn_s == pytest.approx(0.4 * 0.85 / 0.15)


def test_a_bound_that_switches_do_not_allow_is_said_not_to_hold() -> None:
    published = of(two(2.0), SchedulingRules(max_wait_s=10.0))
    assert not published.keeps_max_wait
    assert published.models["chat"].longest_wait_s == pytest.approx(2.0 * (1 + 1 / 0.15))


def test_the_bound_at_the_edge_holds() -> None:
    edge_s = 1.3 * (1 + 1 / 0.15)
    assert of(two(1.3), SchedulingRules(max_wait_s=edge_s)).keeps_max_wait


@pytest.mark.parametrize(
    ("return_s", "linger_s"), [(None, 0.0), (0.001, 0.4), (0.1, 0.4), (0.101, 0.0), (7.0, 0.0)]
)
def test_a_model_is_kept_for_one_switch_only_for_clients_that_return_soon(
    return_s: float | None, linger_s: float
) -> None:
    costs = two(0.4) | {"chat": Costs(switch_s=0.4, return_s=return_s)}
    assert of(costs).models["chat"].linger_s == pytest.approx(linger_s)


@pytest.mark.parametrize(
    ("switch_s", "own", "others", "threshold"),
    [(0.4, 1.0, 1.0, 1), (8.0, 1.0, 1.0, 8), (8.0, 1.0, 0.25, 6), (8.0, 1.0, 4.0, 1)],
)
def test_an_empty_model_is_left_at_a_threshold(
    switch_s: float, own: float, others: float, threshold: int
) -> None:
    """At once where switches are short, or where the others are asked for four times as often."""
    costs = {
        "chat": Costs(switch_s=switch_s, arrivals_per_s=own),
        "embed": Costs(switch_s=switch_s, arrivals_per_s=others),
    }
    assert of(costs).models["chat"].threshold == threshold


@given(switch_s=st.floats(1.0, 60.0), others=st.floats(50.0, 500.0), more=st.floats(1.5, 50.0))
def test_the_threshold_is_what_has_come_when_least_is_waited_in_all(
    switch_s: float, others: float, more: float
) -> None:
    """So many come that rounding does not count: longer and shorter holding both cost more."""

    def waited_per_s(kept_s: float) -> float:
        cycle_s = 2 * switch_s + kept_s
        return others * (more * (2 * switch_s) ** 2 + cycle_s**2) / (2 * cycle_s)

    costs = {
        "chat": Costs(switch_s=switch_s, arrivals_per_s=more * others),
        "embed": Costs(switch_s=switch_s, arrivals_per_s=others),
    }
    kept_s = of(costs).models["chat"].threshold / others - switch_s
    assert waited_per_s(kept_s) < waited_per_s(1.1 * kept_s + 0.1 * switch_s)
    assert waited_per_s(kept_s) < waited_per_s(0.9 * kept_s - 0.1 * switch_s)


def test_load_is_the_sum_of_what_each_model_needs() -> None:
    costs = {
        "chat": Costs(switch_s=1.0, service_s=0.5, arrivals_per_s=1.0),
        "embed": Costs(switch_s=1.0, service_s=0.05, arrivals_per_s=2.0),
    }
    assert of(costs).load == pytest.approx(0.6)


def test_no_models_no_bounds() -> None:
    assert of({}).models == {}
