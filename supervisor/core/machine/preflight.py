"""Whether a target would fit once what gives way is gone; asked before anything is touched."""

from collections.abc import Sequence

from supervisor.core.byte_size import format_bytes
from supervisor.core.machine.events import TargetAccepted
from supervisor.core.machine.footprint import baseline_on
from supervisor.core.machine.memory import (
    HolderRole,
    MemorySample,
    OnUnconfirmed,
    growth_of_others,
)
from supervisor.core.machine.packing import capacity_of, died_just_now, resident_bytes
from supervisor.core.machine.residency import Plan, baselines_after
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, Device, Refusal, Target, TargetNeed
from supervisor.core.sizing.fitting import mildest_fitting


def refuse_unread(target: Target, accepted: TargetAccepted, need: TargetNeed) -> Refusal | None:
    """Return why nothing may be stopped for the target: a device of it cannot be read; else None.

    A release could not be confirmed, neither for the target nor for what it would replace.
    """
    if accepted.memory_problem is None:
        return None
    if target.memory.on_unconfirmed is not OnUnconfirmed.REFUSE:
        return None
    read = {reading.device for reading in accepted.readings}
    missing = [d for d in (target.device, *need.footprint.devices) if d not in read]
    if not missing:
        return None
    unread = missing[0]
    return Refusal(
        code="telemetry_lost",
        message=f"{unread} cannot be read: {accepted.memory_problem}; nothing is stopped or "
        "started on it until it can, or memory.on_unconfirmed is proceed",
    )


def refuse_what_cannot_fit(
    snapshot: Snapshot,
    target: Target,
    need: TargetNeed,
    plan: Plan,
    readings: Sequence[MemorySample],
) -> Refusal | None:
    """Return why the target can never start as things stand, with the arithmetic; else None.

    It is held against the operator's budget, and against what telemetry says will be free. The
    margin is left to the release gate, which also confirms where memory is tight but back. Right
    after a death, also of what a killed controller left, nothing can be said but what others hold:
    the driver may still give memory back.
    """
    by_device = {reading.device: reading for reading in readings}
    refusals = (
        _refuse_on(snapshot, snapshot.devices[name], target, need, plan, by_device.get(name))
        for name in need.footprint.devices
    )
    return next((refusal for refusal in refusals if refusal is not None), None)


def refuse_for_the_pinned(
    snapshot: Snapshot,
    target: Target,
    need: TargetNeed,
    plan: Plan,
    readings: Sequence[MemorySample],
) -> Refusal | None:
    """Return that pinned models leave the target no room, and which ones; None where they do."""
    if not plan.in_the_way:
        return None
    footprint = need.footprint
    named = ", ".join(f"'{backend.target.model}'" for backend in plan.in_the_way)
    room = {}
    for name in footprint.devices:
        device = snapshot.devices[name]
        there = [b for b in plan.in_the_way if b in snapshot.sharing(name)]
        left_bytes = capacity_of(snapshot, name, target, readings) - target.memory.margin_bytes
        left_bytes -= resident_bytes(snapshot, there, name)
        if there:
            room[name] = 0 if device.is_exclusive else max(0, left_bytes)
    short = min(room, key=lambda name: room[name] - footprint.on(name))
    fitting = mildest_fitting(need.alternatives, room[short]) if short == target.device else ()
    would = "; ".join(f"{a.setting} needs {format_bytes(a.need_bytes)}" for a in fitting)
    advice = f"it would fit with {would}; or " if would else ""
    return Refusal(
        code="pinned_in_the_way",
        message=f"'{target.model}' with profile '{target.profile}' needs about "
        f"{format_bytes(footprint.on(short))} of {short}, where {named} stays (pinned) and leaves "
        f"{format_bytes(room[short])}; {advice}unload {named} by its name (POST /unload), or take "
        "`pinned` from it in models.yaml",
        details=(
            ("pinned", tuple(backend.target.model for backend in plan.in_the_way)),
            ("need_bytes", footprint.on(short)),
            ("available_bytes", room[short]),
            ("fits_with", tuple(a.setting for a in fitting)),
        ),
    )


def _refuse_on(  # noqa: PLR0913, PLR0917 - what is held against what
    snapshot: Snapshot,
    device: Device,
    target: Target,
    need: TargetNeed,
    plan: Plan,
    memory: MemorySample | None,
) -> Refusal | None:
    need_bytes = need.footprint.on(device.name)
    if need_bytes > device.budget_bytes:
        carries = f"{device.name} may carry {format_bytes(device.budget_bytes)}"
        remedy = f"raise devices.{device.name}.budget_bytes"
        return _refusal(target, need, device, device.budget_bytes, carries, remedy)
    if memory is None:
        return None
    if not died_just_now(snapshot, target, memory):
        # Whether the pinned are to blame is asked afterwards: as if all were gone.
        gone = snapshot.sharing(device.name) if plan.in_the_way else plan.leaving
        room_bytes, arithmetic = room_after(snapshot, device, gone, memory)
    elif memory.foreign_bytes is not None:
        room_bytes = memory.total_bytes - memory.foreign_bytes
        arithmetic = f"{device.name} has {format_bytes(room_bytes)} beside what others hold"
    else:
        return None
    if need_bytes <= room_bytes:
        return None
    others = memory.held_by(HolderRole.FOREIGN, HolderRole.UNSEEN)[:3]
    named = f": {', '.join(holder.describe() for holder in others)}" if others else ""
    remedy = f"free memory that others hold{named}"
    return _refusal(target, need, device, room_bytes, arithmetic, remedy)


def room_after(
    snapshot: Snapshot, device: Device, leaving: Sequence[Backend], memory: MemorySample
) -> tuple[int, str]:
    """Return the bytes that will be free once `leaving` are gone, and how that is computed.

    Either what is free now and their needs, or all but the use from before they started: the
    larger of both, because a need is an estimate, and use from long ago may be others' by now.
    Where it is known what others hold, their change since then is added.
    """
    room_bytes = memory.free_bytes + resident_bytes(snapshot, leaving, device.name)
    baseline = baseline_on(baselines_after(snapshot.backends, leaving), device.name)
    if baseline is not None:
        used_bytes = baseline.used_bytes + growth_of_others(baseline.foreign_bytes, memory)
        room_bytes = max(room_bytes, memory.total_bytes - used_bytes)
    room_bytes = min(room_bytes, memory.total_bytes)
    arithmetic = f"{device.name} has {format_bytes(memory.free_bytes)} free"
    if leaving:
        names = ", ".join(f"'{b.target.model}'" for b in leaving)
        arithmetic += f", and {format_bytes(room_bytes)} once {names} has stopped"
    return room_bytes, arithmetic


def _refusal(  # noqa: PLR0913, PLR0917 - what the sentence is made of
    target: Target,
    need: TargetNeed,
    device: Device,
    room_bytes: int,
    arithmetic: str,
    remedy: str,
) -> Refusal:
    need_bytes = need.footprint.on(device.name)
    is_own = device.name == target.device  # how the need there comes about is known, and its like
    fitting = mildest_fitting(need.alternatives, room_bytes) if is_own else ()
    would = "; ".join(f"{a.setting} needs {format_bytes(a.need_bytes)}" for a in fitting)
    advice = f"it would fit with {would}" if would else "no smaller setting makes it fit"
    explained = f" ({need.explanation})" if need.explanation else ""
    if not is_own:
        advice = "put less of it there (tensor_split, n_gpu_layers)"
        explained = f" of {device.name}"
    return Refusal(
        code="target_does_not_fit",
        message=f"'{target.model}' with profile '{target.profile}' needs about "
        f"{format_bytes(need_bytes)}{explained}, and {arithmetic}; {advice}; or {remedy}",
        details=(
            ("need_bytes", need_bytes),
            ("available_bytes", room_bytes),
            ("fits_with", tuple(a.setting for a in fitting)),
        ),
    )
