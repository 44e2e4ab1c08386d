"""The scheduler: lets waiters in, and begins the switch that the policy wants, if none runs.

While somebody waits for a model that is not live, the policy is asked after each event, and at the
moment that it names. The scheduler changes nothing that a hand has set a moment ago, and tries
nothing that has just failed; a model that died is brought back by its recovery.
"""

from supervisor.core.machine.contentions import Contention, contentions, fits_beside, view_of
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import SwitchRequested
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import SCHEDULER
from supervisor.core.machine.switch_requests import begin_pending, begin_switch
from supervisor.core.machine.values import Target
from supervisor.core.machine.waiting import let_in, settle_waiters
from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import Decision

SHORTEST_WAIT_S = 0.001
"""A policy is not asked again earlier than after so many seconds, whatever it says."""


def go_on(draft: Draft) -> None:
    """Do what is possible now for those who wait: grant, begin a switch, or set the alarm."""
    wake_at = None
    if draft.snapshot.switch is None and draft.snapshot.scheduling.pending is not None:
        begin_pending(draft)
        if draft.snapshot.switch is None:  # nothing had to be done, or could be
            settle_waiters(draft)
    if draft.snapshot.requests.lines and not draft.snapshot.is_closing:
        let_in(draft)
        if draft.snapshot.switch is None:
            wake_at = _decide(draft)
    if wake_at != draft.snapshot.scheduling.wake_at:
        draft.set_scheduling(wake_at=wake_at)


def _decide(draft: Draft) -> float | None:
    """Begin the switch that is due, or return when one may be."""
    moments: list[float] = []
    for contention in contentions(draft.snapshot, draft.at):
        if contention.joined_at is not None:
            moments.append(contention.joined_at)
        if not contention.targets:
            continue
        decision = _decision(draft.snapshot, contention, draft.at)
        draft.set_scheduling(decision=decision)
        target = next((t for t in contention.targets if t.model == decision.model), None)
        if target is not None:
            _begin(draft, target, decision)
            return None
        if decision.wake_at is not None:
            moments.append(decision.wake_at)
    return max(min(moments), draft.at + SHORTEST_WAIT_S) if moments else None


def _decision(snapshot: Snapshot, contention: Contention, at: float) -> Decision:
    for target in contention.targets:
        if fits_beside(snapshot, target):
            reason = f"switching to {target.model}: it fits beside what is live"
            return Decision(model=target.model, reason=reason)
    return POLICIES[snapshot.rules.scheduling.policy](view_of(snapshot, contention, at))


def _begin(draft: Draft, target: Target, decision: Decision) -> None:
    scheduling = draft.snapshot.scheduling
    number = scheduling.begun + 1
    draft.set_scheduling(begun=number)
    wanted = SwitchRequested(
        at=draft.at,
        switch_id=f"{scheduling.run}-t{number}",
        target=target,
        requested_by=SCHEDULER,
        drain_policy=draft.snapshot.rules.scheduler_drains,
        reason=decision.reason,
    )
    begin_switch(draft, wanted)
