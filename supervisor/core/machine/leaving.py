"""How backends leave: admission closed, requests ended, stopped or parked; for or behind a target.

What must give way to a target drains and stops before it starts. What it replaces, where both have
room, retires: it goes on serving until the target is ready, and ends its requests afterwards.
"""

from collections.abc import Sequence
from math import inf

from msgspec.structs import replace

from supervisor.core.machine.commands import ReleaseMemory
from supervisor.core.machine.confirming import expect_use
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import BackendParked, ReleaseBegun
from supervisor.core.machine.parking import PARK_TIMEOUT_S, is_awaited, over_the_limit
from supervisor.core.machine.recovery import note_lost, note_stall
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.saving import time_for_prompts_s
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import Switch
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Park,
    Parked,
    Placement,
    Refusal,
    Stop,
    Work,
)

REAP_TIMEOUT_S = 30.0
"""Seconds after SIGKILL in which a server must be reaped; longer means that the kernel holds it."""


def begin_to_leave(draft: Draft, leaving: tuple[Backend, ...]) -> None:
    """Close admission to what gives way, besides what has left for the switch before.

    What is on its way out already is not brought back.
    """
    switch = draft.running_switch()
    serving = tuple(b for b in leaving if b.state is BackendState.READY)
    for backend in leaving:
        if backend.state is BackendState.PARKED:  # it has nothing to drain
            stop_backend(draft, backend)
    draft.set_switch(
        "leaving",
        epochs=(*switch.leaving.epochs, *(b.epoch for b in leaving)),
        drain_deadline=drain_deadline(draft, leaving),
    )
    restored = (
        Placement(target=b.target, footprint=b.footprint, baselines=b.baselines) for b in serving
    )
    draft.set_switch("rollback", to_restore=(*switch.rollback.to_restore, *restored))
    expect_use(draft, leaving)
    for backend in serving:
        draft.move_backend(backend, BackendState.DRAINING)


def drain_deadline(draft: Draft, leaving: Sequence[Backend]) -> float:
    """Return when those that leave are late to end their requests, from now on."""
    return draft.at + max((b.target.patience.drain_timeout_s for b in leaving), default=0.0)


def leaving_backends(draft: Draft) -> list[Backend]:
    """Return what the running switch waits for: what leaves and is neither gone nor parked yet."""
    leaving = draft.running_switch().leaving.epochs
    there = [b for b in draft.snapshot.backends if b.epoch in leaving]
    return [b for b in there if b.state is not BackendState.PARKED]


def may_stop(draft: Draft) -> bool | Refusal:
    """Say whether what leaves is drained, or late and may be cut; or why the switch is given up."""
    switch = draft.running_switch()
    in_flight = sum(b.in_flight for b in leaving_backends(draft))
    if not in_flight:
        return True
    deadline, policy = switch.leaving.drain_deadline, switch.order.drain_policy
    if deadline is None or draft.at < deadline:
        return False
    if policy is DrainPolicy.WAIT:
        draft.set_switch("leaving", drain_deadline=None)
        for backend in leaving_backends(draft):
            if waits_without_end(draft.snapshot, backend):
                stop_backend(draft, backend)
        return False
    return _refuse_to_drain(in_flight) if policy is DrainPolicy.REFUSE else True


def is_hung(backend: Backend) -> bool:
    """Whether a server that serves is to be replaced, as nothing moves in it."""
    return backend.state is BackendState.READY and _ends_as_it_stalls(backend)


def replace_hung(draft: Draft, backend: Backend) -> None:
    """Stop a server in which nothing moves, to be started again; its requests wait for that."""
    hung = _departing(backend, is_replaced=True)
    draft.put_backend(hung)
    note_stall(draft, hung)
    stop_backend(draft, hung, is_replaced=True)


def waits_without_end(snapshot: Snapshot, backend: Backend) -> bool:
    """Whether a server hangs that is to be stopped then, and nothing bounds its drain."""
    if backend.state is not BackendState.DRAINING or not _ends_as_it_stalls(backend):
        return False
    switch = snapshot.switch
    is_leaving = switch is not None and backend.epoch in switch.leaving.epochs
    deadline = (
        switch.leaving.drain_deadline if switch and is_leaving else backend.departure.deadline
    )
    return deadline is None and snapshot.close_deadline is None


def _ends_as_it_stalls(backend: Backend) -> bool:
    return backend.stalled_s is not None and backend.target.patience.restart_on_stall


def stop_leaving(draft: Draft) -> None:
    """Stop or park what leaves; what retired may be stopping already."""
    parking = draft.running_switch().leaving.parking
    for backend in leaving_backends(draft):
        if backend.state is BackendState.DRAINING and backend.epoch in parking:
            _release(draft, backend, BackendState.PARKING, Park(keeps_prompts=True))
        elif backend.state is not BackendState.STOPPING:
            stop_backend(draft, backend, keeps_prompts=True)


def stop_parking(draft: Draft) -> bool:
    """Stop what is late to be parked; whether there was any."""
    parking = [b for b in leaving_backends(draft) if b.state is BackendState.PARKING]
    late = [b for b in parking if draft.at >= _release_deadline(b)]
    for backend in late:
        stop_backend(draft, backend)
    return bool(late)


def note_parked(draft: Draft, event: BackendParked) -> None:
    """The server has given its memory up: from now on it holds what it keeps, and no leases."""
    backend = draft.snapshot.backend(event.epoch)
    if backend is None or backend.state is not BackendState.PARKING:
        return  # it was stopped in the meantime
    draft.drop_leases(event.epoch)
    kept = event.kept.among(draft.snapshot.devices)
    moved = draft.move_backend(backend, BackendState.PARKED)
    draft.put_last(moved)  # by the baselines that it had
    draft.put_backend(
        replace(
            moved,
            footprint=kept,
            baselines=(),
            in_flight=0,
            work=Work(),
            stalled_s=None,
            parked=Parked(since=draft.at, host_bytes=kept.total_bytes),
        )
    )
    if draft.snapshot.switch is not None and event.prompts is not None:
        saved = draft.running_switch().notes.prompts_saved
        draft.set_switch("notes", prompts_saved=(*saved, event.prompts))
    keep_to_limit(draft)


def come_back(draft: Draft, parked: Backend) -> None:
    """A parked server is started again: if it left for this switch, that is over."""
    epochs = draft.running_switch().leaving.epochs
    draft.set_switch("leaving", epochs=tuple(e for e in epochs if e != parked.epoch))


def note_outdated(draft: Draft, outdated: frozenset[int]) -> None:
    """Other settings apply: these servers would be started otherwise now, and no others."""
    for backend in draft.snapshot.backends:
        is_outdated = backend.epoch in outdated
        if backend.is_outdated != is_outdated:
            draft.put_backend(replace(backend, is_outdated=is_outdated))


def keep_to_limit(draft: Draft) -> None:
    """Stop the parked servers that nothing would wake, and those that hold more than they may."""
    for backend in draft.snapshot.parked():
        if backend.is_outdated and not is_awaited(draft.snapshot, backend):
            stop_backend(draft, backend)
    for backend in over_the_limit(draft.snapshot):
        stop_backend(draft, backend)


def stay(draft: Draft) -> None:
    """The switch is given up: what should have left admits again, what is gone is brought back."""
    draining = [b for b in leaving_backends(draft) if b.state is BackendState.DRAINING]
    staying = [b for b in draining if not b.departure.is_retiring]
    for backend in staying:
        ready = draft.move_backend(backend, BackendState.READY)
        if is_hung(ready):
            replace_hung(draft, ready)
    there = {b.target.model for b in staying}
    for lost in draft.running_switch().rollback.to_restore:
        if lost.target.model not in there:
            reason = f"the server of '{lost.target.model}' ended for a switch that was given up"
            note_lost(draft, lost.target, reason)


def reap_deadline(snapshot: Snapshot, switch: Switch) -> float:
    """Return when what the running switch stops must be gone, or the next that it parks parked.

    What could not be parked in time is stopped then, and has its time from there on. What was
    stopping before the phase began has as much time in it as the others.
    """
    leaving = [b for b in snapshot.backends if b.epoch in switch.leaving.epochs]
    parking = [_release_deadline(b) for b in leaving if b.state is BackendState.PARKING]
    if parking:
        return min(parking)
    graces_s = [b.target.patience.stop_grace_s for b in leaving]
    in_phase = switch.phase_started_at + max(graces_s, default=0.0) + REAP_TIMEOUT_S
    return max((in_phase, *map(_release_deadline, leaving)))


def note_release_begun(draft: Draft, event: ReleaseBegun) -> None:
    """Prompts are saved: from now on the server has its time to end, or to be parked."""
    backend = draft.snapshot.backend(event.epoch)
    if backend is not None and backend.state in {BackendState.STOPPING, BackendState.PARKING}:
        due_at = draft.at + _time_to_release_s(backend)
        draft.put_backend(_departing(backend, deadline=due_at))


def _departing(backend: Backend, **known: float | None) -> Backend:
    return replace(backend, departure=replace(backend.departure, **known))


def _release_deadline(backend: Backend) -> float:
    return -inf if backend.departure.deadline is None else backend.departure.deadline


def _time_to_release_s(backend: Backend) -> float:
    """Return what a server may take to give its memory up, once its prompts are saved."""
    if backend.state is BackendState.PARKING:
        return PARK_TIMEOUT_S
    return backend.target.patience.stop_grace_s + REAP_TIMEOUT_S


def not_reaped(there: Sequence[Backend]) -> Refusal:
    """Name the servers that we cannot end: the kernel holds them, usually in a driver."""
    named = ", ".join(f"'{b.target.model}' (pid {b.pid})" for b in there)
    return Refusal(
        code="backend_not_reaped",
        message=f"{named} cannot be ended: the kernel holds it, usually in a driver call, or it "
        "runs as another user; its memory is not free, and nothing is started on it. See the "
        "controller's log and dmesg; a reboot may be needed",
        details=(("pids", tuple(str(b.pid) for b in there)),),
    )


def retire_replaced(draft: Draft) -> None:
    """The target serves: what it replaces admits nothing more, and stops behind it."""
    switch = draft.running_switch()
    for backend in draft.snapshot.backends:
        if backend.epoch in switch.leaving.behind and not backend.departure.is_retiring:
            is_cut = switch.order.drain_policy is DrainPolicy.CANCEL
            deadline = draft.at + backend.target.patience.drain_timeout_s if is_cut else None
            retiring = _departing(backend, is_retiring=True, deadline=deadline)
            draft.put_backend(retiring)
            if retiring.state is BackendState.READY:
                draft.move_backend(retiring, BackendState.DRAINING)
    advance_retiring(draft)


def advance_retiring(draft: Draft) -> None:
    """Stop what retires and is drained, or late."""
    for backend in draft.snapshot.backends:
        if backend.departure.is_retiring and backend.state is BackendState.DRAINING:
            deadline = backend.departure.deadline
            is_late = deadline is not None and draft.at >= deadline
            if is_late or not backend.in_flight:
                stop_backend(draft, backend, keeps_prompts=True)


def stop_backend(
    draft: Draft, backend: Backend, *, keeps_prompts: bool = False, is_replaced: bool = False
) -> None:
    """Order the stop of a backend."""
    how = Stop(
        grace_s=backend.target.patience.stop_grace_s,
        keeps_prompts=keeps_prompts,
        is_replaced=is_replaced,
    )
    _release(draft, replace(backend, parked=None), BackendState.STOPPING, how)


def _release(draft: Draft, backend: Backend, state: BackendState, how: Stop | Park) -> None:
    """Order that a backend gives its memory up.

    Until it is known to have begun, it has the time in addition that its prompts may take, which
    are no larger than all that it holds.
    """
    moved = draft.move_backend(backend, state)
    size_bytes = backend.footprint.total_bytes
    saving_s = time_for_prompts_s(size_bytes) if how.keeps_prompts else 0.0
    due_at = draft.at + saving_s + _time_to_release_s(moved)
    draft.put_backend(_departing(moved, deadline=due_at))
    draft.commands.append(ReleaseMemory(epoch=backend.epoch, how=how))


def _refuse_to_drain(in_flight: int) -> Refusal:
    return Refusal(
        code="drain_refused",
        message=f"{in_flight} requests were still in flight when the drain deadline passed; the "
        "switch is given up, as drain_policy says (refuse)",
        details=(("in_flight", in_flight),),
    )
