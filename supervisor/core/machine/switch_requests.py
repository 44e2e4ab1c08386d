"""What becomes of the wish for a switch: one begins, joins another, waits, or is refused.

A hand's wish is not refused for what the controller does by itself: it waits for the end of that,
and comes before the scheduler's next decision. One waits at most.
"""

from msgspec.structs import replace

from supervisor.core.machine.commands import FinishSwitch, JoinSwitch, RefuseSwitch
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.ending import hold
from supervisor.core.machine.events import RestartRequested, SwitchRequested
from supervisor.core.machine.leaving import drain_deadline, leaving_backends
from supervisor.core.machine.recovery import due_recovery, forget_unloaded, reset_breakers
from supervisor.core.machine.refusals import SHUTTING_DOWN
from supervisor.core.machine.reports import report_of, switch_is_pending, switch_is_running
from supervisor.core.machine.requests import backend_for
from supervisor.core.machine.switch import AUTOMATIC, RESTART, Order, Switch
from supervisor.core.machine.switching import leave, order_check
from supervisor.core.machine.values import Backend, Outcome, Phase, Refusal, Target
from supervisor.core.machine.waiting import settle_waiters


def request_switch(draft: Draft, event: SwitchRequested) -> None:
    """Begin the switch, join the running one, answer that nothing changes, or refuse."""
    running, pending = draft.snapshot.switch, draft.snapshot.scheduling.pending
    is_by_hand = event.requested_by not in AUTOMATIC
    if draft.snapshot.is_closing:
        _refuse(draft, event, SHUTTING_DOWN)
    elif running is None:
        begin_switch(draft, event)
    elif _wants_same(running.order, event):
        if is_by_hand and not running.order.is_by_hand:
            _take_over(draft, event)
        draft.commands.append(JoinSwitch(switch_id=event.switch_id, running_id=running.switch_id))
    elif isinstance(pending, SwitchRequested) and _wants_same(pending, event):
        draft.commands.append(JoinSwitch(switch_id=event.switch_id, running_id=pending.switch_id))
    else:
        _wait_for(draft, running, event, is_by_hand=is_by_hand)


def _take_over(draft: Draft, event: SwitchRequested) -> None:
    """A hand wants what the controller does by itself: from here on it is the hand's switch.

    Others leave for it, requests are ended as it says, and what it has chosen holds.
    """
    switch = draft.set_switch(
        "order",
        requested_by=event.requested_by,
        drain_policy=event.drain_policy,
        gives_way=False,
    )
    if switch.phase is Phase.DRAINING and switch.leaving.drain_deadline is None:
        deadline = drain_deadline(draft, leaving_backends(draft))
        draft.set_switch("leaving", drain_deadline=deadline)


def request_restart(draft: Draft, event: RestartRequested) -> None:
    """Bring back what is down, now or behind what runs; join what does so, or refuse."""
    running = draft.snapshot.switch
    if draft.snapshot.is_closing:
        _refuse(draft, event, SHUTTING_DOWN)
    elif not draft.snapshot.recoveries:
        nothing = "no backend is down; nothing to restart"
        _refuse(draft, event, Refusal(code="nothing_is_down", message=nothing))
    elif running is None:
        begin_recovery(draft, event.switch_id, reset_breakers(draft).target, RESTART)
    elif running.order.is_recovery and not running.order.is_by_hand:
        reset_breakers(draft)  # the others come back behind it
        draft.set_switch("order", requested_by=RESTART)
        draft.commands.append(JoinSwitch(switch_id=event.switch_id, running_id=running.switch_id))
    else:
        _wait_for(draft, running, event, is_by_hand=True)


def begin_due_recovery(draft: Draft) -> None:
    """Try to bring a model back whose pause is over, if one is; a hand's wish comes before."""
    snapshot = draft.snapshot
    if snapshot.is_closing or snapshot.scheduling.pending is not None:
        return
    due = due_recovery(draft)
    if due is not None:
        begin_recovery(draft, own_switch_id(draft), due.target, "recovery")


def own_switch_id(draft: Draft) -> str:
    """Name the next switch that the controller begins by itself."""
    scheduling = draft.snapshot.scheduling
    number = scheduling.begun + 1
    draft.set_scheduling(begun=number)
    return f"{scheduling.run}-t{number}"


def begin_recovery(draft: Draft, switch_id: str, target: Target, requested_by: str) -> None:
    """Bring a model back that should be live, while no switch runs."""
    wanted = SwitchRequested(
        at=draft.at, switch_id=switch_id, target=target, requested_by=requested_by
    )
    begin_switch(draft, wanted, is_recovery=True)


def begin_pending(draft: Draft) -> None:
    """The running switch is over: do what a hand wanted meanwhile."""
    pending = draft.snapshot.scheduling.pending
    draft.set_scheduling(pending=None)
    if isinstance(pending, SwitchRequested):
        begin_switch(draft, replace(pending, at=draft.at))
    elif pending is not None:
        request_restart(draft, replace(pending, at=draft.at))


def abandon_pending(draft: Draft) -> None:
    """The controller shuts down: what waits is not begun."""
    pending = draft.snapshot.scheduling.pending
    if pending is not None:
        draft.set_scheduling(pending=None)
        _refuse(draft, pending, SHUTTING_DOWN)


def _wait_for(
    draft: Draft, running: Switch, event: SwitchRequested | RestartRequested, *, is_by_hand: bool
) -> None:
    pending = draft.snapshot.scheduling.pending
    if not is_by_hand or running.order.is_by_hand:
        _refuse(draft, event, switch_is_running(running))
    elif pending is not None:
        _refuse(draft, event, switch_is_pending(pending.switch_id))
    else:
        draft.set_scheduling(pending=event)


def _refuse(draft: Draft, event: SwitchRequested | RestartRequested, refusal: Refusal) -> None:
    draft.commands.append(RefuseSwitch(switch_id=event.switch_id, refusal=refusal))


def begin_switch(
    draft: Draft, event: SwitchRequested, *, is_recovery: bool = False, gives_way: bool = False
) -> None:
    """Begin a switch while none runs; a recovery gives way to whatever is live, unless pinned."""
    is_pinned = event.target is not None and draft.snapshot.rules.of(event.target).is_pinned
    order = Order(
        switch_id=event.switch_id,
        target=event.target,
        requested_by=event.requested_by,
        started_at=draft.at,
        drain_policy=event.drain_policy,
        is_recovery=is_recovery,
        gives_way=gives_way or (is_recovery and not is_pinned),
        unloads=event.unloads,
        reason=event.reason or _what_stays(draft, event),
    )
    switch = Switch(order=order, phase=Phase.PREFLIGHT, phase_started_at=draft.at)
    if _is_already_so(draft, event):
        if event.target is None:
            forget_unloaded(draft, event.unloads)
            settle_waiters(draft)
        if order.is_by_hand:
            hold(draft, switch)
        report = report_of(switch, draft.at, refusal=None)
        same = backend_for(draft.snapshot, report.model) if report.model else None
        draft.commands.append(
            FinishSwitch(
                report=replace(
                    report, outcome=Outcome.UNCHANGED, epoch=same.epoch if same else None
                )
            )
        )
        return
    draft.set(switch=switch)
    if event.target is None:
        leave(draft, _unloaded(draft, event))
    else:
        order_check(draft, event.target)


def _is_already_so(draft: Draft, event: SwitchRequested) -> bool:
    if event.target is None:
        return not _unloaded(draft, event)
    live = draft.snapshot.ready_backends()
    return any(b.target.is_same(event.target) for b in live)


def _unloaded(draft: Draft, event: SwitchRequested) -> tuple[Backend, ...]:
    """Return what an unload stops."""
    rules = draft.snapshot.rules
    return tuple(b for b in draft.snapshot.backends if rules.unloads(b.target, event.unloads))


def _what_stays(draft: Draft, event: SwitchRequested) -> str:
    """Say which models an unload of all leaves live, as they are pinned."""
    if event.target is not None or event.unloads is not None:
        return ""
    there = [f"'{b.target.model}'" for b in draft.snapshot.backends]
    gone = [f"'{b.target.model}'" for b in _unloaded(draft, event)]
    stays = ", ".join(name for name in there if name not in gone)
    return f"{stays} stays: what is pinned is unloaded by its name only" if stays else ""


def _wants_same(running: Order | SwitchRequested, event: SwitchRequested) -> bool:
    if running.target is None or event.target is None:
        return running.target is event.target and running.unloads == event.unloads
    return running.target.is_same(event.target)
