"""How long turns are, how long a head waits at most, and when an empty model is left.

The formulas are those of polling systems. K models contend; a switch to model i takes s_i, its
drain at most D_i, and f is the largest share of time that switches may take:

    R     = Σ s_i                       the switches of one cycle; s = R/K is one switch
    Q     = R (1-f)/(f K)               the shortest turn: a cycle of K turns serves 1-f of its time
    W_i   = R + Σ over j≠i (Q + D_j)    how long the head of queue i waits while turns are shortest
    T_j   = x b_j/(1 - ρ_j)             the turn of a long queue: x have waited when it began
    θ_i   = max(1, round(s (2 √(λ_i λ') - λ')))
                                        so many must wait elsewhere for an empty model to be left;
                                        λ' is the rate of all others together

With two models W = s (1 + 1/f) + D. `max_wait_s` lengthens the turns as far as every W_i allows.
All of it in seconds; f lies between 0 and 1, both left out.

Turns of Q alone carry no load above 1-f, and less where one model has most of the work: the others
are done before their turns are over, and the cycle gets shorter than R/f. T lengthens the turn of a
queue that Q does not serve, so that it is empty at its end (x requests, and those that come
meanwhile, λ T), up to 4 Q: then any load below about 1-f/4 is carried. Whose clients ask again
because they were answered needs no such turn: there are no more of them the longer it waits.

θ is where the least is waited in all if work comes in a steady flow and service takes no time. Let
the model be kept for h, left, and come back to after 2s; a cycle lasts x = 2s + h. Its own requests
wait λ (2s)²/2 in a cycle, the others' λ' x²/2: each second 2 s² λ/x + λ' x/2, which is least at
x = 2s √(λ/λ'). Then λ' (s + h) = s (2 √(λλ') - λ') wait for the others when it is left. Where λ is
no larger than λ' that is no more than came in the switch to it, so that it is left at once: keeping
an empty model pays only for one that is asked for much more often. With service times, in the
simulation, leaving at once is up to 1.6 times as long waited for, and never less by more than 4 %.
"""

import math
from collections.abc import Collection, Mapping

from msgspec import Struct

from supervisor.core.scheduling.values import Costs, SchedulingRules, View

RETURNS_SOON = 0.25
"""Clients return soon if it takes them no more than this part of a switch."""

LONGEST_TURN = 4.0
"""The turn of a long queue takes so many shortest turns at most."""


class Cycle(Struct, frozen=True, kw_only=True):
    """One round of the models that contend: R, one switch (s), ΣD, Q, and the turn that is given.

    `turn_s` is longer than `shortest_turn_s` where `max_wait_s` leaves time for it. The turns of
    `open_models`, whose clients do not return soon, may take up to `longest_turn_s`.
    """

    models: int
    switches_s: float
    switch_s: float
    drains_s: float
    shortest_turn_s: float
    turn_s: float
    longest_turn_s: float
    open_models: int

    def due_s(self, known: Costs) -> float:
        """W: the wait of a model's head after which it is served, if no turn is lengthened."""
        return self.switches_s + (self.models - 1) * self.turn_s + self.drains_s - known.drain_s

    def longest_wait_s(self, known: Costs) -> float:
        """Return the longest wait of a model's head: W, where all other queues may be long."""
        others = self.open_models - (not returns_soon(self.switch_s, known))
        return self.due_s(known) + others * (self.longest_turn_s - self.turn_s)

    def turn_of(self, known: Costs, queued: int) -> float:
        """Return how long a model's turn is at least that began with so many in its queue."""
        if not queued or returns_soon(self.switch_s, known):
            return self.shortest_turn_s
        load = known.arrivals_per_s * known.service_s
        needed_s = queued * known.service_s / (1.0 - load) if load < 1.0 else math.inf
        return min(max(self.shortest_turn_s, needed_s), self.longest_turn_s)

    def longest_turn_of(self, known: Costs) -> float:
        """Return how long a model's turn is however long its queue."""
        return self.turn_s if returns_soon(self.switch_s, known) else self.longest_turn_s


class ModelBounds(Struct, frozen=True, kw_only=True):
    """What holds for one model while all others have work, too.

    `load` is ρ = λ b, `threshold` θ. `turn_s`: how long it is kept while it and others have work,
    `longest_turn_s` with a long queue. `linger_s`: how long with nothing to do, because its clients
    return soon.
    """

    switch_s: float
    drain_s: float
    load: float
    turn_s: float
    longest_turn_s: float
    longest_wait_s: float
    threshold: int
    linger_s: float


class Bounds(Struct, frozen=True, kw_only=True):
    """What holds for the device. `keeps_max_wait`: `max_wait_s` is unset, or can be kept."""

    switching_share: float
    load: float
    shortest_turn_s: float
    keeps_max_wait: bool
    models: dict[str, ModelBounds]


def bounds(view: View) -> Bounds:
    """What holds while all models of `view.costs` have work."""
    costs, rules = view.costs, view.rules
    cycle = cycle_of(costs, costs, rules)
    models = {
        model: ModelBounds(
            switch_s=known.switch_s,
            drain_s=known.drain_s,
            load=known.arrivals_per_s * known.service_s,
            turn_s=cycle.turn_s,
            longest_turn_s=cycle.longest_turn_of(known),
            longest_wait_s=cycle.longest_wait_s(known),
            threshold=threshold(cycle, model, costs, costs),
            linger_s=linger_s(cycle, known),
        )
        for model, known in costs.items()
    }
    longest_s = max((each.longest_wait_s for each in models.values()), default=0.0)
    return Bounds(
        switching_share=rules.switching_share,
        load=math.fsum(each.load for each in models.values()),
        shortest_turn_s=cycle.shortest_turn_s,
        keeps_max_wait=rules.max_wait_s is None or is_within(longest_s, rules.max_wait_s),
        models=models,
    )


def cycle_of(models: Collection[str], costs: Mapping[str, Costs], rules: SchedulingRules) -> Cycle:
    """The cycle of these models."""
    count, known = len(models), [costs[model] for model in models]
    switches_s = sum(each.switch_s for each in known)
    drains_s = sum(each.drain_s for each in known)
    switch_s = switches_s / max(count, 1)
    shortest_turn_s = switch_s * (1.0 - rules.switching_share) / rules.switching_share
    turn_s, longest_turn_s = shortest_turn_s, LONGEST_TURN * shortest_turn_s
    if count > 1:
        others_s = switches_s + drains_s - min(each.drain_s for each in known)
        held_s = rules.hold_timeout_s - max(each.switch_s for each in known)
        longest_turn_s = min(longest_turn_s, (held_s - others_s) / (count - 1))
        if rules.max_wait_s is not None:
            turn_s = max(turn_s, (rules.max_wait_s - others_s) / (count - 1))
            longest_turn_s = turn_s
    return Cycle(
        models=count,
        switches_s=switches_s,
        switch_s=switch_s,
        drains_s=drains_s,
        shortest_turn_s=shortest_turn_s,
        turn_s=turn_s,
        longest_turn_s=max(turn_s, longest_turn_s),
        open_models=sum(not returns_soon(switch_s, each) for each in known),
    )


def threshold(cycle: Cycle, model: str, models: Collection[str], costs: Mapping[str, Costs]) -> int:
    """θ: an empty model is left once so many wait for the others."""
    own = costs[model].arrivals_per_s
    others = sum(costs[other].arrivals_per_s for other in models if other != model)
    return max(1, round(cycle.switch_s * (2.0 * math.sqrt(own * others) - others)))


def linger_s(cycle: Cycle, known: Costs) -> float:
    """How long a model without work is kept for clients that return soon; 0 where they do not.

    For one switch, so that to wait in vain costs half of the two that it saves. Not for the 90th
    percentile of their gaps: one in ten is later than that, and would end in two switches.
    """
    return cycle.switch_s if returns_soon(cycle.switch_s, known) else 0.0


def returns_soon(switch_s: float, known: Costs) -> bool:
    """Whether clients ask again because they were answered."""
    return known.return_s is not None and known.return_s <= RETURNS_SOON * switch_s


def is_within(value_s: float, limit_s: float) -> bool:
    """Whether a time keeps a limit, but for what rounding makes of sums."""
    return value_s <= limit_s or math.isclose(value_s, limit_s, rel_tol=1e-9)
