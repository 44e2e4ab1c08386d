"""Who is parked instead of stopped, which parked servers make way, and what they keep.

A parked server is no tenant: it serves nobody, so that it makes way for whatever else wants the
memory that it keeps, on its devices or the host. The one that has been parked for longest goes
first. What it keeps is measured when the gate opens, as what is used beyond the baseline, and is
its footprint from then on. The gate may open while its memory is on the way back: a later reading
that shows less corrects that, so that it is not taken to have what it still needs to wake.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec.structs import replace

from supervisor.core.machine.draft import Draft
from supervisor.core.machine.footprint import Baseline, Footprint, baseline_on
from supervisor.core.machine.memory import (
    HolderRole,
    MemorySample,
    ReleaseQuestion,
    growth_of_others,
)
from supervisor.core.machine.packing import resident_bytes
from supervisor.core.machine.preflight import room_after
from supervisor.core.machine.residency import Plan, baselines_after
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import ParkedReport
from supervisor.core.machine.values import Backend, BackendState, Phase, Placement, Target

PARK_TIMEOUT_S = 60.0
"""Seconds in which a server must have given its memory up; then it is stopped. Copying to memory
that has yet to be pinned goes at one to some GB a second."""

UNPROVED_PAUSE_S = 1800.0
"""Seconds for which a server is stopped instead of parked after its release was not proved. A
failed attempt costs the gate's time and a start; where the driver keeps the memory, every one
fails."""


def host_of(snapshot: Snapshot) -> str | None:
    """Name the device that is the host's memory; None where there is none to account for."""
    hosts = (d.name for d in snapshot.devices.values() if d.is_host_memory)
    return next((name for name in hosts if snapshot.devices[name].pool in {"", name}), None)


def devices_to_judge_by(snapshot: Snapshot) -> tuple[str, ...]:
    """Return what is read besides a target's devices: the host, where somebody may be parked."""
    host = host_of(snapshot)
    parks = any(b.target.parks and b.state is BackendState.READY for b in snapshot.backends)
    return () if host is None or not parks else (host,)


def still_needed(need: Footprint, parked: Backend | None) -> Footprint:
    """Return what a start takes beyond what the parked server that it wakes keeps already."""
    if parked is None:
        return need
    kept = parked.footprint
    return Footprint(shares=tuple((d, max(0, size - kept.on(d))) for d, size in need.shares))


def plan_parking(  # noqa: PLR0913, PLR0917 - what is held against what
    snapshot: Snapshot,
    target: Target,
    need: Footprint,
    plan: Plan,
    readings: Sequence[MemorySample],
    at: float,
) -> Plan:
    """Add to a plan which parked servers make way, and which of those that leave are parked.

    `need` is what the target still takes. Parked ones make way where they are of its model and not
    what it wakes, and, the longest parked first, as long as a device is too small otherwise.
    """
    memory = {reading.device: reading for reading in readings}
    own = snapshot.parked_of(target)
    others = [b for b in snapshot.parked() if b is not own]
    leaving = [*plan.leaving, *(b for b in others if b.target.model == target.model)]
    others = [b for b in others if b not in leaving]
    while others and _is_short(snapshot, target, need, leaving, memory):
        leaving.append(others.pop(0))
    parking: list[Backend] = []
    for backend in (b for b in plan.leaving if _is_proved(snapshot, b, at)):
        room_for = _making_room(snapshot, backend, target, need, leaving, memory, parking)
        if room_for is not None:
            leaving += room_for
            parking.append(backend)
    return replace(plan, leaving=tuple(leaving), parking=tuple(parking))


def _is_short(
    snapshot: Snapshot,
    target: Target,
    need: Footprint,
    leaving: Sequence[Backend],
    memory: dict[str, MemorySample],
) -> bool:
    """Whether a device would be too small once `leaving` are gone, and a parked server is on it."""
    staying = [b for b in snapshot.backends if b not in leaving]
    for device, need_bytes in need.shares:
        if not any(b.footprint.on(*snapshot.pool(device)) for b in snapshot.parked()):
            continue
        known = snapshot.devices[device]
        if resident_bytes(snapshot, staying, device) + need_bytes > known.budget_bytes:
            return True
        if device in memory:
            room_bytes, _ = room_after(snapshot, known, leaving, memory[device])
            if room_bytes < need_bytes + target.memory.margin_bytes:
                return True
    return False


def _making_room(  # noqa: PLR0913, PLR0917 - what is held against what
    snapshot: Snapshot,
    backend: Backend,
    target: Target,
    need: Footprint,
    leaving: Sequence[Backend],
    memory: dict[str, MemorySample],
    parking: Sequence[Backend],
) -> list[Backend] | None:
    """Return the parked servers that make way so that this one can be parked; None: it cannot."""
    host = host_of(snapshot)
    if host is None or not _may_park(snapshot, backend, target, host):
        return None
    if _keeps_too_much(snapshot, backend, need, leaving, memory):
        return None
    ours_bytes = sum(_expected_bytes(snapshot, b, host) for b in (*parking, backend))
    kept = [*leaving, snapshot.parked_of(target)]
    gone, others = list[Backend](), [b for b in snapshot.parked() if b not in kept]
    while not _host_carries(snapshot, host, ours_bytes, need, [*leaving, *gone], memory.get(host)):
        if not others:
            return None
        gone.append(others.pop(0))
    return gone


def _is_proved(snapshot: Snapshot, backend: Backend, at: float) -> bool:
    """Whether the last release of a server by parking was proved, or may be tried again."""
    return snapshot.scheduling.last_parking(backend.target).unproved_until <= at


def _may_park(snapshot: Snapshot, backend: Backend, target: Target, host: str) -> bool:
    """Whether parking is wanted, would free anything, and what is kept could be measured."""
    devices = [d for d in backend.footprint.devices if d != host]
    return (
        backend.target.parks
        and not backend.is_outdated
        and backend.state is BackendState.READY
        and backend.target.model != target.model
        and bool(devices)
        and all(backend.baseline(d) and not snapshot.devices[d].is_host_memory for d in devices)
    )


def _keeps_too_much(
    snapshot: Snapshot,
    backend: Backend,
    need: Footprint,
    leaving: Sequence[Backend],
    memory: dict[str, MemorySample],
) -> bool:
    """Whether what it kept the last time would be in the target's way."""
    kept = snapshot.scheduling.last_parking(backend.target).kept or Footprint()
    staying = [b for b in snapshot.backends if b not in leaving]
    for device, need_bytes in need.shares:
        kept_bytes = kept.on(*snapshot.pool(device))
        taken_bytes = resident_bytes(snapshot, staying, device) + need_bytes + kept_bytes
        known = snapshot.devices[device]
        if not kept_bytes:
            continue
        if taken_bytes > known.budget_bytes:
            return True
        if device in memory:
            room_bytes, _ = room_after(snapshot, known, leaving, memory[device])
            if room_bytes < need_bytes + kept_bytes:
                return True
    return False


def _expected_bytes(snapshot: Snapshot, backend: Backend, host: str) -> int:
    """Return the host memory that it will hold: as stated, as the last time, or all that it has."""
    if backend.target.parked_bytes is not None:
        return backend.target.parked_bytes
    kept = snapshot.scheduling.last_parking(backend.target).kept
    if kept is not None:
        return kept.on(host)
    return backend.footprint.total_bytes - backend.footprint.on(host)


def _host_carries(  # noqa: PLR0913, PLR0917 - what is held against what
    snapshot: Snapshot,
    host: str,
    more_bytes: int,
    need: Footprint,
    gone: Sequence[Backend],
    memory: MemorySample | None,
) -> bool:
    """Whether the host has room for so much more of parked memory, once some servers are gone."""
    staying = [b for b in snapshot.backends if b not in gone]
    limit_bytes = snapshot.rules.parked_max_bytes
    held_bytes = sum(b.parked.host_bytes for b in staying if b.parked)
    if limit_bytes is not None and held_bytes + more_bytes > limit_bytes:
        return False
    wanted_bytes = need.on(*snapshot.pool(host)) + more_bytes
    budget_bytes = snapshot.devices[host].budget_bytes
    if resident_bytes(snapshot, staying, host) + wanted_bytes > budget_bytes:
        return False
    freed_bytes = sum(b.parked.host_bytes for b in gone if b.parked)
    return memory is not None and memory.free_bytes + freed_bytes >= wanted_bytes


def measure_kept(draft: Draft, question: ReleaseQuestion, sample: MemorySample) -> ReleaseQuestion:
    """Count what those keep on a device that the running switch has parked: it has just passed.

    Returns the question with that much more of expected use: it stays, so that it belongs to the
    baseline of what starts now.
    """
    parked, baseline_bytes = parked_by_switch(draft), question.baseline_used_bytes
    if baseline_bytes is None or not question.is_measured:
        return question
    grown_bytes = growth_of_others(question.baseline_foreign_bytes, sample)
    left_bytes = max(0, sample.used_bytes - baseline_bytes - grown_bytes)
    for backend in parked:
        if not is_unmeasured(draft, backend, question.device):
            continue
        kept_bytes = min(left_bytes, _share_before(draft, backend).on(question.device))
        _note_kept(draft, backend, _baseline(question, baseline_bytes, sample), kept_bytes)
        left_bytes -= kept_bytes
        baseline_bytes += kept_bytes
    return replace(question, baseline_used_bytes=baseline_bytes)


def recount_kept(draft: Draft, sample: MemorySample, waking: Placement) -> None:
    """Count what parked servers keep of a device by a reading of it: less, where it shows less.

    More only where the driver lists it, for one that was taken for less while others gave memory
    back: for the one that is to be woken, and before a switch is planned, so that it can make way.
    One that is not listed is passed over while others are on the device that came after it, for
    what they take is an estimate; but not where it is about to be woken: it must not be taken to
    have what it does not.
    """
    device, backends = sample.device, draft.snapshot.backends
    is_planned = draft.running_switch().phase is Phase.PREFLIGHT
    ours = sample.held_by(HolderRole.CHILD)
    listed = {h.pid: h.used_bytes for h in ours if h.used_bytes is not None}
    for backend in draft.snapshot.parked():
        baseline = baseline_on(baselines_after(backends, [backend]), device)
        if baseline is None:
            continue
        grown_bytes = growth_of_others(baseline.foreign_bytes, sample)
        left_bytes = max(0, sample.used_bytes - baseline.used_bytes - grown_bytes)
        most_bytes = backend.footprint.on(device)
        is_waking = backend.target.is_same(waking.target)
        behind = backends[backends.index(backend) + 1 :]
        if backend.pid in listed:
            left_bytes = listed[backend.pid]
            if is_waking:
                most_bytes = max(most_bytes, waking.footprint.on(device))
            elif is_planned:
                most_bytes += _unaccounted(draft.snapshot, device)
        elif (is_planned or not is_waking) and any(b.footprint.on(device) for b in behind):
            continue
        kept_bytes = min(most_bytes, left_bytes)
        if kept_bytes != backend.footprint.on(device):
            others = (share for share in backend.footprint.shares if share[0] != device)
            _put_kept(draft, backend, Footprint(shares=(*others, (device, kept_bytes))))


def _unaccounted(snapshot: Snapshot, device: str) -> int:
    taken_bytes = resident_bytes(snapshot, snapshot.backends, device)
    return max(0, snapshot.devices[device].budget_bytes - taken_bytes)


def _baseline(question: ReleaseQuestion, used_bytes: int, sample: MemorySample) -> Baseline:
    grown_bytes = growth_of_others(question.baseline_foreign_bytes, sample)
    return Baseline(
        device=question.device,
        used_bytes=used_bytes + grown_bytes,
        foreign_bytes=sample.foreign_bytes,
    )


def _note_kept(draft: Draft, backend: Backend, baseline: Baseline, kept_bytes: int) -> None:
    kept = Footprint(shares=(*backend.footprint.shares, (baseline.device, kept_bytes)))
    _put_kept(draft, replace(backend, baselines=(*backend.baselines, baseline)), kept)


def _put_kept(draft: Draft, backend: Backend, kept: Footprint) -> None:
    """Note what a parked server keeps: now, and for the next time that it is to be parked."""
    _note_parking(draft, backend, kept=kept)
    draft.put_backend(replace(backend, footprint=kept))


def is_unmeasured(draft: Draft, backend: Backend, device: str) -> bool:
    """Whether it is not known yet what a server that the switch has parked keeps of a device."""
    return backend.baseline(device) is None and _share_before(draft, backend).on(device) > 0


def _share_before(draft: Draft, backend: Backend) -> Footprint:
    """Return what it was accounted for while it served."""
    restored = draft.running_switch().rollback.to_restore
    served = (p.footprint for p in restored if p.target.is_same(backend.target))
    return next(served, Footprint())


def parked_by_switch(draft: Draft) -> tuple[Backend, ...]:
    """Return the servers that the running switch has parked."""
    epochs = draft.running_switch().leaving.epochs
    return tuple(b for b in draft.snapshot.parked() if b.epoch in epochs)


def note_unproved(draft: Draft) -> None:
    """The release of what the running switch has parked was not proved: stop it for a while.

    Whether it keeps more than may be, or a stranger has taken that, cannot be told; the next
    attempt will show.
    """
    for backend in parked_by_switch(draft):
        _note_parking(draft, backend, unproved_until=draft.at + UNPROVED_PAUSE_S)


def _note_parking(draft: Draft, backend: Backend, **facts: Any) -> None:
    scheduling, target = draft.snapshot.scheduling, backend.target
    noted = replace(scheduling.last_parking(target), **facts)
    draft.set_scheduling(parkings=scheduling.parkings.set(target.identity, noted))


def over_budget(draft: Draft, device: str) -> tuple[Backend, ...]:
    """Return what the running switch has parked and keeps more of a device than its budget has.

    What a rollback brings back was there before, whatever its budget is by now.
    """
    snapshot, placement = draft.snapshot, draft.running_switch().start.placement
    if draft.running_switch().phase is not Phase.CONFIRMING:
        return ()
    own = None if placement is None else snapshot.parked_of(placement.target)
    coming_bytes = 0 if placement is None else still_needed(placement.footprint, own).on(device)
    taken_bytes = resident_bytes(snapshot, snapshot.backends, device) + coming_bytes
    if taken_bytes <= snapshot.devices[device].budget_bytes:
        return ()
    return tuple(b for b in parked_by_switch(draft) if b.footprint.on(device))


def report_parked(draft: Draft) -> None:
    """Note for the report what the running switch has parked, now that all of it is measured."""
    parked, host = parked_by_switch(draft), host_of(draft.snapshot)
    reports = tuple(
        ParkedReport(
            model=backend.target.model,
            host_bytes=backend.parked.host_bytes,
            device_bytes=sum(size for d, size in backend.footprint.shares if d != host),
        )
        for backend in parked
        if backend.parked is not None
    )
    draft.set_switch("notes", parked=reports)


def is_awaited(snapshot: Snapshot, parked: Backend) -> bool:
    """Whether the running switch counts on it as it is: to wake it, or for what it keeps."""
    switch = snapshot.switch
    if switch is None:
        return False
    if parked.epoch in switch.leaving.epochs and switch.phase is not Phase.STOPPING:
        return True
    targets = [switch.target]
    if switch.rollback.failure is not None:
        targets += [placement.target for placement in switch.rollback.to_restore]
    return any(t is not None and t.is_same(parked.target) for t in targets)


def over_the_limit(snapshot: Snapshot) -> Iterator[Backend]:
    """Yield the parked servers that must go, the one parked for longest first.

    So that the others keep to `parked_max_bytes`, and all that is there to the host's budget.
    """
    parked, host = snapshot.parked(), host_of(snapshot)
    held_bytes = sum(b.parked.host_bytes for b in parked if b.parked)
    over_bytes = 0
    if host is not None:
        staying = [b for b in snapshot.backends if b.state is not BackendState.STOPPING]
        taken_bytes = resident_bytes(snapshot, staying, host)
        over_bytes = taken_bytes - snapshot.devices[host].budget_bytes
    if snapshot.rules.parked_max_bytes is not None:
        over_bytes = max(over_bytes, held_bytes - snapshot.rules.parked_max_bytes)
    for backend in parked:
        if over_bytes <= 0:
            return
        if backend.parked is not None and not is_awaited(snapshot, backend):
            over_bytes -= backend.parked.host_bytes
            yield backend
