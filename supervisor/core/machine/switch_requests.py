"""What becomes of the wish for a switch: one begins, joins the running one, or is refused."""

from msgspec.structs import replace

from supervisor.core.machine.commands import CheckTarget, FinishSwitch, JoinSwitch, RefuseSwitch
from supervisor.core.machine.confirming import expect_use_of_the_dead
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import SwitchRequested
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.recovery import known_baselines
from supervisor.core.machine.reports import report_of, switch_is_running
from supervisor.core.machine.requests import SHUTTING_DOWN, backend_for, settle_waiters
from supervisor.core.machine.switch import Order, Switch
from supervisor.core.machine.switching import leave
from supervisor.core.machine.values import Outcome, Phase, Target


def request_switch(draft: Draft, event: SwitchRequested) -> None:
    """Begin the switch, join the running one, answer that nothing changes, or refuse."""
    running = draft.snapshot.switch
    if draft.snapshot.is_closing:
        draft.order(RefuseSwitch(switch_id=event.switch_id, refusal=SHUTTING_DOWN))
    elif running is not None and _wants_same(running, event):
        draft.order(JoinSwitch(switch_id=event.switch_id, running_id=running.switch_id))
    elif running is not None:
        draft.order(RefuseSwitch(switch_id=event.switch_id, refusal=switch_is_running(running)))
    else:
        begin_switch(draft, event)


def begin_switch(draft: Draft, event: SwitchRequested, *, is_recovery: bool = False) -> None:
    """Begin a switch while none runs; a recovery gives way to whatever is live."""
    order = Order(
        switch_id=event.switch_id,
        target=event.target,
        requested_by=event.requested_by,
        started_at=draft.at,
        drain_policy=event.drain_policy,
        is_recovery=is_recovery,
    )
    switch = Switch(order=order, phase=Phase.PREFLIGHT, phase_started_at=draft.at)
    if _is_already_so(draft, event):
        if event.target is None:
            draft.set(recoveries=())
            settle_waiters(draft)
        report = report_of(switch, draft.at, refusal=None)
        same = backend_for(draft.snapshot, report.model, report.mode) if report.model else None
        draft.order(
            FinishSwitch(
                report=replace(
                    report, outcome=Outcome.UNCHANGED, epoch=same.epoch if same else None
                )
            )
        )
        return
    draft.set(switch=switch)
    if event.target is None:
        leave(draft, draft.snapshot.backends)
    else:
        expect_use_of_the_dead(draft, _baselines_of_the_dead(draft, event.target, is_recovery))
        draft.order(CheckTarget(switch_id=event.switch_id, target=event.target))


def _baselines_of_the_dead(draft: Draft, target: Target, is_recovery: bool) -> tuple[Baseline, ...]:
    """Return what the target's devices should return to, where a server of it has died.

    Its memory may be held still, so that a reading of now would be no baseline.
    """
    if is_recovery:
        return known_baselines(draft, draft.snapshot.recovery(target.model))
    down = [r for r in draft.snapshot.recoveries if r.target.shared_devices(target)]
    return next((known for r in down if (known := known_baselines(draft, r))), ())


def _is_already_so(draft: Draft, event: SwitchRequested) -> bool:
    if event.target is None:
        return not draft.snapshot.backends
    live = draft.snapshot.ready_backends()
    return any(b.target.is_same(event.target) for b in live)


def _wants_same(running: Switch, event: SwitchRequested) -> bool:
    if running.target is None or event.target is None:
        return running.target is event.target
    return running.target.is_same(event.target)
