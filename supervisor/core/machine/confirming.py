"""Asks telemetry whether a device has room for what is placed next, and weighs the answers.

The one writer of the switch's `gate`.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from supervisor.core.machine.commands import SampleMemory
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.footprint import Baseline, Footprint, baseline_on
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
from supervisor.core.machine.parking import (
    is_unmeasured,
    measure_kept,
    parked_by_switch,
    recount_kept,
    still_needed,
)
from supervisor.core.machine.residency import baselines_after
from supervisor.core.machine.values import Backend, Placement

KEPT_SAMPLES = 64

READ_AGAIN_AFTER_S = 0.5
"""A device that was confirmed so long ago is read once more before anything starts on it."""


def expect_devices(draft: Draft, leaving: Sequence[Backend]) -> None:
    """Say which devices must be confirmed: of what is placed, or, unloading, of what leaves.

    Of what is parked, all devices: what it keeps is measured. A target's own device comes last, so
    that the start follows its reading at once.
    """
    placement = draft.running_switch().start.placement
    parking = draft.running_switch().leaving.parking
    if placement is None:
        taken = [device for backend in leaving for device in backend.footprint.devices]
        devices = tuple(dict.fromkeys(taken))
    else:
        own = placement.target.device
        parked = [d for b in leaving if b.epoch in parking for d in b.footprint.devices]
        others = dict.fromkeys((*placement.footprint.devices, *parked))
        devices = (*(d for d in others if d != own), own)
    draft.set_switch("gate", devices=devices, opened=(), was_read_again=False)


def expect_devices_again(draft: Draft) -> None:
    """Have those confirmed anew that were: what was read of them is not true any more."""
    gate = draft.running_switch().gate
    confirmed = (question.device for question, _ in gate.opened)
    draft.set_switch("gate", devices=(*confirmed, *gate.devices), opened=())


def expect_use(draft: Draft, leaving: Sequence[Backend]) -> None:
    """Note the use that each device should return to once `leaving` are gone, too.

    What was expected of their devices before had them in it.
    """
    theirs = {device for backend in leaving for device in backend.footprint.devices}
    others = [b for b in draft.running_switch().gate.baselines if b.device not in theirs]
    found = baselines_after(draft.snapshot.backends, leaving)
    draft.set_switch("gate", baselines=(*others, *found))


def expect_use_of_the_dead(draft: Draft, baselines: tuple[Baseline, ...]) -> None:
    """Note the use that a device should return to though the server that died left no trace."""
    draft.set_switch("gate", baselines=baselines)


def expect_more_use(draft: Draft, restored: Placement) -> None:
    """What came back in a rollback stays: its devices return to that much more."""
    _move_baselines(draft, restored.footprint, 1)


def expect_less_use(draft: Draft, gone: Footprint) -> None:
    """What was to stay gives up so much: its devices return to that much less."""
    _move_baselines(draft, gone, -1)


def _move_baselines(draft: Draft, by: Footprint, sign: int) -> None:
    moved = tuple(
        replace(b, used_bytes=b.used_bytes + sign * by.on(b.device))
        for b in draft.running_switch().gate.baselines
    )
    draft.set_switch("gate", baselines=moved)


def note_confirmed(draft: Draft, question: ReleaseQuestion, sample: MemorySample | None) -> None:
    """Note the reading that confirmed a device, and what was asked of it."""
    if sample is not None:
        question = measure_kept(draft, question, sample)
    opened = (*draft.running_switch().gate.opened, (question, sample))
    draft.set_switch("gate", confirmed=sample, opened=opened)


def next_device(draft: Draft) -> str | None:
    """Pass on from the device that is confirmed; returns the one to ask about now, if any.

    Once all are, those are asked about once more whose readings have become old over the others.
    """
    gate = draft.running_switch().gate
    remaining, opened = gate.devices[1:], gate.opened
    if not remaining and not gate.was_read_again:
        recent_from = draft.at - READ_AGAIN_AFTER_S
        old = [pair for pair in opened if pair[1] is not None and pair[1].taken_at < recent_from]
        opened = tuple(pair for pair in opened if pair not in old)
        remaining = tuple(question.device for question, _ in old)
        draft.set_switch("gate", was_read_again=bool(old))
    draft.set_switch("gate", devices=remaining, opened=opened)
    return remaining[0] if remaining else None


def question_device(draft: Draft, device: str, *, may_make_room: bool = False) -> None:
    """Put the question whether `device` has room for what is placed, and take a sample.

    With nothing to place (an unload), the question is whether the old share is back. With
    `may_make_room`, a device that is not confirmed in time is refused, whatever the policy says:
    something can still give way.
    """
    switch = draft.running_switch()
    placement = switch.start.placement
    policy = placement.target.memory if placement else MemoryPolicy()
    baseline = _baseline_of(draft, device)
    parked = parked_by_switch(draft)
    is_freed_late = not draft.snapshot.devices[device].is_host_memory
    if may_make_room:
        policy = replace(policy, on_unconfirmed=OnUnconfirmed.REFUSE)
    draft.set_switch(
        "gate",
        samples=(),
        question=ReleaseQuestion(
            device=device,
            need_bytes=_need_of(draft, placement).on(device) if placement else None,
            baseline_used_bytes=baseline.used_bytes if baseline else None,
            baseline_foreign_bytes=baseline.foreign_bytes if baseline else None,
            baseline_exits=baseline.exits if baseline else 0,
            policy=policy,
            is_freed_at_exit=not is_freed_late,
            own_baseline_bytes=_own_baseline(draft, placement, device) if placement else None,
            is_measured=is_freed_late and any(is_unmeasured(draft, b, device) for b in parked),
            asked_at=draft.at,
        ),
    )
    take_sample(draft)


def _baseline_of(draft: Draft, device: str) -> Baseline | None:
    """Return the use that a device should return to, with what the switch's parked ones keep."""
    baseline = baseline_on(draft.running_switch().gate.baselines, device)
    kept_bytes = sum(b.footprint.on(device) for b in parked_by_switch(draft))
    return baseline and replace(baseline, used_bytes=baseline.used_bytes + kept_bytes)


def _own_baseline(draft: Draft, placement: Placement, device: str) -> int | None:
    """Return the use from which what is placed ran before, with what its parked server keeps."""
    before = baseline_on(placement.baselines, device)
    if before is None:
        return None
    parked = draft.snapshot.parked_of(placement.target)
    return before.used_bytes + (0 if parked is None else parked.footprint.on(device))


def _need_of(draft: Draft, placement: Placement) -> Footprint:
    """Return what is placed takes beyond what its parked server, if it has one, keeps already."""
    return still_needed(placement.footprint, draft.snapshot.parked_of(placement.target))


def take_sample(draft: Draft) -> None:
    """Order the next reading of the device."""
    switch = draft.set_switch("gate", next_sample_at=None)
    question = switch.gate.question
    if question is not None:
        draft.commands.append(SampleMemory(switch_id=switch.switch_id, device=question.device))


def weigh_sample(draft: Draft, sample: MemorySample | None, unreadable: str) -> GateDecision | None:
    """Let the gate judge the samples so far, one more (or None, and why) among them.

    Returns the decision once it is final; until then the next sample is due later. A reading
    that nobody waits for is passed over.
    """
    gate = draft.running_switch().gate
    question = gate.question
    if question is None or gate.next_sample_at is not None:
        return None
    if sample is None:
        return _retry_or_refuse(draft, question, f"memory cannot be read: {unreadable}")
    if not _is_new(question, gate.samples, sample):
        return _retry_or_refuse(draft, question, f"no new reading of {question.device}")
    samples = (*gate.samples, sample)[-KEPT_SAMPLES:]
    draft.set_switch("gate", samples=samples, samples_taken=gate.samples_taken + 1)
    question = _asked_anew(draft, question, sample)
    decision = judge_release(question, samples)
    if decision.state is GateState.WAITING:
        pause_s = pause_before_sample(len(samples))
        if decision.is_settling:
            pause_s = min(SETTLING_PAUSE_S, pause_s)
        draft.set_switch("gate", reason=decision.reason, next_sample_at=draft.at + pause_s)
        return None
    return _decide(draft, decision)


def _asked_anew(draft: Draft, question: ReleaseQuestion, sample: MemorySample) -> ReleaseQuestion:
    """Where parked servers keep less than was thought, less use is expected, and more is needed.

    More for one that wakes: it has not what it was taken to keep.
    """
    placement = draft.running_switch().start.placement
    if placement is None or not draft.snapshot.parked():
        return question
    device, before_bytes = question.device, _kept_by_others(draft, question.device)
    recount_kept(draft, sample, placement)
    less_bytes = before_bytes - _kept_by_others(draft, device)
    expect_less_use(draft, Footprint.of({device: less_bytes}))
    baseline = _baseline_of(draft, device)
    question = replace(
        question,
        need_bytes=_need_of(draft, placement).on(device),
        baseline_used_bytes=baseline.used_bytes if baseline else None,
        own_baseline_bytes=_own_baseline(draft, placement, device),
    )
    draft.set_switch("gate", question=question)
    return question


def _kept_by_others(draft: Draft, device: str) -> int:
    """Return what those keep of a device that were parked before the running switch."""
    own = parked_by_switch(draft)
    return sum(b.footprint.on(device) for b in draft.snapshot.parked() if b not in own)


def _is_new(
    question: ReleaseQuestion, samples: tuple[MemorySample, ...], sample: MemorySample
) -> bool:
    """Whether the reading is of this device, from after the question and the last reading.

    A reading from before the old backend was reaped, or one that comes twice, proves nothing.
    """
    is_later = not samples or sample.taken_at > samples[-1].taken_at
    return sample.device == question.device and sample.taken_at >= question.asked_at and is_later


def _retry_or_refuse(draft: Draft, question: ReleaseQuestion, reason: str) -> GateDecision | None:
    """Telemetry that cannot be read confirms nothing: ask again until the time is over."""
    decision = judge_late(question, draft.at, reason)
    if decision.state is not GateState.WAITING:
        return _decide(draft, decision)
    draft.set_switch("gate", reason=reason, next_sample_at=draft.at + MAX_SAMPLE_PAUSE_S)
    return None


def _decide(draft: Draft, decision: GateDecision) -> GateDecision:
    """Close the question: a reading that comes later belongs to nobody."""
    draft.set_switch("gate", reason=decision.reason, question=None)
    return decision
