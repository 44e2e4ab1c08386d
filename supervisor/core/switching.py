"""How a switch moves: PREFLIGHT → DRAINING → STOPPING → CONFIRMING → STARTING → live.

Nothing is touched before the target is accepted. A backend starts only after the gate has
confirmed the device's memory; a gate that cannot confirm in time fails the switch (closed).
"""

from dataclasses import replace

from supervisor.core.commands import (
    CheckTarget,
    FinishSwitch,
    JoinSwitch,
    RefuseSwitch,
    SampleMemory,
    StartBackend,
    StopBackend,
)
from supervisor.core.draft import Draft, phase_seconds
from supervisor.core.events import SwitchRequested, TargetAccepted
from supervisor.core.memory import (
    MAX_SAMPLE_PAUSE_S,
    GateState,
    MemoryPolicy,
    MemorySample,
    ReleaseQuestion,
    judge_release,
    pause_before_sample,
)
from supervisor.core.requests import SHUTTING_DOWN, backend_for, settle_waiters
from supervisor.core.residency import baseline_at_start, baselines_after, choose_leaving
from supervisor.core.values import (
    Backend,
    BackendState,
    Outcome,
    Phase,
    Refusal,
    Switch,
    SwitchReport,
    Target,
)


def request_switch(draft: Draft, event: SwitchRequested) -> None:
    """Begin the switch, join the running one, answer that nothing changes, or refuse."""
    running = draft.snapshot.switch
    if draft.snapshot.is_closing:
        draft.order(RefuseSwitch(switch_id=event.switch_id, refusal=SHUTTING_DOWN))
    elif running is not None and _wants_same(running, event):
        draft.order(JoinSwitch(switch_id=event.switch_id, running_id=running.switch_id))
    elif running is not None:
        draft.order(RefuseSwitch(switch_id=event.switch_id, refusal=_switch_is_running(running)))
    else:
        _begin(draft, event)


def accept_target(draft: Draft, event: TargetAccepted) -> None:
    """The target can start: choose what gives way, and drain it."""
    switch = draft.snapshot.switch
    if switch is None or switch.switch_id != event.switch_id or switch.target is None:
        return
    plan = choose_leaving(draft.snapshot, switch.target, event.need_bytes)
    draft.set_switch(need_bytes=event.need_bytes, memory_before=event.memory)
    if isinstance(plan, Refusal):
        end_switch(draft, refusal=plan)
    else:
        _leave(draft, plan)


def progress_drain(draft: Draft) -> None:
    """Stop the leaving backends once they are drained or the deadline has passed."""
    switch = draft.running_switch()
    leaving = [b for b in draft.snapshot.backends if b.epoch in switch.leaving]
    if not leaving:
        _ask_for_release(draft)
        return
    is_late = switch.drain_deadline is not None and draft.at >= switch.drain_deadline
    if not is_late and any(b.in_flight for b in leaving):
        return
    draft.enter_phase(Phase.STOPPING)
    for backend in leaving:
        stop_backend(draft, backend)


def progress_stop(draft: Draft) -> None:
    """Ask telemetry once every leaving backend is reaped."""
    switch = draft.running_switch()
    if not any(b.epoch in switch.leaving for b in draft.snapshot.backends):
        _ask_for_release(draft)


def weigh_samples(draft: Draft, sample: MemorySample | None, unreadable: str | None) -> None:
    """Let the gate judge the samples so far; start, sample again, or fail closed."""
    switch = draft.running_switch()
    question = switch.question
    is_awaited = switch.phase is Phase.CONFIRMING and switch.next_sample_at is None
    if question is None or not is_awaited:
        return
    if sample is None:
        _retry_or_give_up(draft, question, f"memory cannot be read: {unreadable}")
    elif not _is_new(question, switch.samples, sample):
        _retry_or_give_up(draft, question, f"no new reading of {question.device}")
    else:
        _judge(draft, question, sample)


def _is_new(
    question: ReleaseQuestion, samples: tuple[MemorySample, ...], sample: MemorySample
) -> bool:
    """Whether the reading is of this device, from after the question and the last reading.

    What was read before the old backend was reaped, or is told twice, proves no release.
    """
    is_later = not samples or sample.taken_at > samples[-1].taken_at
    return sample.device == question.device and sample.taken_at >= question.asked_at and is_later


def _judge(draft: Draft, question: ReleaseQuestion, sample: MemorySample) -> None:
    switch = draft.running_switch()
    switch = draft.set_switch(samples=(*switch.samples, sample)[-64:])
    decision = judge_release(question, switch.samples)
    draft.set_switch(gate_reason=decision.reason)
    if decision.state is GateState.CONFIRMED:
        _confirmed(draft, question, sample)
    elif decision.state is GateState.REFUSED:
        end_switch(draft, refusal=Refusal(code="memory_not_released", message=decision.reason))
    else:
        _sample_later(draft, len(switch.samples))


def take_sample(draft: Draft) -> None:
    """Order the next reading of the device."""
    switch = draft.set_switch(next_sample_at=None)
    if switch.question is not None:
        draft.order(SampleMemory(switch_id=switch.switch_id, device=switch.question.device))


def fail_start(draft: Draft, refusal: Refusal) -> None:
    """The new backend is gone before it was ready; `refusal` tells how its process ended."""
    switch = draft.running_switch()
    if switch.failure is not None:  # it was given up, and its last lines may tell why it was slow
        refusal = replace(switch.failure, details=refusal.details)
    end_switch(draft, refusal=refusal)


def give_up_start(draft: Draft) -> None:
    """The new backend did not become ready in time: stop it, and fail when it is reaped."""
    switch = draft.running_switch()
    backend = draft.snapshot.backend(switch.epoch)
    if backend is None or backend.state is not BackendState.STARTING:
        return
    timeout_s = backend.target.start_timeout_s
    draft.set_switch(
        failure=Refusal(
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
    draft.set(switch=None, last_failure=refusal)
    draft.order(FinishSwitch(report=report))
    settle_waiters(draft, _refusal_for_waiters(refusal))


def stop_backend(draft: Draft, backend: Backend) -> None:
    """Order the stop of a backend that is starting or draining."""
    draft.move_backend(backend, BackendState.STOPPING)
    draft.order(StopBackend(epoch=backend.epoch, grace_s=backend.target.stop_grace_s))


def report_of(
    switch: Switch, at: float, *, refusal: Refusal | None, memory_after: MemorySample | None = None
) -> SwitchReport:
    """Sum a switch up as of `at`."""
    target = switch.target
    return SwitchReport(
        switch_id=switch.switch_id,
        requested_by=switch.requested_by,
        outcome=Outcome.SWITCHED if refusal is None else Outcome.FAILED,
        model=target.model if target else None,
        mode=target.mode if target else None,
        profile=target.profile if target else None,
        epoch=switch.epoch,
        total_s=at - switch.started_at,
        phase_seconds=phase_seconds(switch, at),
        gate_reason=switch.gate_reason,
        memory_before=switch.memory_before,
        memory_confirmed=switch.memory_confirmed,
        memory_after=memory_after or switch.memory_confirmed,
        refusal=refusal,
    )


def _begin(draft: Draft, event: SwitchRequested) -> None:
    switch = Switch(
        switch_id=event.switch_id,
        target=event.target,
        requested_by=event.requested_by,
        phase=Phase.PREFLIGHT,
        started_at=draft.at,
        phase_started_at=draft.at,
    )
    if _is_already_so(draft, event):
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
        leaving_models=tuple(b.target.model for b in leaving),
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
    _question_device(draft, switch.devices_to_confirm[0])


def _question_device(draft: Draft, device: str) -> None:
    switch = draft.running_switch()
    draft.set_switch(
        samples=(),
        question=ReleaseQuestion(
            device=device,
            need_bytes=switch.need_bytes,
            baseline_used_bytes=dict(switch.baselines).get(device),
            policy=switch.target.memory if switch.target else MemoryPolicy(),
            asked_at=draft.at,
        ),
    )
    take_sample(draft)


def _confirmed(draft: Draft, question: ReleaseQuestion, sample: MemorySample) -> None:
    """Go on to the next device, to the start of the target, or to the end of an unload."""
    switch = draft.running_switch()
    remaining = switch.devices_to_confirm[1:]
    switch = draft.set_switch(memory_confirmed=sample, devices_to_confirm=remaining)
    if remaining:
        _question_device(draft, remaining[0])
    elif switch.target is None:
        end_switch(draft)
    else:
        _start(draft, switch.target, question, sample)


def _start(draft: Draft, target: Target, question: ReleaseQuestion, sample: MemorySample) -> None:
    epoch = draft.snapshot.next_epoch
    staying = [b for b in draft.snapshot.backends if b.target.device == target.device]
    draft.enter_phase(Phase.STARTING)
    switch = draft.set_switch(epoch=epoch)
    draft.set(next_epoch=epoch + 1)
    draft.put_backend(
        Backend(
            epoch=epoch,
            target=target,
            state=BackendState.STARTING,
            need_bytes=switch.need_bytes or 0,
            started_at=draft.at,
            baseline_used_bytes=baseline_at_start(staying, question, sample),
        )
    )
    draft.order(StartBackend(epoch=epoch, target=target))


def _sample_later(draft: Draft, taken: int) -> None:
    draft.set_switch(next_sample_at=draft.at + pause_before_sample(taken))


def _retry_or_give_up(draft: Draft, question: ReleaseQuestion, reason: str) -> None:
    """Telemetry that cannot be read confirms nothing: ask again until the time is over."""
    draft.set_switch(gate_reason=reason)
    timeout_s = question.policy.release_timeout_s
    if draft.at - question.asked_at >= timeout_s:
        message = f"not confirmed within {timeout_s:g} s: {reason}"
        end_switch(draft, refusal=Refusal(code="memory_not_released", message=message))
    else:
        draft.set_switch(next_sample_at=draft.at + MAX_SAMPLE_PAUSE_S)


def _wants_same(running: Switch, event: SwitchRequested) -> bool:
    if running.target is None or event.target is None:
        return running.target is event.target
    return running.target.is_same(event.target)


def _switch_is_running(running: Switch) -> Refusal:
    target = running.target
    goal = f"to '{target.model}'" if target else "to nothing (unload)"
    return Refusal(
        code="switch_in_progress",
        message=f"a switch {goal} is running ({running.phase}); wait for /switches/"
        f"{running.switch_id}",
        details=(
            ("switch_id", running.switch_id),
            ("target", target.model if target else None),
            ("phase", running.phase.value),
        ),
    )


def _refusal_for_waiters(refusal: Refusal | None) -> Refusal | None:
    """What waiters learn when the switch they waited for failed."""
    if refusal is None:
        return None
    return Refusal(code="switch_failed", message=f"the switch failed: {refusal.message}")
