"""Which request may use which backend, which waits in a line, which is refused."""

from collections.abc import Sequence

from msgspec.structs import replace

from supervisor.core.machine.commands import GrantLease, RefuseRequest
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import RequestArrived, SwitchRequested
from supervisor.core.machine.queues import (
    Kind,
    LineKey,
    Requests,
    join,
    leave_line,
    put_in_order,
)
from supervisor.core.machine.refusals import (
    SHUTTING_DOWN,
    not_live,
    outside_window,
    queue_full,
    refusal_after_setback,
)
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.twins import twin_for
from supervisor.core.machine.values import Backend, BackendState, Refusal, Target, Waiter
from supervisor.core.scheduling.values import Priority


def admit(draft: Draft, request: RequestArrived) -> None:
    """Grant the request a lease, let it wait in a line, or refuse it.

    One that may not wait and gets no lease leaves everything as it is. One that a twin is to serve
    asks for that from here on.
    """
    snapshot, target = draft.snapshot, request.target
    backend = backend_for(snapshot, None if target is None else target.model)
    if backend is None and request.may_spill:
        twin = twin_for(snapshot, target, draft.at)
        if twin is not None:
            request = replace(request, target=twin, main=target)
            backend = backend_for(snapshot, twin.model)
    is_closing = snapshot.close_deadline is not None
    if backend is not None and not is_closing and _has_room(snapshot, backend, request):
        _grant(draft, request, backend)
    elif not request.may_wait:
        return
    elif is_closing:
        refuse(draft, request.request_id, SHUTTING_DOWN)
    elif backend is not None:
        kind = Kind(request.priority) if request.may_switch else Kind.BYSTANDER
        _hold(draft, request, kind, backend.target.model)
    else:
        _hold_or_refuse(draft, request)


def backend_for(snapshot: Snapshot, model: str | None) -> Backend | None:
    """Choose the live backend for a request.

    A named model is served by its own backend only, a request that names none by the one that was
    switched to last; that is no twin.
    """
    for backend in reversed(snapshot.backends):
        if backend.state is BackendState.READY:
            target = backend.target
            if model == target.model or (model is None and target.twin_of is None):
                return backend
    return None


def room_at(snapshot: Snapshot, backend: Backend) -> int | None:
    """Return how many more may use the backend in its turn; None: as many as come."""
    room = places_at(snapshot, backend)
    if not is_contended(snapshot, backend):
        return room
    in_turn = max(0, room_of(backend) - backend.in_flight)
    return in_turn if room is None else min(room, in_turn)


def places_at(snapshot: Snapshot, backend: Backend) -> int | None:
    """Return how many more the operator lets use the backend now; None: as many as come."""
    most = snapshot.rules.of(backend.target).max_concurrency
    return None if most is None else max(0, most - backend.in_flight)


def room_of(backend: Backend) -> int:
    """Return how many may use the backend at once while others wait for its device.

    As many as it works on at once, and as many again, which keep it busy; the rest stand in its
    line, so that its turn ends with a short drain.
    """
    return 2 * backend.target.parallel


def is_contended(snapshot: Snapshot, backend: Backend) -> bool:
    """Whether others wait for a turn on a device of this backend, and may have it now.

    Who waits for a twin waits for no turn.
    """
    return any(
        any(b.epoch == backend.epoch for b in sharing_with(snapshot, head.target))
        for model, head in snapshot.requests.heads_in_turn().items()
        if not (head.target and head.target.is_twin)
        and backend_for(snapshot, model) is None
        and snapshot.agenda.admits(head.target)
    )


def sharing_with(snapshot: Snapshot, target: Target | None) -> tuple[Backend, ...]:
    """Return the backends on the devices of a target."""
    return () if target is None else snapshot.sharing(*snapshot.scheduling.devices_of(target))


def _has_room(snapshot: Snapshot, backend: Backend, request: RequestArrived) -> bool:
    """Whether the request may have a live backend now.

    What cannot cause a switch need not wait for a turn, only for one of the places that there are.
    """
    requests = snapshot.requests
    if snapshot.rules.models and places_at(snapshot, backend) == 0:
        return False
    if not requests.lines or request.model is None:
        return True
    if request.may_wait and not request.may_switch:
        return True
    if any(key.kind is not Kind.BYSTANDER for key, _ in requests.lines_of(backend.target.model)):
        return False
    return backend.in_flight < room_of(backend) or not is_contended(snapshot, backend)


def _grant(draft: Draft, request: RequestArrived, backend: Backend) -> None:
    """Lease the backend to the request; one that may not wait reads it in the snapshot."""
    epoch, request_id, requests = backend.epoch, request.request_id, draft.snapshot.requests
    is_batch = request.priority is Priority.BATCH
    requests = replace(
        requests,
        leases=requests.leases.set(request_id, epoch),
        batch=requests.batch.set(request_id, epoch) if is_batch else requests.batch,
    )
    _exchange(draft, with_leases(backend, draft.at, 1, 0 if is_batch else 1), requests)
    if request.may_wait:
        draft.commands.append(GrantLease(request_id=request_id, epoch=epoch))


def _exchange(draft: Draft, backend: Backend, requests: Requests) -> None:
    """Put in what one lease changes: on the way of every request, and so without detours."""
    backends = draft.snapshot.backends
    if len(backends) == 1:
        backends = (backend,)
    else:
        backends = tuple([backend if b.epoch == backend.epoch else b for b in backends])
    draft.snapshot = replace(draft.snapshot, backends=backends, requests=requests)


def with_leases(backend: Backend, at: float, granted: int, interactive: int) -> Backend:
    """Count leases that are granted on a backend."""
    work = backend.work
    idle_s = work.idle_s if work.empty_since is None else work.idle_s + at - work.empty_since
    return replace(
        backend,
        in_flight=backend.in_flight + granted,
        work=replace(
            work,
            granted=work.granted + granted,
            interactive_in_flight=work.interactive_in_flight + interactive,
            idle_s=idle_s,
            empty_since=None,
        ),
    )


def grant_all(draft: Draft, granted: Sequence[tuple[Waiter, Backend]]) -> None:
    """Lease backends to waiters, in their order; ten thousand of them in some milliseconds."""
    for epoch in {backend.epoch for _, backend in granted}:
        theirs = [waiter for waiter, backend in granted if backend.epoch == epoch]
        interactive = sum(waiter.priority is Priority.INTERACTIVE for waiter in theirs)
        backend = next(b for b in draft.snapshot.backends if b.epoch == epoch)
        draft.put_backend(with_leases(backend, draft.at, len(theirs), interactive))
    requests = draft.snapshot.requests
    leases = {waiter.request_id: backend.epoch for waiter, backend in granted}
    batch = {
        waiter.request_id: backend.epoch
        for waiter, backend in granted
        if waiter.priority is Priority.BATCH
    }
    draft.set_requests(leases=requests.leases.update(leases), batch=requests.batch.update(batch))
    for request_id, epoch in leases.items():
        draft.commands.append(GrantLease(request_id=request_id, epoch=epoch))


def refuse(draft: Draft, request_id: str, refusal: Refusal) -> None:
    """Answer the request with an error."""
    draft.commands.append(RefuseRequest(request_id=request_id, refusal=refusal))


def end_request(draft: Draft, request_id: str, callers: int = 1) -> Backend | None:
    """Free the request's lease or place. Returns the backend whose lease came back, if any.

    An unknown request is not a fault: its backend may have died under it.
    """
    requests = draft.snapshot.requests
    epoch = requests.leases.get(request_id)
    if epoch is None:
        if request_id in requests.places:
            draft.set(requests=leave_line(requests, request_id))
        return None
    for backend in draft.snapshot.backends:
        if backend.epoch == epoch:
            break
    else:
        return None
    is_batch = bool(requests.batch) and request_id in requests.batch
    requests = replace(
        requests,
        leases=requests.leases.delete(request_id),
        batch=requests.batch.delete(request_id) if is_batch else requests.batch,
    )
    freed = _without_lease(backend, draft.at, 0 if is_batch else 1, callers)
    _exchange(draft, freed, requests)
    return freed


def _without_lease(backend: Backend, at: float, interactive: int, callers: int) -> Backend:
    work, in_flight = backend.work, backend.in_flight - 1
    return replace(
        backend,
        in_flight=in_flight,
        work=replace(
            work,
            granted=work.granted + callers - 1,
            interactive_in_flight=work.interactive_in_flight - interactive,
            empty_since=None if in_flight else at,
        ),
    )


def _hold_or_refuse(draft: Draft, request: RequestArrived) -> None:
    """Nothing live serves it: it waits for its model's turn, or for what is under way."""
    snapshot, model = draft.snapshot, request.model
    down = snapshot.recovery(model)
    may_cause = request.may_switch or request.main is not None  # the start of a twin moves nobody
    may_have_turn = may_cause and model is not None and (down is None or down.may_hold)
    setback = None if model is None else snapshot.scheduling.setbacks.get(model)
    if may_have_turn and is_under_way(snapshot, model):
        _hold(draft, request, Kind(request.priority), model)
    elif may_have_turn and setback is not None and setback.refusal and draft.at < setback.until:
        why = refusal_after_setback(setback, setback.refusal, request.priority, draft.at)
        refuse(draft, request.request_id, why)
    elif may_have_turn and (outside := outside_window(snapshot, request, draft.at, draft.at)):
        refuse(draft, request.request_id, outside)
    elif may_have_turn:
        _hold(draft, request, Kind(request.priority), model)
    elif request.may_switch and down is not None and not is_under_way(snapshot, model):
        refuse(draft, request.request_id, not_live(snapshot, model))  # it did not come back
    elif is_something_under_way(snapshot, model):
        _hold(draft, request, Kind.BYSTANDER, model)
    else:
        refuse(draft, request.request_id, not_live(snapshot, model))


def is_under_way(snapshot: Snapshot, model: str | None) -> bool:
    """Whether a switch to the model runs, or one by hand waits."""
    pending = snapshot.scheduling.pending
    switches = (snapshot.switch, pending if isinstance(pending, SwitchRequested) else None)
    return any(s is not None and s.target is not None and s.target.model == model for s in switches)


def is_something_under_way(snapshot: Snapshot, model: str | None) -> bool:
    """Whether something is under way after which the request can be answered or refused.

    Whoever arrives during a switch waits for its end, even for another model: it may fail,
    and they learn then which model is live.
    """
    return snapshot.switch is not None or may_restart_help(snapshot, model)


def may_restart_help(snapshot: Snapshot, model: str | None) -> bool:
    """Whether a restart is due after which a request for the model can be served."""
    holding = [r.target for r in snapshot.recoveries if r.may_hold]
    return any(model == t.model or (model is None and not t.is_twin) for t in holding)


def admit_again(draft: Draft, waiters: Sequence[Waiter]) -> None:
    """Look anew who serves those who were taken out of lines: their model, its twin, or nobody.

    Their waits count from their arrivals, and they stand before those who came later.
    """
    for waiter in waiters:
        again = RequestArrived(
            at=waiter.arrived_at,
            request_id=waiter.request_id,
            target=waiter.main or waiter.target,
            may_switch=waiter.may_switch,
            may_spill=waiter.may_spill,
            priority=waiter.priority,
        )
        admit(draft, again)
    draft.set(requests=put_in_order(draft.snapshot.requests, waiters))


def _hold(draft: Draft, request: RequestArrived, kind: Kind, model: str | None) -> None:
    """Put the request into the line of a model; one that names none may stand in the live one's."""
    full = queue_full(draft.snapshot, model, draft.at)
    if full is not None:
        refuse(draft, request.request_id, full)
        return
    waiter = Waiter(
        request_id=request.request_id,
        target=request.target,
        arrived_at=request.at,
        arrived_at_sum=request.at,
        number=draft.snapshot.requests.held,
        priority=request.priority,
        may_switch=request.may_switch,
        may_spill=request.may_spill,
        main=request.main,
    )
    key = LineKey(model, kind)
    draft.set(requests=join(draft.snapshot.requests, key, waiter))
