"""Which backends a device carries at once, and which must give way to a new one."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.machine.memory import MemorySample, ReleaseQuestion
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, Device, SwitchRules, Target


class Plan(Struct, frozen=True, kw_only=True):
    """What gives way to a target, oldest first: before it starts, or once it serves."""

    leaving: tuple[Backend, ...] = ()
    retiring: tuple[Backend, ...] = ()


def plan_residency(
    snapshot: Snapshot, target: Target, need_bytes: int, memory: MemorySample | None
) -> Plan:
    """Choose the backends that give way to `target`.

    What it replaces (the same model with another profile; with `rules.replaces` all others) serves
    until the target is ready, where the device carries both at once: it is not exclusive, its
    budget holds them, and `memory`, a reading of it, shows the need and the margin free. Else it
    stops first. Of the others on the device as many stop first as must, the oldest before all, or
    all of them where it is exclusive.
    """
    device = snapshot.devices[target.device]
    replaced = [b for b in snapshot.backends if _is_replaced(b, target, snapshot.rules)]
    here = snapshot.sharing(device.name)
    elsewhere = tuple(b for b in replaced if b not in here)
    if _carries_both(device, here, target, need_bytes, memory):
        return Plan(retiring=oldest_first(replaced))
    leaving = [b for b in here if b in replaced]
    staying = [b for b in oldest_first(here) if b not in replaced]
    while staying and (
        device.is_exclusive or resident_bytes(staying) + need_bytes > device.budget_bytes
    ):
        leaving.append(staying.pop(0))
    return Plan(leaving=oldest_first(leaving), retiring=oldest_first(elsewhere))


def _is_replaced(backend: Backend, target: Target, rules: SwitchRules) -> bool:
    return rules.replaces or backend.target.model == target.model


def _carries_both(
    device: Device,
    here: Sequence[Backend],
    target: Target,
    need_bytes: int,
    memory: MemorySample | None,
) -> bool:
    """Whether the target may start beside all that is there. Unread memory carries nothing."""
    if device.is_exclusive or memory is None:
        return not here
    fits_budget = resident_bytes(here) + need_bytes <= device.budget_bytes
    return fits_budget and memory.free_bytes >= need_bytes + target.memory.margin_bytes


def oldest_first(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Sort backends by the order of their starts."""
    return tuple(sorted(backends, key=lambda b: b.epoch))


def resident_bytes(backends: Sequence[Backend]) -> int:
    """Sum of what the backends are accounted for."""
    return sum(b.need_bytes for b in backends)


def baselines_after(
    backends: Sequence[Backend], leaving: Sequence[Backend]
) -> tuple[tuple[str, int], ...]:
    """Use that each device should return to once `leaving` are gone, where that is known.

    That is the use before the first of them started, plus the need of those that were started
    after it and stay.
    """
    gone = {b.epoch for b in leaving}
    return tuple(
        (
            device,
            first.baseline_used_bytes
            + resident_bytes(
                [
                    b
                    for b in backends
                    if b.target.device == device and b.epoch > first.epoch and b.epoch not in gone
                ]
            ),
        )
        for device, first in _first_by_device(leaving).items()
        if first.baseline_used_bytes is not None
    )


def foreign_baselines_of(leaving: Sequence[Backend]) -> tuple[tuple[str, int], ...]:
    """Return what others held on each device before the first of `leaving` started there."""
    return tuple(
        (device, first.baseline_foreign_bytes)
        for device, first in _first_by_device(leaving).items()
        if first.baseline_foreign_bytes is not None
    )


def _first_by_device(backends: Sequence[Backend]) -> dict[str, Backend]:
    """Return the backend that started first on each device."""
    first: dict[str, Backend] = {}
    for backend in oldest_first(backends):
        first.setdefault(backend.target.device, backend)
    return first


def baseline_at_start(
    staying: Sequence[Backend], question: ReleaseQuestion, sample: MemorySample
) -> int:
    """Use that the device should return to once the backend that starts now is gone.

    `staying` are those on its device. The gate also opens while an old backend's memory is still
    held, if enough is free beside it. Such a reading is no baseline: the next switch would take
    that memory, held, for released. Then what the device was expected to return to stays valid.
    """
    expected = question.baseline_used_bytes
    newest = max(staying, key=lambda b: b.epoch, default=None)
    if expected is None and newest is not None and newest.baseline_used_bytes is not None:
        expected = newest.baseline_used_bytes + newest.need_bytes
    if expected is None or sample.used_bytes - expected <= question.policy.tolerance_bytes:
        return sample.used_bytes
    return expected


def without(backends: Sequence[Backend], epoch: int) -> tuple[Backend, ...]:
    """Drop the backend that is gone, and take its share out of the baselines of the others.

    Those on its device that started later read their baseline while it held memory. How much is
    measured, not estimated: it is the difference between its baseline and that of its successor.
    Without this, a later switch would find use `back` while somebody's memory is still held.
    """
    others = tuple(b for b in backends if b.epoch != epoch)
    gone = next((b for b in backends if b.epoch == epoch), None)
    if gone is None or gone.baseline_used_bytes is None:
        return others
    baselines = {
        b.epoch: b.baseline_used_bytes
        for b in others
        if b.target.device == gone.target.device
        and b.epoch > epoch
        and b.baseline_used_bytes is not None
    }
    if not baselines:
        return others
    share = max(0, baselines[min(baselines)] - gone.baseline_used_bytes)
    return tuple(
        replace(b, baseline_used_bytes=baselines[b.epoch] - share) if b.epoch in baselines else b
        for b in others
    )
