"""How a switch moves: PREFLIGHT, WARMING, DRAINING, STOPPING, CONFIRMING, STARTING, READY.

Nothing is touched before the target is accepted. Where there is room for both, the target starts
beside what it replaces, and nothing is drained before. A backend starts only after the gate has
confirmed the device's memory; a gate that cannot confirm in time fails the switch (closed).
What fails after something was stopped leads to ROLLING_BACK, which brings that back.
"""

from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    FinishSwitch,
    StartBackend,
    StopWarming,
    WarmFile,
)
from supervisor.core.machine.confirming import question_device, weigh_sample
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import TargetAccepted
from supervisor.core.machine.leaving import (
    begin_to_leave,
    leaving_backends,
    may_stop,
    not_reaped,
    reap_deadline,
    retire_replaced,
    stay,
    stop_backend,
    stop_leaving,
)
from supervisor.core.machine.memory import GateState, MemorySample, ReleaseQuestion
from supervisor.core.machine.preflight import refuse_unread, refuse_what_cannot_fit
from supervisor.core.machine.recovery import (
    forget_recovery,
    note_failed_recovery,
    note_lost,
)
from supervisor.core.machine.reports import refusal_for_waiters, report_of
from supervisor.core.machine.requests import settle_waiters
from supervisor.core.machine.residency import Plan, baseline_at_start, plan_residency
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Outcome,
    Phase,
    Placement,
    Refusal,
    Switch,
    Target,
)

KEPT_DURATIONS = 16
"""Switches whose duration is remembered, to tell clients when to come back."""


def accept_target(draft: Draft, event: TargetAccepted) -> None:
    """The target can start: choose what gives way, and see that it will fit then."""
    switch = draft.running_switch()
    target = switch.target
    if target is None:
        return
    plan = plan_residency(draft.snapshot, target, event.need.need_bytes, event.memory)
    placing = Placement(target=target, need_bytes=event.need.need_bytes)
    draft.set_switch(
        placing=placing,
        memory_before=event.memory,
        retiring=tuple(b.epoch for b in plan.retiring),
        must_leave=tuple(b.epoch for b in plan.leaving),
    )
    refusal = refuse_unread(target, event) or refuse_what_cannot_fit(
        draft.snapshot, target, event.need, plan, event.memory
    )
    if refusal is not None:
        _fall_back_or_end(draft, target, refusal)
    elif switch.is_recovery and (others := _others_in_place(plan)):
        # What died comes back into free room only: somebody chose what is live now.
        forget_recovery(draft, target.model)
        end_switch(draft, refusal=_place_is_taken(target.model, others))
    elif draft.snapshot.rules.warms:
        draft.enter_phase(Phase.WARMING)
        draft.order(WarmFile(switch_id=switch.switch_id, target=target))
    else:
        begin_leaving(draft)


def _fall_back_or_end(draft: Draft, target: Target, refusal: Refusal) -> None:
    """There is no room for the target: try what the operator named for that, or give up."""
    fallback = target.fallback
    if fallback is None:
        end_switch(draft, refusal=refusal)
        return
    switch = draft.set_switch(target=fallback, fell_back=refusal.message, placing=None)
    same = next((b for b in draft.snapshot.ready_backends() if b.target.is_same(fallback)), None)
    if same is not None:
        draft.set_switch(epoch=same.epoch)
        end_switch(draft, outcome=Outcome.UNCHANGED)
    else:
        draft.order(CheckTarget(switch_id=switch.switch_id, target=fallback))


def _others_in_place(plan: Plan) -> tuple[Backend, ...]:
    """Return what gives way and is not on its way out by itself."""
    both = (*plan.leaving, *plan.retiring)
    return tuple(b for b in both if b.state is BackendState.READY)


def begin_leaving(draft: Draft) -> None:
    """Let what must give way drain; nothing: ask for the memory at once."""
    switch = draft.running_switch()
    leaving = tuple(b for b in draft.snapshot.backends if b.epoch in switch.must_leave)
    leave(draft, leaving)


def progress_drain(draft: Draft) -> None:
    """Stop the leaving backends once they are drained, or as the policy says at the deadline."""
    if not leaving_backends(draft):
        _ask_for_release(draft)
        return
    answer = may_stop(draft)
    if isinstance(answer, Refusal):
        stay(draft)
        end_switch(draft, refusal=answer)
    elif answer:
        draft.enter_phase(Phase.STOPPING)
        stop_leaving(draft)


def progress_stop(draft: Draft) -> None:
    """Ask telemetry once every leaving backend is reaped; give up on one that cannot be."""
    if not leaving_backends(draft):
        _ask_for_release(draft)
    elif draft.at >= reap_deadline(draft.snapshot):
        refusal = not_reaped(draft)
        for lost in draft.running_switch().to_restore:
            note_lost(draft, lost.target, refusal.message)
        end_switch(draft, refusal=refusal)


def weigh_reading(draft: Draft, sample: MemorySample | None, unreadable: str = "") -> None:
    """A reading of the device came, or (None) could not be had: go on once the gate decides."""
    question = draft.running_switch().question
    decision = weigh_sample(draft, sample, unreadable)
    if decision is None:
        return
    may_pass = decision.state in {GateState.CONFIRMED, GateState.UNPROVEN}
    if may_pass and question is not None:
        _confirmed(draft, question, sample)
    elif replaced := _replaced_in_the_way(draft):
        leave(draft, replaced)
    else:
        fail_switch(draft, Refusal(code="memory_not_released", message=decision.reason))


def _replaced_in_the_way(draft: Draft) -> tuple[Backend, ...]:
    """What the target was to start beside, as long as nothing has stopped for it: make room."""
    switch = draft.running_switch()
    if switch.phase is not Phase.CONFIRMING or switch.leaving or switch.target is None:
        return ()
    device = switch.target.device
    return tuple(
        b
        for b in draft.snapshot.backends
        if b.epoch in switch.retiring and b.target.device == device
    )


def succeed_start(draft: Draft, memory: MemorySample | None) -> None:
    """The backend that the switch started is ready."""
    switch = draft.running_switch()
    if switch.phase is not Phase.ROLLING_BACK:
        draft.enter_phase(Phase.READY)
        retire_replaced(draft)
        end_switch(draft, memory_after=memory)
        return
    restored = switch.to_restore[0]
    draft.set_switch(
        to_restore=switch.to_restore[1:],
        epoch=None,
        baselines=tuple(
            (d, used + restored.need_bytes if d == restored.target.device else used)
            for d, used in switch.baselines
        ),
    )
    _restore_next(draft, memory)


def fail_start(draft: Draft, refusal: Refusal) -> None:
    """The new backend is gone before it was ready; `refusal` tells how its process ended."""
    switch = draft.running_switch()
    if switch.given_up is not None:  # its last lines may tell why it was slow
        refusal = replace(switch.given_up, details=refusal.details)
    fail_switch(draft, refusal)


def fail_switch(draft: Draft, refusal: Refusal) -> None:
    """The switch cannot go on: bring back what was stopped, or end it."""
    switch = draft.running_switch()
    if switch.phase is Phase.ROLLING_BACK:
        _fail_rollback(draft, refusal)
    elif switch.target is not None and switch.to_restore:
        draft.enter_phase(Phase.ROLLING_BACK)
        draft.set_switch(failure=refusal, given_up=None, epoch=None)
        _restore_next(draft, None)
    else:
        end_switch(draft, refusal=refusal)


def _restore_next(draft: Draft, memory: MemorySample | None) -> None:
    """Bring back the next of the backends that were stopped; all of them: the rollback is done."""
    switch = draft.running_switch()
    if switch.to_restore:
        draft.set_switch(placing=switch.to_restore[0])
        question_device(draft, switch.to_restore[0].target.device)
        return
    failure = switch.failure
    assert failure is not None  # noqa: S101 - a rollback begins with one
    details = (*failure.details, ("rolled_back", True))
    end_switch(draft, refusal=replace(failure, details=details), memory_after=memory)


def _fail_rollback(draft: Draft, refusal: Refusal) -> None:
    """What was stopped cannot be brought back either: report both, and keep trying."""
    switch = draft.running_switch()
    failure = switch.failure or refusal
    for lost in switch.to_restore:
        note_failed_recovery(draft, lost.target, refusal.message)
    message = f"{failure.message}; and the rollback failed: {refusal.message}"
    details = (*failure.details, ("rolled_back", False))
    end_switch(draft, refusal=replace(failure, message=message, details=details))


def give_up_start(draft: Draft) -> None:
    """The new backend did not become ready in time: stop it, and fail when it is reaped."""
    switch = draft.running_switch()
    backend = draft.snapshot.backend(switch.epoch)
    if backend is None or backend.state is not BackendState.STARTING:
        return
    timeout_s = backend.target.start_timeout_s
    draft.set_switch(
        given_up=Refusal(
            code="backend_start_timeout",
            message=f"'{backend.target.model}' was not ready {timeout_s:g} s after its start",
        )
    )
    stop_backend(draft, backend)


def end_switch(
    draft: Draft,
    *,
    refusal: Refusal | None = None,
    memory_after: MemorySample | None = None,
    outcome: Outcome | None = None,
) -> None:
    """Report the switch, free the way for the next, and settle everybody who waited for it."""
    switch = draft.running_switch()
    report = report_of(switch, draft.at, refusal=refusal, memory_after=memory_after)
    if outcome is not None:
        report = replace(report, outcome=outcome)
    if switch.epoch is None:
        stop_warming(draft, switch)
    durations = draft.snapshot.switch_durations_s
    if refusal is None:
        durations = (*durations, report.total_s)[-KEPT_DURATIONS:]
        if switch.target is not None:
            _forget_replaced(draft, switch.target)
    elif switch.is_recovery and switch.target:
        down = draft.snapshot.recovery(switch.target.model)
        if down is not None:
            note_failed_recovery(draft, down.target, refusal.message)
    draft.set(switch=None, last_failure=refusal, switch_durations_s=durations)
    draft.order(FinishSwitch(report=report))
    failed_model = switch.target.model if switch.target else None
    settle_waiters(draft, refusal_for_waiters(refusal), failed_model)


def leave(draft: Draft, leaving: tuple[Backend, ...]) -> None:
    """Close admission to what gives way, and drain it."""
    switch = draft.running_switch()
    own = switch.target.device if switch.target else None
    devices = (own,) if own else tuple(dict.fromkeys(b.target.device for b in leaving))
    draft.set_switch(devices_to_confirm=devices)
    if not leaving:
        _ask_for_release(draft)
        return
    draft.enter_phase(Phase.DRAINING)
    begin_to_leave(draft, leaving)
    progress_drain(draft)


def _ask_for_release(draft: Draft) -> None:
    """Put the question for the first device that is not confirmed yet, and take a sample."""
    switch = draft.enter_phase(Phase.CONFIRMING)
    if switch.target is None:
        draft.set(recoveries=())  # an unload wants nothing live
    may_make_room = bool(_replaced_in_the_way(draft))
    question_device(draft, switch.devices_to_confirm[0], may_make_room=may_make_room)


def _confirmed(draft: Draft, question: ReleaseQuestion, sample: MemorySample | None) -> None:
    """Go on to the next device, to the start of what is placed, or to the end of an unload."""
    switch = draft.set_switch(memory_confirmed=sample)
    if switch.phase is Phase.CONFIRMING:
        remaining = switch.devices_to_confirm[1:]
        draft.set_switch(devices_to_confirm=remaining)
        if remaining:
            question_device(draft, remaining[0])
            return
    if switch.placing is None:
        end_switch(draft)
    else:
        _start(draft, switch.placing, question, sample)


def _start(
    draft: Draft, placing: Placement, question: ReleaseQuestion, sample: MemorySample | None
) -> None:
    epoch = draft.snapshot.next_epoch
    switch = draft.running_switch()
    staying = draft.snapshot.sharing(placing.target.device)
    if switch.phase is Phase.CONFIRMING:
        draft.enter_phase(Phase.STARTING)
        stop_warming(draft, switch)
    draft.set_switch(epoch=epoch)
    draft.set(next_epoch=epoch + 1)
    draft.put_backend(
        Backend(
            epoch=epoch,
            target=placing.target,
            state=BackendState.STARTING,
            need_bytes=placing.need_bytes,
            started_at=draft.at,
            baseline_used_bytes=baseline_at_start(staying, question, sample) if sample else None,
            baseline_foreign_bytes=sample.foreign_bytes if sample else None,
        )
    )
    draft.order(StartBackend(epoch=epoch, target=placing.target))


def _forget_replaced(draft: Draft, target: Target) -> None:
    """What is live now is wanted: where it is to be alone, nothing comes back beside it."""
    device = draft.snapshot.devices[target.device]
    for down in draft.snapshot.recoveries:
        is_alone = device.is_exclusive and down.target.device == device.name
        is_replaced = is_alone or draft.snapshot.rules.replaces
        if is_replaced or down.target.model == target.model:
            forget_recovery(draft, down.target.model)


def _place_is_taken(model: str, plan: tuple[Backend, ...]) -> Refusal:
    others = ", ".join(f"'{b.target.model}'" for b in plan)
    return Refusal(
        code="place_is_taken", message=f"'{model}' is not brought back: {others} took its place"
    )


def stop_warming(draft: Draft, switch: Switch) -> None:
    """Read the target's file no further."""
    if any(phase is Phase.WARMING for phase, _ in switch.phase_seconds):
        draft.order(StopWarming(switch_id=switch.switch_id))
