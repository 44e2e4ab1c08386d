"""Which backends a device carries at once, and which must give way to a new one."""

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.machine.footprint import Baseline, Footprint
from supervisor.core.machine.memory import MemorySample, ReleaseQuestion, growth_of_others
from supervisor.core.machine.packing import Cost, cheapest_to_leave, fits_with
from supervisor.core.machine.rules import SwitchRules
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, Target


class Plan(Struct, frozen=True, kw_only=True):
    """What gives way to a target, oldest first: before it starts, or once it serves.

    `cost` is what it costs that others than those it replaces leave. `in_the_way` are pinned ones
    that leave it no room: then nobody leaves, and it cannot start. Of those that leave, `parking`
    are parked and not stopped.
    """

    leaving: tuple[Backend, ...] = ()
    parking: tuple[Backend, ...] = ()
    retiring: tuple[Backend, ...] = ()
    in_the_way: tuple[Backend, ...] = ()
    cost: Cost = Cost()


def plan_residency(
    snapshot: Snapshot,
    target: Target,
    footprint: Footprint,
    readings: Sequence[MemorySample],
    at: float,
) -> Plan:
    """Choose the backends that give way to `target`, which takes `footprint`.

    What it replaces (the same model with another profile; with `rules.replaces` all others that are
    neither pinned nor twins) serves until the target is ready, where each device of the footprint
    carries both at once: it is not exclusive, and a reading of it shows room for the need and the
    margin. Else it stops first. Of the others there the cheapest set stops first without which the
    rest fits, idle ones before those that work, and never a pinned one.
    """
    replaced = [b for b in snapshot.tenants() if _is_replaced(b, target, snapshot.rules)]
    here = snapshot.sharing(*footprint.devices)
    fits = fits_with(snapshot, target, footprint, readings)
    if _shows_room(snapshot, target, footprint, readings) and fits(here):
        return Plan(retiring=oldest_first(replaced))
    others = [b for b in here if b not in replaced]
    pinned = [b for b in others if snapshot.rules.of(b.target).is_pinned]
    movable = [b for b in others if b not in pinned]
    chosen = cheapest_to_leave(snapshot, movable, lambda staying: fits([*pinned, *staying]), at)
    if chosen is None:
        return Plan(in_the_way=oldest_first(pinned))
    leaving = [*chosen[0], *(b for b in replaced if b in here)]
    elsewhere = [b for b in replaced if b not in here]
    return Plan(leaving=oldest_first(leaving), retiring=oldest_first(elsewhere), cost=chosen[1])


def _is_replaced(backend: Backend, target: Target, rules: SwitchRules) -> bool:
    if backend.target.model == target.model:
        return True
    if not rules.replaces or target.is_twin or backend.target.is_twin:
        return False
    return not rules.of(backend.target).is_pinned


def _shows_room(
    snapshot: Snapshot, target: Target, footprint: Footprint, readings: Sequence[MemorySample]
) -> bool:
    """Whether readings show room beside all that is there; unread memory carries nothing more."""
    free = {reading.device: reading.free_bytes for reading in readings}
    return all(
        not snapshot.sharing(name)
        or free.get(name, 0) >= footprint.on(name) + target.memory.margin_bytes
        for name in footprint.devices
    )


def oldest_first(backends: Sequence[Backend]) -> tuple[Backend, ...]:
    """Sort backends by the order of their starts."""
    return tuple(sorted(backends, key=lambda b: b.epoch))


def baselines_after(
    backends: Sequence[Backend], leaving: Sequence[Backend]
) -> tuple[Baseline, ...]:
    """Use that each device should return to once `leaving` are gone, where that is known.

    That is the use before the first of them started, plus the need of those that were started
    after it and stay. Others' part of it is what it was then.
    """
    gone = {b.epoch for b in leaving}
    epochs = [b.epoch for b in backends]
    found = []
    for device, first in _first_by_device([b for b in backends if b.epoch in gone]).items():
        baseline = first.baseline(device)
        if baseline is None:
            continue
        behind = backends[epochs.index(first.epoch) + 1 :]
        later = [b for b in behind if b.epoch not in gone]
        staying_bytes = sum(b.footprint.on(device) for b in later)
        others = sum(device in b.footprint.devices for b in leaving) - 1
        found.append(
            replace(
                baseline,
                used_bytes=baseline.used_bytes + staying_bytes,
                exits=baseline.exits + others,
            )
        )
    return tuple(found)


def _first_by_device(backends: Sequence[Backend]) -> dict[str, Backend]:
    """Return the backend that was first on each device, of some in the snapshot's order."""
    first: dict[str, Backend] = {}
    for backend in backends:
        for device in backend.footprint.devices:
            first.setdefault(device, backend)
    return first


def baseline_at_start(
    snapshot: Snapshot, question: ReleaseQuestion, sample: MemorySample
) -> Baseline:
    """Use that the device should return to once the backend that starts now is gone.

    The gate also opens while an old backend's memory is still held, if enough is free beside it.
    Such a reading is not a baseline: the next switch would take that memory, held, for released.
    Then what the device was expected to return to stays valid, and what the driver keeps of the
    old backend has not been seen yet.
    """
    expected = expected_use(snapshot, question, sample)
    if expected is None or sample.used_bytes - expected <= question.allowed_bytes:
        expected, exits = sample.used_bytes, 0
    else:
        exits = question.baseline_exits + 1
    return Baseline(
        device=question.device,
        used_bytes=expected,
        foreign_bytes=sample.foreign_bytes,
        exits=exits,
    )


def expected_use(snapshot: Snapshot, question: ReleaseQuestion, sample: MemorySample) -> int | None:
    """Return the use of a device that what is there and others explain; None: not known."""
    used_bytes, foreign_bytes = question.baseline_used_bytes, question.baseline_foreign_bytes
    if used_bytes is None:
        pool = snapshot.pool(question.device)
        there = [b for b in snapshot.backends if b.footprint.on(*pool)]
        before = _baseline_on(there[-1], pool) if there else None
        if before is None:
            return None
        used_bytes = before.used_bytes + there[-1].footprint.on(*pool)
        foreign_bytes = before.foreign_bytes
    return used_bytes + growth_of_others(foreign_bytes, sample)


def with_risen_floor(
    snapshot: Snapshot, question: ReleaseQuestion, sample: MemorySample
) -> tuple[Backend, ...]:
    """Return the backends with baselines as high as a device's use is without them by now.

    Those that stay for long were started from a floor that has risen since, with each server that
    ended beside them. By how much is known whenever the use is seen to be back.
    """
    expected = expected_use(snapshot, question, sample)
    if expected is None or sample.used_bytes - expected > question.allowed_bytes:
        return snapshot.backends
    risen_bytes = max(0, sample.used_bytes - expected)
    return tuple(_raised(b, question.device, risen_bytes) for b in snapshot.backends)


def _raised(backend: Backend, device: str, risen_bytes: int) -> Backend:
    if backend.baseline(device) is None:
        return backend
    baselines = tuple(
        replace(b, used_bytes=b.used_bytes + risen_bytes, exits=0) if b.device == device else b
        for b in backend.baselines
    )
    return replace(backend, baselines=baselines)


def _baseline_on(backend: Backend, pool: tuple[str, ...]) -> Baseline | None:
    return next((b for device in pool if (b := backend.baseline(device))), None)


def without(
    backends: Sequence[Backend], epoch: int, *, has_ended: bool = True
) -> tuple[Backend, ...]:
    """Drop the backend that is gone, and take its shares out of the baselines of the others.

    Those on a device of its that started later read their baseline while it held memory. How much
    is measured, not estimated: it is the difference between its baseline and that of its successor.
    Without this, a later switch would find use `back` while somebody's memory is still held.
    `has_ended` False: it gave memory up and lives on, of which no floor rises.
    """
    epochs = [b.epoch for b in backends]
    if epoch not in epochs:
        return tuple(backends)
    place = epochs.index(epoch)
    before, gone, later = tuple(backends[:place]), backends[place], tuple(backends[place + 1 :])
    for baseline in gone.baselines:
        later = _without_share(later, baseline)
        if has_ended:
            before = tuple(_with_exit(b, baseline.device) for b in before)
            later = tuple(_with_exit(b, baseline.device) for b in later)
    return (*before, *later)


def _without_share(later: tuple[Backend, ...], baseline: Baseline) -> tuple[Backend, ...]:
    there = [b for b in later if b.baseline(baseline.device)]
    if not there:
        return later
    next_up = there[0].baseline(baseline.device)
    share = max(0, next_up.used_bytes - baseline.used_bytes) if next_up else 0
    return tuple(_lowered(b, baseline.device, share) if b in there else b for b in later)


def _with_exit(backend: Backend, device: str) -> Backend:
    baselines = tuple(
        replace(b, exits=b.exits + 1) if b.device == device else b for b in backend.baselines
    )
    return replace(backend, baselines=baselines)


def _lowered(backend: Backend, device: str, share_bytes: int) -> Backend:
    baselines = tuple(
        replace(b, used_bytes=b.used_bytes - share_bytes) if b.device == device else b
        for b in backend.baselines
    )
    return replace(backend, baselines=baselines)
