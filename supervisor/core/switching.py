"""How a switch moves: PREFLIGHT → DRAINING → STOPPING → CONFIRMING → STARTING → live.

Nothing is touched before the target is accepted. A backend starts only after the gate has
confirmed the device's memory; a gate that cannot confirm in time fails the switch (closed).
What fails after something was stopped leads to ROLLING_BACK, which brings that back.
"""

from dataclasses import replace

from supervisor.core.commands import (
    CheckTarget,
    FinishSwitch,
    JoinSwitch,
    RefuseSwitch,
    StartBackend,
    StopBackend,
)
from supervisor.core.confirming import question_device, weigh_sample
from supervisor.core.draft import Draft
from supervisor.core.events import SwitchRequested, TargetAccepted
from supervisor.core.memory import GateState, MemorySample, ReleaseQuestion
from supervisor.core.recovery import forget_recovery, note_failed_recovery, note_lost
from supervisor.core.reports import refusal_for_waiters, report_of, switch_is_running
from supervisor.core.requests import SHUTTING_DOWN, backend_for, settle_waiters
from supervisor.core.residency import baseline_at_start, baselines_after, choose_leaving
from supervisor.core.values import (
    Backend,
    BackendState,
    DrainPolicy,
    Outcome,
    Phase,
    Placement,
    Refusal,
    Switch,
    Target,
)

KEPT_DURATIONS = 16
"""Switches whose duration is remembered, to tell clients when to come back."""


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


def accept_target(draft: Draft, event: TargetAccepted) -> None:
    """The target can start: choose what gives way, and drain it."""
    switch = draft.running_switch()
    if switch.target is None:
        return
    plan = choose_leaving(draft.snapshot, switch.target, event.need_bytes)
    placing = Placement(target=switch.target, need_bytes=event.need_bytes)
    draft.set_switch(placing=placing, memory_before=event.memory)
    if isinstance(plan, Refusal):
        end_switch(draft, refusal=plan)
    elif plan and switch.is_recovery:
        # What died comes back into free room only: somebody chose what is live now.
        forget_recovery(draft, switch.target.model)
        end_switch(draft, refusal=_place_is_taken(switch.target.model, plan))
    else:
        _leave(draft, plan)


def progress_drain(draft: Draft) -> None:
    """Stop the leaving backends once they are drained, or as the policy says at the deadline."""
    switch = draft.running_switch()
    leaving = [b for b in draft.snapshot.backends if b.epoch in switch.leaving]
    if not leaving:
        _ask_for_release(draft)
        return
    in_flight = sum(b.in_flight for b in leaving)
    if in_flight:
        if switch.drain_deadline is None or draft.at < switch.drain_deadline:
            return
        if switch.drain_policy is DrainPolicy.WAIT:
            draft.set_switch(drain_deadline=None)
            return
        if switch.drain_policy is DrainPolicy.REFUSE:
            _resume(draft, leaving, in_flight)
            return
    _stop_leaving(draft, leaving)


def _stop_leaving(draft: Draft, leaving: list[Backend]) -> None:
    draft.enter_phase(Phase.STOPPING)
    for backend in leaving:
        stop_backend(draft, backend)


def _resume(draft: Draft, leaving: list[Backend], in_flight: int) -> None:
    """Give the switch up: what should have left admits requests again."""
    for backend in leaving:
        draft.move_backend(backend, BackendState.READY)
    there = {b.target.model for b in leaving}
    for lost in draft.running_switch().to_restore:
        if lost.target.model not in there:
            note_lost(draft, lost.target)
    message = (
        f"{in_flight} requests were still in flight when the drain deadline passed; the switch "
        "is given up, as drain_policy says (refuse)"
    )
    end_switch(
        draft,
        refusal=Refusal(code="drain_refused", message=message, details=(("in_flight", in_flight),)),
    )


def progress_stop(draft: Draft) -> None:
    """Ask telemetry once every leaving backend is reaped."""
    switch = draft.running_switch()
    if not any(b.epoch in switch.leaving for b in draft.snapshot.backends):
        _ask_for_release(draft)


def weigh_reading(draft: Draft, sample: MemorySample | None, unreadable: str = "") -> None:
    """A reading of the device came, or (None) could not be had: go on once the gate decides."""
    question = draft.running_switch().question
    decision = weigh_sample(draft, sample, unreadable)
    if decision is None:
        return
    is_confirmed = decision.state is GateState.CONFIRMED
    if is_confirmed and question is not None and sample is not None:
        _confirmed(draft, question, sample)
    else:
        fail_switch(draft, Refusal(code="memory_not_released", message=decision.reason))


def succeed_start(draft: Draft, memory: MemorySample | None) -> None:
    """The backend that the switch started is ready."""
    switch = draft.running_switch()
    if switch.phase is not Phase.ROLLING_BACK:
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
    draft: Draft, *, refusal: Refusal | None = None, memory_after: MemorySample | None = None
) -> None:
    """Report the switch, free the way for the next, and settle everybody who waited for it."""
    switch = draft.running_switch()
    report = report_of(switch, draft.at, refusal=refusal, memory_after=memory_after)
    durations = draft.snapshot.switch_durations_s
    if refusal is None:
        durations = (*durations, report.total_s)[-KEPT_DURATIONS:]
        if switch.target is not None:
            _forget_replaced(draft, switch.target)
    elif switch.is_recovery and switch.target and draft.snapshot.recovery(switch.target.model):
        note_failed_recovery(draft, switch.target, refusal.message)
    draft.set(switch=None, last_failure=refusal, switch_durations_s=durations)
    draft.order(FinishSwitch(report=report))
    failed_model = switch.target.model if switch.target else None
    settle_waiters(draft, refusal_for_waiters(refusal), failed_model)


def stop_backend(draft: Draft, backend: Backend) -> None:
    """Order the stop of a backend that is starting or draining."""
    draft.move_backend(backend, BackendState.STOPPING)
    draft.order(StopBackend(epoch=backend.epoch, grace_s=backend.target.stop_grace_s))


def begin_switch(draft: Draft, event: SwitchRequested, *, is_recovery: bool = False) -> None:
    """Begin a switch while none runs; a recovery gives way to whatever is live."""
    switch = Switch(
        switch_id=event.switch_id,
        target=event.target,
        requested_by=event.requested_by,
        drain_policy=event.drain_policy,
        is_recovery=is_recovery,
        phase=Phase.PREFLIGHT,
        started_at=draft.at,
        phase_started_at=draft.at,
    )
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
        _leave(draft, draft.snapshot.backends)
    else:
        draft.order(CheckTarget(switch_id=event.switch_id, target=event.target))


def _is_already_so(draft: Draft, event: SwitchRequested) -> bool:
    if event.target is None:
        return not draft.snapshot.backends
    live = draft.snapshot.ready_backends()
    return any(b.target.is_same(event.target) for b in live)


def _leave(draft: Draft, leaving: tuple[Backend, ...]) -> None:
    """Close admission to what gives way, and drain it."""
    switch = draft.running_switch()
    own = switch.target.device if switch.target else None
    devices = (own,) if own else tuple(dict.fromkeys(b.target.device for b in leaving))
    draft.set_switch(devices_to_confirm=devices)
    if not leaving:
        _ask_for_release(draft)
        return
    draft.set_switch(
        leaving=tuple(b.epoch for b in leaving),
        to_restore=tuple(Placement(target=b.target, need_bytes=b.need_bytes) for b in leaving),
        drain_deadline=draft.at + max(b.target.drain_timeout_s for b in leaving),
        baselines=baselines_after(draft.snapshot.backends, leaving),
    )
    draft.enter_phase(Phase.DRAINING)
    for backend in leaving:
        draft.move_backend(backend, BackendState.DRAINING)
    progress_drain(draft)


def _ask_for_release(draft: Draft) -> None:
    """Put the question for the first device that is not confirmed yet, and take a sample."""
    switch = draft.enter_phase(Phase.CONFIRMING)
    if switch.target is None:
        draft.set(recoveries=())  # an unload wants nothing live
    question_device(draft, switch.devices_to_confirm[0])


def _confirmed(draft: Draft, question: ReleaseQuestion, sample: MemorySample) -> None:
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
    draft: Draft, placing: Placement, question: ReleaseQuestion, sample: MemorySample
) -> None:
    epoch = draft.snapshot.next_epoch
    switch = draft.running_switch()
    staying = [b for b in draft.snapshot.backends if b.target.device == placing.target.device]
    if switch.phase is Phase.CONFIRMING:
        draft.enter_phase(Phase.STARTING)
    draft.set_switch(epoch=epoch)
    draft.set(next_epoch=epoch + 1)
    draft.put_backend(
        Backend(
            epoch=epoch,
            target=placing.target,
            state=BackendState.STARTING,
            need_bytes=placing.need_bytes,
            started_at=draft.at,
            baseline_used_bytes=baseline_at_start(staying, question, sample),
        )
    )
    draft.order(StartBackend(epoch=epoch, target=placing.target))


def _forget_replaced(draft: Draft, target: Target) -> None:
    """What is live now is wanted: on an exclusive device nothing else comes back beside it."""
    device = draft.snapshot.devices[target.device]
    for down in draft.snapshot.recoveries:
        is_replaced = device.is_exclusive and down.target.device == device.name
        if is_replaced or down.target.model == target.model:
            forget_recovery(draft, down.target.model)


def _place_is_taken(model: str, plan: tuple[Backend, ...]) -> Refusal:
    others = ", ".join(f"'{b.target.model}'" for b in plan)
    return Refusal(
        code="place_is_taken", message=f"'{model}' is not brought back: {others} took its place"
    )


def _wants_same(running: Switch, event: SwitchRequested) -> bool:
    if running.target is None or event.target is None:
        return running.target is event.target
    return running.target.is_same(event.target)
