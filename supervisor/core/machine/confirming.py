"""Asks telemetry whether a device has room for what is placed next, and weighs the answers."""

from msgspec.structs import replace

from supervisor.core.machine.commands import SampleMemory
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.memory import (
    MAX_SAMPLE_PAUSE_S,
    SETTLING_PAUSE_S,
    GateDecision,
    GateState,
    MemoryPolicy,
    MemorySample,
    OnUnconfirmed,
    ReleaseQuestion,
    judge_late,
    judge_release,
    pause_before_sample,
)
from supervisor.core.machine.values import Phase

KEPT_SAMPLES = 64


def question_device(draft: Draft, device: str, *, may_make_room: bool = False) -> None:
    """Put the question whether `device` has room for what is placed, and take a sample.

    With nothing to place (an unload), the question is whether the old share is back. Where room
    can still be made, it is made rather than waited for, or gone without.
    """
    switch = draft.running_switch()
    placing = switch.placing
    policy = placing.target.memory if placing else MemoryPolicy()
    if may_make_room:
        policy = replace(policy, on_unconfirmed=OnUnconfirmed.REFUSE)
    draft.set_switch(
        samples=(),
        question=ReleaseQuestion(
            device=device,
            need_bytes=placing.need_bytes if placing else None,
            baseline_used_bytes=dict(switch.baselines).get(device),
            baseline_foreign_bytes=dict(switch.foreign_baselines).get(device),
            policy=policy,
            is_freed_at_exit=draft.snapshot.devices[device].is_host_memory,
            is_return=switch.is_recovery or switch.phase is Phase.ROLLING_BACK,
            asked_at=draft.at,
        ),
    )
    take_sample(draft)


def take_sample(draft: Draft) -> None:
    """Order the next reading of the device."""
    switch = draft.set_switch(next_sample_at=None)
    if switch.question is not None:
        draft.order(SampleMemory(switch_id=switch.switch_id, device=switch.question.device))


def weigh_sample(draft: Draft, sample: MemorySample | None, unreadable: str) -> GateDecision | None:
    """Let the gate judge the samples so far, one more (or None, and why) among them.

    Returns the decision once it is final; until then the next sample is due later. A reading
    that nobody waits for is passed over.
    """
    switch = draft.running_switch()
    question = switch.question
    if question is None or switch.next_sample_at is not None:
        return None
    if sample is None:
        return _retry_or_refuse(draft, question, f"memory cannot be read: {unreadable}")
    if not _is_new(question, switch.samples, sample):
        return _retry_or_refuse(draft, question, f"no new reading of {question.device}")
    switch = draft.set_switch(
        samples=(*switch.samples, sample)[-KEPT_SAMPLES:], samples_taken=switch.samples_taken + 1
    )
    decision = judge_release(question, switch.samples)
    if decision.state is GateState.WAITING:
        pause_s = pause_before_sample(len(switch.samples))
        if decision.is_settling:
            pause_s = min(SETTLING_PAUSE_S, pause_s)
        draft.set_switch(
            gate_reason=decision.reason,
            next_sample_at=draft.at + pause_s,
        )
        return None
    return _decide(draft, decision)


def _is_new(
    question: ReleaseQuestion, samples: tuple[MemorySample, ...], sample: MemorySample
) -> bool:
    """Whether the reading is of this device, from after the question and the last reading.

    What was read before the old backend was reaped, or is told twice, proves no release.
    """
    is_later = not samples or sample.taken_at > samples[-1].taken_at
    return sample.device == question.device and sample.taken_at >= question.asked_at and is_later


def _retry_or_refuse(draft: Draft, question: ReleaseQuestion, reason: str) -> GateDecision | None:
    """Telemetry that cannot be read confirms nothing: ask again until the time is over."""
    decision = judge_late(question, draft.at, reason)
    if decision.state is not GateState.WAITING:
        return _decide(draft, decision)
    draft.set_switch(gate_reason=reason, next_sample_at=draft.at + MAX_SAMPLE_PAUSE_S)
    return None


def _decide(draft: Draft, decision: GateDecision) -> GateDecision:
    """Close the question: a reading that comes later belongs to nobody."""
    draft.set_switch(gate_reason=decision.reason, question=None)
    return decision
