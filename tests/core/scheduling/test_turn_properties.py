"""What `turns` promises, for any traffic: each property with its statement and its proof.

Names: s_i a switch to i, R = Σ s_i, D_i the longest drain of i, f the share that switching may
take, Q the shortest turn, W_i = R + Σ over j≠i (Q + D_j). The head of a queue *contends* from its
arrival, or from the end of its model's last stay where that was later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lab.simulate.simulation import Outcome
from lab.simulate.workload import Client, loop
from msgspec.structs import replace

from supervisor.core.scheduling.bounds import Cycle, cycle_of
from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import (
    Costs,
    Policy,
    Priority,
    Queue,
    SchedulingRules,
    Stay,
    View,
)
from tests.core.scheduling.watched import Watched, watch

ROUNDING_S = 1e-6

ALWAYS_AT_ONCE = st.just(0.0)

switches_s = st.floats(0.05, 8.0)
shares = st.floats(0.05, 0.5)


@dataclass(kw_only=True)
class Case:
    """Models with what is known of them, rules, and who comes."""

    costs: dict[str, Costs]
    rules: SchedulingRules
    clients: Sequence[Client]
    slots: int

    def run(self, until: float = inf) -> tuple[Watched, Outcome]:
        return watch(self.costs, self.clients, rules=self.rules, slots=self.slots, until=until)

    def longest_wait_s(self, model: str) -> float:
        """W, with the longest turn of any two models that may contend alone."""
        due_s = self.cycle().due_s(self.costs[model])
        return due_s + (len(self.costs) - 1) * (self.longest_turn_s() - self.cycle().turn_s)

    def cycle(self) -> Cycle:
        return cycle_of(self.costs, self.costs, self.rules)

    def round_s(self) -> float:
        """How long a cycle lasts while all have work."""
        cycle = self.cycle()
        return cycle.switches_s + cycle.drains_s + len(self.costs) * cycle.longest_turn_s

    def longest_turn_s(self) -> float:
        longest = sorted(self.costs, key=lambda model: -self.costs[model].switch_s)[:2]
        cycles = (self.cycle(), cycle_of(longest, self.costs, self.rules))
        return max(cycle.longest_turn_s for cycle in cycles)


@st.composite
def some_costs(draw: st.DrawFn, models: int) -> dict[str, Costs]:
    return {
        f"model{number}": Costs(
            switch_s=draw(switches_s),
            drain_s=draw(st.floats(0.01, 3.0)),
            service_s=draw(st.floats(0.01, 1.0)),
            arrivals_per_s=draw(st.floats(0.0, 5.0)),
            return_s=draw(st.none() | st.floats(0.0, 3.0)),
        )
        for number in range(models)
    }


@st.composite
def cases(draw: st.DrawFn, models: int = 2, *, mixed: bool = False) -> Case:
    """Bursts and lone requests, clients that come back at once, some of little patience."""
    costs = draw(some_costs(models))
    priorities = st.sampled_from(Priority) if mixed else st.just(Priority.INTERACTIVE)
    clients: list[Client] = []
    at = 0.0
    for _ in range(draw(st.integers(1, 25))):
        at += draw(st.sampled_from([0.0, 0.001, 0.1, 1.0, 7.0, 40.0]))
        model = draw(st.sampled_from(sorted(costs)))
        part, patience_s = draw(st.floats(0.1, 1.0)), draw(st.sampled_from([1.0, inf, inf]))
        priority = draw(priorities)
        clients += [
            Client(
                model=model,
                at=at,
                service_s=part * costs[model].drain_s,
                priority=priority,
                patience_s=patience_s,
            )
            for _ in range(draw(st.sampled_from([1, 1, 2, 30])))
        ]
    rules = SchedulingRules(switching_share=draw(shares), batch_ages_s=draw(st.floats(1, 600)))
    return Case(costs=costs, rules=rules, clients=clients, slots=draw(st.integers(1, 4)))


@st.composite
def saturated(
    draw: st.DrawFn, models: int, returns: st.SearchStrategy[float | None] = ALWAYS_AT_ONCE
) -> Case:
    """Every model has more work than it can do, all of the time."""
    costs = {
        f"model{number}": Costs(
            switch_s=draw(st.floats(0.05, 2.0)),
            drain_s=draw(st.floats(0.3, 3.0)),
            service_s=draw(st.floats(0.01, 1.0)),
            arrivals_per_s=draw(st.floats(0.0, 5.0)),
            return_s=draw(returns),
        )
        for number in range(models)
    }
    clients = [loop(model, 0.0) for model in costs for _ in range(9)]
    max_wait_s = draw(st.none() | st.floats(1.0, 60.0))
    share = draw(st.floats(0.1, 0.5))
    rules = SchedulingRules(switching_share=share, max_wait_s=max_wait_s)
    return Case(costs=costs, rules=rules, clients=clients, slots=draw(st.integers(1, 4)))


@pytest.mark.parametrize("models", [2, 3, 5])
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_no_head_waits_longer_than_its_bound(models: int, data: st.DataObject) -> None:
    """A head waits at most W with the longest turns of the sets that had work meanwhile.

    Let head i contend from a. Heads are served in the order in which they contend, and a model
    that had the device contends from the end of its stay: so until i is served, each other model
    begins at most one stay (or is in one at a), and i waits for R in switches at most, and for
    each j≠i for a drain of at most D_j. A stay is left at the end of its shortest turn, or later at
    L, the last moment at which each head in the order is still in time if all turns before it take
    Q. In the first case it adds Q at most; in the second the whole is at most W by the definition
    of L. Where the set of models that have work changes, Q is at most the longest of their turns;
    where a long queue lengthens a turn, all that follows is later by that, and T is at most 4 Q.
    """
    case = data.draw(cases(models))
    watched, _ = case.run()
    for model, _, wait_s in watched.head_waits_s:
        assert wait_s <= case.longest_wait_s(model) + ROUNDING_S


@pytest.mark.parametrize("models", [2, 3, 5])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_under_saturation_heads_wait_w_exactly_as_published(
    models: int, data: st.DataObject
) -> None:
    """While all models have work, W_i itself holds (also with `max_wait_s`): the set is constant,
    so the longest turn above is the turn of the cycle; and no turn of loops is lengthened.
    """
    case = data.draw(saturated(models, ALWAYS_AT_ONCE | st.none()))
    cycle = case.cycle()
    watched, _ = case.run(4 * case.round_s())
    assert len(watched.head_waits_s) > 2 * models
    for model, _, wait_s in watched.head_waits_s:
        assert wait_s <= cycle.longest_wait_s(case.costs[model]) + ROUNDING_S


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_an_interactive_head_keeps_its_bound_beside_any_batch_work(data: st.DataObject) -> None:
    """Batch work adds at most its one turn to an interactive head's wait, a batch head its age.

    A batch head joins the order at the time from which it counts, which is never before its
    arrival, so that the proof above holds for all heads that contend. It does so after
    `batch_ages_s` at the latest.
    """
    case = data.draw(cases(data.draw(st.sampled_from([2, 3])), mixed=True))
    watched, _ = case.run()
    for model, priority, wait_s in watched.head_waits_s:
        aged_s = case.rules.batch_ages_s if priority is Priority.BATCH else 0.0
        assert wait_s <= aged_s + case.longest_wait_s(model) + ROUNDING_S


@pytest.mark.parametrize("models", [2, 3, 5])
@given(data=st.data())
@settings(deadline=None, max_examples=20)
def test_under_saturation_switches_take_their_share_at_most(
    models: int, data: st.DataObject
) -> None:
    """While all K models have work, at least 1-f of the time of whole cycles serves.

    No stay ends before its shortest turn, Q = R (1-f)/(f K): only the end of the turn and what may
    not come before Q end a stay that has work. The order makes the stays a cycle, in which R is
    switched and at least K Q is served: K Q/(K Q + R) = 1-f.
    """
    case = data.draw(saturated(models, ALWAYS_AT_ONCE | st.none()))
    watched, _ = case.run(4 * case.round_s())
    assert len(watched.stays) > 2 * models
    for first in range(len(watched.stays) - models + 1):
        round_ = watched.stays[first : first + models]
        assert {stay.model for stay in round_} == set(case.costs)
        serving_s = sum(stay.until - stay.since for stay in round_)
        least_s = (1 - case.rules.switching_share) * (serving_s + case.cycle().switches_s)
        assert serving_s >= least_s - ROUNDING_S


@given(case=cases(3, mixed=True))
@settings(deadline=None, max_examples=40)
def test_every_switch_has_somebody_who_waits_for_it(case: Case) -> None:
    """Targets are heads of queues, and a queue has a head only while somebody waits in it."""
    watched, _ = case.run()
    assert all(waiting > 0 for waiting in watched.switched_for)


@given(case=cases(3, mixed=True))
@settings(deadline=None, max_examples=40)
def test_every_stay_serves_unless_all_who_waited_have_left(case: Case) -> None:
    """A stay that has granted nothing and has somebody in its queue is never left: that is asked
    before any bound. One with nobody in its queue serves nobody by staying.
    """
    watched, _ = case.run()
    assert all(stay.granted or not stay.still_waiting for stay in watched.stays)


@given(case=cases(3, mixed=True))
@settings(deadline=None, max_examples=40)
def test_the_device_idles_beside_a_request_for_one_switch_at_most(case: Case) -> None:
    """A live model without work is kept for a linger, at most s after it became empty, or until
    enough wait: at most s after it is empty and the oldest waits. s is the mean of the switches of
    those that contend, and so at most the mean of the two longest.
    """
    watched, _ = case.run()
    longest = sorted((known.switch_s for known in case.costs.values()), reverse=True)
    assert watched.longest_idle_s <= sum(longest[:2]) / 2 + ROUNDING_S


@given(case=cases(5, mixed=True))
@settings(deadline=None, max_examples=40)
def test_all_who_stay_are_served_and_switches_are_fewer_than_requests(case: Case) -> None:
    """No livelock: a stay serves, or its clients have left, so that each switch costs a request;
    and the run ends, as every decision to stay has a time at which it ends.
    """
    watched, outcome = case.run()
    assert outcome.oldest_unserved_s == 0
    assert len(watched.switched_for) <= len(case.clients)


@given(
    switch_s=switches_s,
    rates=st.tuples(st.floats(0.1, 20), st.floats(0.1, 20)),
    empty_s=st.floats(0.0, 5.0),
)
@settings(deadline=None)
def test_a_lone_request_is_not_held_for_long(
    switch_s: float, rates: tuple[float, float], empty_s: float
) -> None:
    """While the resident is empty, the switch to a lone request comes within min(W, s θ).

    It is held for one switch at most, and s ≤ s θ, s ≤ W.
    """
    costs = {
        "a": Costs(switch_s=switch_s, drain_s=0.1, service_s=0.1, arrivals_per_s=rates[0]),
        "b": Costs(switch_s=switch_s, drain_s=0.1, service_s=0.1, arrivals_per_s=rates[1]),
    }
    lone_at = 0.1 + empty_s
    watched, _ = watch(costs, [Client(model="a"), Client(model="b", at=lone_at)])
    assert watched.stays[0].until - lone_at <= switch_s + ROUNDING_S


@st.composite
def views(draw: st.DrawFn) -> View:
    """A resident that works, with others waiting or not."""
    costs = draw(some_costs(3))
    waiting = st.integers(0, 40)
    at = 100.0
    queues = []
    for model in sorted(costs)[draw(st.integers(0, 1)) :]:
        interactive, batch = draw(waiting), draw(waiting)
        oldest_at = draw(st.floats(0.0, at))
        if interactive or batch:
            queues.append(
                Queue(
                    model=model,
                    interactive=interactive,
                    batch=batch,
                    oldest_at=oldest_at,
                    oldest_interactive_at=oldest_at if interactive else None,
                    arrived_at_sum=(interactive + batch) * oldest_at,
                    left_at=draw(st.none() | st.floats(0.0, at)),
                )
            )
    in_flight = draw(st.integers(1, 5))
    stay = Stay(
        model="model0",
        since=draw(st.floats(0.0, at)),
        granted=in_flight + draw(st.integers(0, 5)),
        in_flight=in_flight,
        interactive_in_flight=draw(st.integers(0, in_flight)),
    )
    return View(at=at, stay=stay, queues=tuple(queues), costs=costs)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@given(view=views(), later=st.floats(0.0, 1.0), idle=st.floats(0.0, 0.999), data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_decision_to_stay_stands_while_only_the_residents_own_work_moves(
    policy: Policy, view: View, later: float, idle: float, data: st.DataObject
) -> None:
    """So the machine asks no policy again for it, which it would do for most requests.

    With work of the same urgency, `turns` leaves at a moment made of the stay's begin, of the heads
    that contend, and of costs: how much work there is, is no part of it. Without work it leaves at
    that moment, or at the end of the linger. `fifo` looks at heads alone.
    """
    assert view.stay is not None
    decision = policy(view)
    assume(decision.model is None)
    until = 1e3 if decision.wake_at is None else decision.wake_at
    at = view.at + later * (until - view.at) * 0.999
    in_flight = data.draw(st.integers(1, 9))
    urgent = data.draw(st.integers(1, in_flight)) if view.stay.interactive_in_flight else 0
    granted = view.stay.granted + in_flight
    working = replace(view.stay, granted=granted, in_flight=in_flight, interactive_in_flight=urgent)
    assert policy(replace(view, at=at, stay=working)).model is None
    if urgent and decision.linger_s:
        empty_since = max(view.at, at - idle * decision.linger_s)
        empty = replace(working, in_flight=0, interactive_in_flight=0, empty_since=empty_since)
        assert policy(replace(view, at=at, stay=empty)).model is None
