"""Which backends a device carries at once, and which must give way to a new one."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.machine.footprint import Baseline, Footprint
from supervisor.core.machine.memory import MemorySample, ReleaseQuestion
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, SwitchRules, Target


class Plan(Struct, frozen=True, kw_only=True):
    """What gives way to a target, oldest first: before it starts, or once it serves."""

    leaving: tuple[Backend, ...] = ()
    retiring: tuple[Backend, ...] = ()


def plan_residency(
    snapshot: Snapshot, target: Target, footprint: Footprint, readings: Sequence[MemorySample]
) -> Plan:
    """Choose the backends that give way to `target`, which takes `footprint`.

    What it replaces (the same model with another profile; with `rules.replaces` all others) serves
    until the target is ready, where each device of the footprint carries both at once: it is not
    exclusive, its budget holds them, and a reading of it shows the need and the margin free. Else
    it stops first. Of the others there as many stop first as must, the oldest before all, or all of
    them on a device that is exclusive.
    """
    replaced = [b for b in snapshot.backends if _is_replaced(b, target, snapshot.rules)]
    here = snapshot.sharing(*footprint.devices)
    if all(
        _carries_both(snapshot, device, footprint, target, readings) for device in footprint.devices
    ):
        return Plan(retiring=oldest_first(replaced))
    leaving = [b for b in here if b in replaced]
    staying = [b for b in oldest_first(here) if b not in replaced]
    while crowded := _crowded(snapshot, staying, footprint):
        first = next(b for b in staying if b in snapshot.sharing(*crowded))
        staying.remove(first)
        leaving.append(first)
    elsewhere = [b for b in replaced if b not in here]
    return Plan(leaving=oldest_first(leaving), retiring=oldest_first(elsewhere))


def _is_replaced(backend: Backend, target: Target, rules: SwitchRules) -> bool:
    return rules.replaces or backend.target.model == target.model


def _carries_both(
    snapshot: Snapshot,
    name: str,
    footprint: Footprint,
    target: Target,
    readings: Sequence[MemorySample],
) -> bool:
    """Whether the target may start beside all that is there. Unread memory carries nothing."""
    device, here = snapshot.devices[name], snapshot.sharing(name)
    memory = next((reading for reading in readings if reading.device == name), None)
    if device.is_exclusive or memory is None:
        return not here
    need_bytes = footprint.on(name)
    fits_budget = resident_bytes(snapshot, here, name) + need_bytes <= device.budget_bytes
    return fits_budget and memory.free_bytes >= need_bytes + target.memory.margin_bytes


def _crowded(
    snapshot: Snapshot, staying: Sequence[Backend], footprint: Footprint
) -> tuple[str, ...]:
    """Return the devices that carry the footprint only without one more of those that stay."""

    def is_crowded(name: str) -> bool:
        device = snapshot.devices[name]
        there = [b for b in staying if b in snapshot.sharing(name)]
        taken_bytes = resident_bytes(snapshot, there, name) + footprint.on(name)
        return bool(there) and (device.is_exclusive or taken_bytes > device.budget_bytes)

    return tuple(name for name in footprint.devices if is_crowded(name))


def oldest_first(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Sort backends by the order of their starts."""
    return tuple(sorted(backends, key=lambda b: b.epoch))


def resident_bytes(snapshot: Snapshot, backends: Sequence[Backend], device: str) -> int:
    """Sum of what the backends are accounted for in the memory of a device."""
    pool = snapshot.pool(device)
    return sum(backend.footprint.on(*pool) for backend in backends)


def baselines_after(
    backends: Sequence[Backend], leaving: Sequence[Backend]
) -> tuple[Baseline, ...]:
    """Use that each device should return to once `leaving` are gone, where that is known.

    That is the use before the first of them started, plus the need of those that were started
    after it and stay. Others' part of it is what it was then.
    """
    gone = {b.epoch for b in leaving}
    found = []
    for device, first in _first_by_device(leaving).items():
        baseline = first.baseline(device)
        if baseline is None:
            continue
        later = [b for b in backends if b.epoch > first.epoch and b.epoch not in gone]
        staying_bytes = sum(b.footprint.on(device) for b in later)
        found.append(replace(baseline, used_bytes=baseline.used_bytes + staying_bytes))
    return tuple(found)


def _first_by_device(backends: Sequence[Backend]) -> dict[str, Backend]:
    """Return the backend that started first on each device."""
    first: dict[str, Backend] = {}
    for backend in oldest_first(backends):
        for device in backend.footprint.devices:
            first.setdefault(device, backend)
    return first


def baseline_at_start(
    snapshot: Snapshot, question: ReleaseQuestion, sample: MemorySample
) -> Baseline:
    """Use that the device should return to once the backend that starts now is gone.

    The gate also opens while an old backend's memory is still held, if enough is free beside it.
    Such a reading is not a baseline: the next switch would take that memory, held, for released.
    Then what the device was expected to return to stays valid.
    """
    device, expected = question.device, question.baseline_used_bytes
    newest = max(snapshot.sharing(device), key=lambda b: b.epoch, default=None)
    if expected is None and newest is not None:
        expected = _use_with(newest, snapshot.pool(device))
    is_back = expected is None or sample.used_bytes - expected <= question.policy.tolerance_bytes
    used_bytes = sample.used_bytes if is_back or expected is None else expected
    return Baseline(device=device, used_bytes=used_bytes, foreign_bytes=sample.foreign_bytes)


def _use_with(backend: Backend, pool: tuple[str, ...]) -> int | None:
    """Return the use of a memory right after a backend took its share, where that is known."""
    before = next((b for device in pool if (b := backend.baseline(device))), None)
    return None if before is None else before.used_bytes + backend.footprint.on(*pool)


def without(backends: Sequence[Backend], epoch: int) -> tuple[Backend, ...]:
    """Drop the backend that is gone, and take its shares out of the baselines of the others.

    Those on a device of its that started later read their baseline while it held memory. How much
    is measured, not estimated: it is the difference between its baseline and that of its successor.
    Without this, a later switch would find use `back` while somebody's memory is still held.
    """
    others = tuple(b for b in backends if b.epoch != epoch)
    gone = next((b for b in backends if b.epoch == epoch), None)
    for baseline in gone.baselines if gone is not None else ():
        others = _without_share(others, epoch, baseline)
    return others


def _without_share(
    others: tuple[Backend, ...], epoch: int, baseline: Baseline
) -> tuple[Backend, ...]:
    later = [b for b in others if b.epoch > epoch and b.baseline(baseline.device)]
    if not later:
        return others
    next_up = min(later, key=lambda b: b.epoch).baseline(baseline.device)
    share = max(0, next_up.used_bytes - baseline.used_bytes) if next_up else 0
    return tuple(_lowered(b, baseline.device, share) if b in later else b for b in others)


def _lowered(backend: Backend, device: str, share_bytes: int) -> Backend:
    baselines = tuple(
        replace(b, used_bytes=b.used_bytes - share_bytes) if b.device == device else b
        for b in backend.baselines
    )
    return replace(backend, baselines=baselines)
