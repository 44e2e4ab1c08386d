"""Policies of the literature, to set beside the product's own.

Exhaustive: stay until nobody is left. Gated: serve those who were there on arrival. Sticky: linger
at an empty queue for as long as a switch takes. None of them knows a bound but `bounded`.
"""

from collections.abc import Callable, Mapping
from functools import partial

from supervisor.core.scheduling.values import Decision, Policy, Queue, View

Rule = Callable[[View], bool]
"""Whether the resident has had its visit."""


def own_queue(view: View) -> Queue | None:
    """Return the queue of those who wait for the resident."""
    assert view.stay
    return next((queue for queue in view.queues if queue.model == view.stay.model), None)


def is_exhausted(view: View) -> bool:
    """Whether nobody is left to be served."""
    assert view.stay
    return not view.stay.in_flight and own_queue(view) is None


def is_gate_closed(view: View) -> bool:
    """Whether all who waited when the visit began have been admitted."""
    assert view.stay
    queue = own_queue(view)
    return queue is None or queue.oldest_at is None or queue.oldest_at > view.stay.since


def leave_when(is_over: Rule, view: View) -> Decision:
    """Go to whoever has waited longest elsewhere once the visit is over; else stay."""
    head = longest_waiting_elsewhere(view)
    return Decision(model=head.model if head and is_over(view) else None)


def move_on_when(is_over: Rule, view: View) -> Decision:
    """Go on to the next model once the visit is over, whether anybody waits there or not.

    So do the servers of polling theory, for which the pseudo-conservation law holds.
    """
    assert view.stay
    if not is_over(view):
        return Decision()
    models = list(view.costs)
    return Decision(model=models[(models.index(view.stay.model) + 1) % len(models)])


def longest_waiting_elsewhere(view: View) -> Queue | None:
    """Return the queue, other than the resident's own, whose head has waited longest."""
    assert view.stay
    others = [queue for queue in view.queues if queue.model != view.stay.model]
    return min(others, key=lambda queue: queue.oldest_at or 0.0, default=None)


def sticky(view: View) -> Decision:
    """Serve exhaustively, and linger at the empty queue for the time of one switch."""
    assert view.stay
    decision = exhaustive(view)
    if decision.model is None or view.stay.empty_since is None:
        return decision
    leave_at = view.stay.empty_since + view.costs[decision.model].switch_s
    return decision if view.at >= leave_at else Decision(wake_at=leave_at)


def bounded(view: View, *, wait_s: float = 10.0) -> Decision:
    """Linger as the sticky one does, but give way after one request to a head that is overdue.

    The trap: with a backlog on both sides, both heads are always overdue. Without that one request
    nobody would be served at all.
    """
    assert view.stay
    head = longest_waiting_elsewhere(view)
    if head is None or head.oldest_at is None:
        return Decision()
    overdue_at = head.oldest_at + wait_s
    if view.at >= overdue_at:
        return Decision(model=head.model if view.stay.granted or not own_queue(view) else None)
    decision = sticky(view)
    if decision.model is not None:
        return decision
    wake_at = overdue_at if decision.wake_at is None else min(overdue_at, decision.wake_at)
    return Decision(wake_at=wake_at)


exhaustive: Policy = partial(leave_when, is_exhausted)
gated: Policy = partial(leave_when, is_gate_closed)
cyclic_exhaustive: Policy = partial(move_on_when, is_exhausted)
cyclic_gated: Policy = partial(move_on_when, is_gate_closed)

DISCIPLINES: Mapping[str, Policy] = {
    "gated": gated,
    "exhaustive": exhaustive,
    "sticky": sticky,
    "bounded": bounded,
}
