"""Which backends a device carries at once, and which must give way to a new one."""

from collections.abc import Sequence
from dataclasses import replace

from supervisor.core.memory import MemorySample, ReleaseQuestion, format_bytes
from supervisor.core.values import Backend, Device, Refusal, Snapshot, Target


def choose_leaving(
    snapshot: Snapshot, target: Target, need_bytes: int
) -> tuple[Backend, ...] | Refusal:
    """Choose the backends that must stop before `target` may start, oldest first.

    Those are: the same model with another profile; everything on an exclusive device; else the
    oldest ones until the rest and the target fit the device's budget together. A target that
    does not fit an empty device is refused, with the arithmetic.
    """
    device = snapshot.devices[target.device]
    if need_bytes > device.budget_bytes:
        return _too_big(target, device, need_bytes)
    same_model = [b for b in snapshot.backends if b.target.model == target.model]
    staying = [
        b
        for b in snapshot.backends
        if b.target.device == device.name and b.target.model != target.model
    ]
    leaving = list(same_model)
    staying.sort(key=lambda b: b.epoch)
    while staying and (
        device.is_exclusive or resident_bytes(staying) + need_bytes > device.budget_bytes
    ):
        leaving.append(staying.pop(0))
    return tuple(sorted(leaving, key=lambda b: b.epoch))


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
    first_by_device: dict[str, Backend] = {}
    for backend in sorted(leaving, key=lambda b: b.epoch):
        first_by_device.setdefault(backend.target.device, backend)
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
        for device, first in first_by_device.items()
        if first.baseline_used_bytes is not None
    )


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


def _too_big(target: Target, device: Device, need_bytes: int) -> Refusal:
    return Refusal(
        code="target_does_not_fit",
        message=f"'{target.model}' with profile '{target.profile}' needs about "
        f"{format_bytes(need_bytes)}, and {device.name} may carry "
        f"{format_bytes(device.budget_bytes)}; use a smaller ctx_size or parallel, or raise "
        f"devices.{device.name}.budget_bytes",
        details=(("need_bytes", need_bytes), ("budget_bytes", device.budget_bytes)),
    )
