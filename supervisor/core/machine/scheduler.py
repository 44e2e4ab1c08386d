"""The scheduler: lets waiters in, and begins the switch that the policy wants, if none runs.

While somebody waits for a model that is not live, the policy is asked after each event, unless its
last decision stands, and at the moment that it names. The scheduler changes nothing that a hand has
set a moment ago, and tries nothing that has just failed; a model that died is brought back by its
recovery.
"""

from supervisor.core.machine import clock
from supervisor.core.machine.contentions import Contention, at_once, contentions, view_of
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import Event, RequestArrived, RequestEnded, SwitchRequested
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import SCHEDULER
from supervisor.core.machine.switch_requests import (
    begin_due_recovery,
    begin_pending,
    begin_switch,
    own_switch_id,
)
from supervisor.core.machine.values import Backend, BackendState, Target
from supervisor.core.machine.waiting import let_in, settle_waiters
from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import Decision

SHORTEST_WAIT_S = 0.001
"""A policy is not asked again earlier than after so many seconds, whatever it says."""


def go_on(draft: Draft) -> None:
    """Do what is possible now for those who wait: grant, begin a switch, or set the alarm."""
    wake_at, linger_s = None, 0.0
    if draft.snapshot.switch is None and draft.snapshot.scheduling.pending is not None:
        begin_pending(draft)
        if draft.snapshot.switch is None:  # nothing had to be done, or could be
            settle_waiters(draft)
            begin_due_recovery(draft)
    if draft.snapshot.switch is None:
        clock.begin_due(draft)
    if draft.snapshot.requests.lines and not draft.snapshot.is_closing:
        let_in(draft)
        if draft.snapshot.switch is None:
            wake_at, linger_s = _decide(draft)
    scheduling = draft.snapshot.scheduling
    if (wake_at, linger_s) != (scheduling.wake_at, scheduling.linger_s):
        draft.set_scheduling(wake_at=wake_at, linger_s=linger_s)


def stands(before: Snapshot, after: Snapshot, event: Event) -> bool:
    """Whether nothing is to be done, as all that the event has moved is the lease of a live model.

    That is so for most requests while somebody waits for another model. What a decision rests on
    is said at `Decision`; with several live models, it also rests on which of them works.
    """
    scheduling = after.scheduling
    if (
        not isinstance(event, (RequestArrived, RequestEnded))
        or after.requests.lines is not before.requests.lines
        or before.switch is not None
        or after.switch is not None
        or scheduling.pending is not None
        or (scheduling.wake_at is not None and event.at >= scheduling.wake_at)
    ):
        return False
    linger_s = scheduling.linger_s if after.only is not None else 0.0
    moved = [pair for pair in zip(before.backends, after.backends, strict=True) if _differ(*pair)]
    return all(
        now.target.is_twin or _works_on(then, now, linger_s) for then, now in moved
    ) and not any(after.requests.lines_of(now.target.model) for _, now in moved)


def _differ(then: Backend, now: Backend) -> bool:
    return then is not now


def _works_on(then: Backend, now: Backend, linger_s: float) -> bool:
    """Whether a live model works as before, or it is too early to think of it that it does not."""
    if now.state is not BackendState.READY or not then.work.granted:
        return False
    was_urgent, is_urgent = then.work.interactive_in_flight > 0, now.work.interactive_in_flight > 0
    if then.in_flight and now.in_flight:
        return was_urgent == is_urgent
    return linger_s > 0.0 and (was_urgent or is_urgent)


def _decide(draft: Draft) -> tuple[float | None, float]:
    """Begin the switch that is due, or return when one may be, and the linger of the resident."""
    moments: list[float] = []
    linger_s = 0.0
    for contention in contentions(draft.snapshot, draft.at):
        if contention.joined_at is not None:
            moments.append(contention.joined_at)
        if not contention.targets:
            continue
        beside = _beside(contention)
        decision = beside or _decision(draft.snapshot, contention, draft.at)
        draft.set_scheduling(decision=decision)
        target = next((t for t in contention.targets if t.model == decision.model), None)
        if target is not None:
            _begin(draft, target, decision, gives_way=beside is not None)
            return None, 0.0
        if decision.wake_at is not None:
            moments.append(decision.wake_at)
        linger_s = max(linger_s, decision.linger_s)
    wake_at = max(min(moments), draft.at + SHORTEST_WAIT_S) if moments else None
    return wake_at, linger_s


def _decision(snapshot: Snapshot, contention: Contention, at: float) -> Decision:
    return POLICIES[snapshot.rules.scheduling.policy](view_of(snapshot, contention, at))


def _beside(contention: Contention) -> Decision | None:
    """Return the decision for the first to which nobody has to give way, if there is one.

    Where nothing is live at all, the policy says who comes first.
    """
    for place in () if contention.is_vacant else contention.places:
        if (why := at_once(place)) is not None:
            model = place.target.model
            return Decision(model=model, reason=f"switching to {model}: {why}")
    return None


def _begin(draft: Draft, target: Target, decision: Decision, *, gives_way: bool) -> None:
    wanted = SwitchRequested(
        at=draft.at,
        switch_id=own_switch_id(draft),
        target=target,
        requested_by=SCHEDULER,
        drain_policy=draft.snapshot.rules.scheduler_drains,
        reason=decision.reason,
    )
    begin_switch(draft, wanted, gives_way=gives_way)
