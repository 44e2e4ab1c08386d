"""Turns: whoever has work gets the device in turn, for so long that switching costs at most f.

While others wait, a resident keeps the device

- for its turn: Q, so that switches take at most f of the time, or longer (T) where it began with a
  queue that Q does not serve; and
- on, until another head would otherwise wait longer than W; but
- not beyond its turn where the index says that more is gained by going, nor beyond Q where only
  batch work holds the device and an interactive head waits; and
- not beyond its last request, but for a linger (clients that return soon) or a short wait until
  enough others (θ) are there to be worth two switches.

Every head is then served within W, counted from when it contends (`heads.py`), and what the turns
before it were lengthened by. Let all turns be Q first, j be resident and leave at t. It does so at
the end of its turn, or before the last moment L at which every head i in the order is still served
in time: L + D_j + Σ s + Σ (Q + D) ≤ since_i + W_i, with the sums over the heads up to i and before
i. By induction L is never earlier than the end of the turn: the next stay begins at t + D_j + s_1,
so that what is left of each sum is the same inequality without its first terms, and a head that
joins is the last in the order, for which W = R + Σ (Q + D) is enough by its definition. Where a
turn takes T in place of Q, all that follows is later by T - Q at most.
"""

import math

from msgspec import Struct

from supervisor.core.scheduling.bounds import threshold
from supervisor.core.scheduling.heads import Contest, Head, contest_of
from supervisor.core.scheduling.sentences import seconds, stays, switching
from supervisor.core.scheduling.values import Decision, Stay, View


class _Leave(Struct, frozen=True):
    """When the resident is left, why (`switching to minilm: its turn`), and why not before."""

    at: float
    why: str
    until: str


def turns(view: View) -> Decision:
    """Who gets the device next. O(K log K) in the models that have work."""
    stay = view.stay
    contest = contest_of(view, stay)
    if stay is None:
        return _go(view, contest, "nothing is live") if contest.heads else _nobody(view, contest)
    if not contest.heads:
        return _nobody(view, contest)
    if contest.own.waiting and not stay.granted:
        return Decision(reason=stays(view, contest, "it has served nobody yet"))
    leave = _turn_end(view, stay, contest)
    if not stay.in_flight and not contest.own.waiting:
        leave = min(leave, _idle_end(view, stay, contest), key=_at)
    if leave.at <= view.at:
        return _go(view, contest, leave.why)
    wake_at = min(leave.at, contest.next_at)
    reason = stays(view, contest, f"{leave.until} {seconds(leave.at - view.at)}")
    linger_s = contest.linger_s if stay.in_flight else 0.0
    return Decision(wake_at=wake_at, linger_s=linger_s, reason=reason)


def _at(leave: _Leave) -> float:
    return leave.at


def _go(view: View, contest: Contest, why: str) -> Decision:
    return Decision(model=contest.heads[0].queue.model, reason=switching(view, contest, why))


def _nobody(view: View, contest: Contest) -> Decision:
    """Nobody contends: look again when batch work joins, or the resident is kept no longer."""
    wake_at = contest.next_at
    if wake_at == math.inf:
        return Decision(reason=stays(view, contest, "nobody waits for another model"))
    if contest.kept_until > view.at:
        wake_at = min(wake_at, contest.kept_until)
    return Decision(wake_at=wake_at, reason=stays(view, contest, "only batch work waits"))


def _turn_end(view: View, stay: Stay, contest: Contest) -> _Leave:
    """When a resident that works is left."""
    cycle, first = contest.cycle, contest.heads[0]
    shortest_at = stay.since + cycle.shortest_turn_s
    if _is_only_batch(stay, contest) and first.queue.interactive:
        return _Leave(shortest_at, f"{stay.model} has only batch work", "its shortest turn ends in")
    turn_s = cycle.turn_of(view.costs[stay.model], stay.queued)
    if _pays(view, stay, contest, first):
        return _Leave(stay.since + turn_s, "it serves more in the time", "its turn ends in")
    end_at = max(stay.since + max(turn_s, cycle.turn_s), _latest(view, stay, contest))
    return _Leave(end_at, "its turn", "its turn ends in")


def _is_only_batch(stay: Stay, contest: Contest) -> bool:
    return bool(stay.in_flight) and not (stay.interactive_in_flight or contest.own.interactive)


def _latest(view: View, stay: Stay, contest: Contest) -> float:
    """L: the last moment to leave at which every head is served in time, all turns being Q."""
    latest, ahead_s = math.inf, view.costs[stay.model].drain_s
    for head in contest.heads:
        known = view.costs[head.queue.model]
        ahead_s += known.switch_s
        wait_s = contest.cycle.due_s(known)
        latest = min(latest, head.since + wait_s - ahead_s)
        ahead_s += contest.cycle.turn_s + known.drain_s
    return latest


def _pays(view: View, stay: Stay, contest: Contest, first: Head) -> bool:
    """Whether a visit to the first head serves more requests a second, both switches included.

    The index of Duenyas and Van Oyen (1995) for queues with set-up times: n requests are served in
    a visit of V = n b, n = (x + λ s)/(1 - ρ), and n/(2s + V) is compared with 1/b of the resident.
    Batch texts, however many, do not count against interactive work.
    """
    if not (first.queue.interactive or _is_only_batch(stay, contest)):
        return False
    own, other = view.costs[stay.model], view.costs[first.queue.model]
    load = other.arrivals_per_s * other.service_s
    if load >= 1.0:
        return other.service_s < own.service_s
    waiting = first.queue.interactive or first.queue.batch
    served = (waiting + other.arrivals_per_s * other.switch_s) / (1.0 - load)
    visit_s = own.switch_s + other.switch_s + served * other.service_s
    return served * own.service_s > visit_s


def _idle_end(view: View, stay: Stay, contest: Contest) -> _Leave:
    """When a resident without work is left.

    Few that wait are held until θ are there, at most for one switch in which nothing is done, and
    until they have waited θ switches in all: acting once the delay has cost as much as the act
    is 2-competitive (Dooly, Goldman and Scott, 2001).
    """
    why = f"{stay.model} has nothing to do"
    kept_until = contest.kept_until
    models = [stay.model, *(head.queue.model for head in contest.heads)]
    enough = threshold(contest.cycle, stay.model, models, view.costs)
    waiting = sum(head.queue.waiting for head in contest.heads)
    if waiting >= enough:
        return _Leave(kept_until, why, "its clients return soon, else left in")
    arrived_at_sum = sum(head.queue.arrived_at_sum for head in contest.heads)
    switch_s = contest.cycle.switch_s
    paid_at = (switch_s * enough + arrived_at_sum) / waiting
    held_until = max(kept_until, min(contest.idle_since + switch_s, paid_at))
    return _Leave(held_until, why, f"{enough} are worth a switch, {waiting} wait: left in")
