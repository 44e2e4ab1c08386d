"""Which request may use which backend, which waits for the running switch, which is refused."""

import math
from collections import Counter
from collections.abc import Sequence

from msgspec.structs import replace

from supervisor.core.machine.commands import GrantLease, RefuseRequest
from supervisor.core.machine.draft import Draft, with_backend
from supervisor.core.machine.events import RequestArrived
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, BackendState, Mode, Refusal, Waiter


def admit(draft: Draft, request: RequestArrived) -> None:
    """Grant the request a lease, let it wait for the running switch, or refuse it.

    One that may not wait and gets no lease leaves everything as it is.
    """
    snapshot = draft.snapshot
    backend = backend_for(snapshot, request.model, request.mode_hint)
    if backend is not None and not snapshot.is_closing:
        _grant(draft, request.request_id, backend)
    elif not request.may_wait:
        return
    elif snapshot.is_closing:
        refuse(draft, request.request_id, SHUTTING_DOWN)
    elif _may_wait(snapshot, request.model):
        _hold(draft, request)
    else:
        refuse(draft, request.request_id, not_live(snapshot, request.model))


def backend_for(snapshot: Snapshot, model: str | None, mode_hint: Mode | None) -> Backend | None:
    """Choose the live backend for a request.

    A named model is served by its own backend only. A request that names none takes a backend of
    the hinted mode, else the one switched to last.
    """
    newest = None
    for backend in reversed(snapshot.backends):
        if backend.state is not BackendState.READY:
            continue
        if model is not None:
            if backend.target.model == model:
                return backend
        elif backend.target.mode is mode_hint:
            return backend
        elif newest is None:
            newest = backend
    return newest


def _grant(draft: Draft, request_id: str, backend: Backend) -> None:
    """Lease the backend to the request: on the way of every request, and so without detours."""
    epoch = backend.epoch
    leased = replace(backend, in_flight=backend.in_flight + 1)
    requests = draft.snapshot.requests
    leases = requests.leases.set(request_id, epoch)
    draft.set(
        backends=with_backend(draft.snapshot.backends, leased),
        requests=replace(requests, leases=leases),
    )
    draft.order(GrantLease(request_id=request_id, epoch=epoch))


def grant_all(draft: Draft, granted: Sequence[tuple[str, Backend]]) -> None:
    """Lease backends to requests, in their order; ten thousand of them in some milliseconds."""
    new = Counter(backend.epoch for _, backend in granted)
    for epoch, count in new.items():
        backend = next(b for _, b in granted if b.epoch == epoch)
        draft.put_backend(replace(backend, in_flight=backend.in_flight + count))
    leases = {request_id: backend.epoch for request_id, backend in granted}
    draft.set_requests(leases=draft.snapshot.requests.leases.update(leases))
    for request_id, epoch in leases.items():
        draft.order(GrantLease(request_id=request_id, epoch=epoch))


def refuse(draft: Draft, request_id: str, refusal: Refusal) -> None:
    """Answer the request with an error."""
    draft.order(RefuseRequest(request_id=request_id, refusal=refusal))


def end_request(draft: Draft, request_id: str) -> int | None:
    """Free the request's lease or place. Returns the epoch whose lease came back, if any.

    An unknown request is not a fault: its backend may have died under it.
    """
    snapshot = draft.snapshot
    requests = snapshot.requests
    epoch = requests.leases.get(request_id)
    if epoch is None:
        number = requests.waiter_numbers.get(request_id)
        if number is not None:
            _drop_waiter(draft, number)
        return None
    backend = snapshot.backend(epoch)
    if backend is None:
        return None
    freed = replace(backend, in_flight=backend.in_flight - 1)
    draft.set(
        backends=with_backend(snapshot.backends, freed),
        requests=replace(requests, leases=requests.leases.delete(request_id)),
    )
    return epoch


def settle_waiters(
    draft: Draft, failure: Refusal | None = None, failed_model: str | None = None
) -> None:
    """After a switch ended: serve every waiter whose model is live, refuse the others.

    `failure` is what those get who waited for `failed_model` (None: everybody) in vain. Those whose
    model died meanwhile, and will be restarted, wait on.
    """
    waiting = sorted(draft.snapshot.requests.waiters.items())
    staying = [
        (number, waiter)
        for number, waiter in waiting
        if backend_for(draft.snapshot, waiter.model, waiter.mode_hint) is None
        and _may_restart_help(draft.snapshot, waiter.model)
    ]
    draft.set_requests(
        waiters=draft.snapshot.requests.waiters.__class__(staying),
        waiter_numbers=draft.snapshot.requests.waiter_numbers.__class__(
            {waiter.request_id: number for number, waiter in staying}
        ),
        oldest_waiter=staying[0][0] if staying else draft.snapshot.requests.next_waiter,
    )
    kept = draft.snapshot.requests.waiters
    granted: list[tuple[str, Backend]] = []
    for number, waiter in waiting:
        backend = backend_for(draft.snapshot, waiter.model, waiter.mode_hint)
        if backend is not None:
            granted.append((waiter.request_id, backend))
        elif number not in kept:
            is_concerned = failed_model is None or waiter.model in {None, failed_model}
            reason = failure if is_concerned else None
            refuse(draft, waiter.request_id, reason or not_live(draft.snapshot, waiter.model))
    grant_all(draft, granted)


def expire_waiters(draft: Draft) -> None:
    """Refuse the waiters that have waited longer than the bound."""
    timeout_s = draft.snapshot.limits.hold_timeout_s
    while (oldest := oldest_waiter(draft.snapshot)) is not None:
        if oldest.arrived_at + timeout_s > draft.at:
            return
        _drop_waiter(draft, draft.snapshot.requests.oldest_waiter)
        refuse(
            draft,
            oldest.request_id,
            Refusal(
                code="hold_timeout",
                message=f"waited {timeout_s:g} s for a switch that has not ended; try again later",
                details=(("retry_after_s", retry_after_s(draft.snapshot, draft.at)),),
            ),
        )


def oldest_waiter(snapshot: Snapshot) -> Waiter | None:
    """Return the waiter that arrived first, or None when nobody waits."""
    return snapshot.requests.waiters.get(snapshot.requests.oldest_waiter)


FIRST_RETRY_AFTER_S = 5.0
"""Retry-After in seconds before any switch was measured: a model of some GB."""

SHUTTING_DOWN = Refusal(
    code="shutting_down", message="the controller is shutting down; try again after its restart"
)


def not_live(snapshot: Snapshot, model: str | None) -> Refusal:
    """Say that a request's model is not live, and which one is, or what brought it down."""
    live = snapshot.live_models()
    down = snapshot.recovery(model) or (snapshot.recoveries[0] if snapshot.recoveries else None)
    if down is not None and (not live or down.target.model == model):
        return Refusal(code="backend_down", message=down.reason)
    if not live:
        why = f": {snapshot.last_failure.message}" if snapshot.last_failure else ""
        return Refusal(
            code="no_model_loaded",
            message=f"no model is loaded{why}; POST /switch-backend loads one",
        )
    return Refusal(
        code="model_not_live",
        message=f"model '{model}' is not live, {_listed(live)}; POST /switch-backend "
        f'{{"model_name": "{model}"}} switches',
        details=(("live_models", live),),
    )


def _listed(live: Sequence[str]) -> str:
    """Write which models are live: `'a' is`, `'a' and 'b' are`, `'a', 'b' and 'c' are`."""
    *others, last = (f"'{name}'" for name in live)
    return f"{', '.join(others)} and {last} are" if others else f"{last} is"


def retry_after_s(snapshot: Snapshot, at: float) -> int:
    """Whole seconds after which a refused client may come back.

    The median of the last switches, less what the running one has taken; a guess before the
    first switch.
    """
    durations = sorted(snapshot.switch_durations_s)
    expected_s = durations[len(durations) // 2] if durations else FIRST_RETRY_AFTER_S
    elapsed_s = at - snapshot.switch.order.started_at if snapshot.switch else 0.0
    return max(1, math.ceil(expected_s - elapsed_s))


def _may_wait(snapshot: Snapshot, model: str | None) -> bool:
    """Whether something is under way after which the request can be answered or refused.

    Whoever arrives during a switch waits for its end, even for another model: it may fail,
    and they learn then which model is live.
    """
    return snapshot.switch is not None or _may_restart_help(snapshot, model)


def _may_restart_help(snapshot: Snapshot, model: str | None) -> bool:
    holding = [r for r in snapshot.recoveries if r.may_hold]
    return any(model is None or r.target.model == model for r in holding)


def _hold(draft: Draft, request: RequestArrived) -> None:
    snapshot = draft.snapshot
    limits, waiting = snapshot.limits, snapshot.requests
    if len(waiting.waiters) >= limits.hold_max_requests:
        refuse(
            draft,
            request.request_id,
            Refusal(
                code="hold_queue_full",
                message=f"{len(waiting.waiters)} requests are "
                "waiting for the running switch already; try again when it has ended",
                details=(("retry_after_s", retry_after_s(snapshot, draft.at)),),
            ),
        )
        return
    number = waiting.next_waiter
    waiter = Waiter(
        request_id=request.request_id,
        target=request.target,
        mode_hint=request.mode_hint,
        arrived_at=request.at,
    )
    draft.set_requests(
        waiters=waiting.waiters.set(number, waiter),
        waiter_numbers=waiting.waiter_numbers.set(request.request_id, number),
        next_waiter=number + 1,
    )


def _drop_waiter(draft: Draft, number: int) -> None:
    waiting = draft.snapshot.requests
    waiter = waiting.waiters[number]
    waiters = waiting.waiters.delete(number)
    oldest = waiting.oldest_waiter
    while oldest < waiting.next_waiter and oldest not in waiters:
        oldest += 1  # each gap is crossed once, whatever the number of waiters
    draft.set_requests(
        waiters=waiters,
        waiter_numbers=waiting.waiter_numbers.delete(waiter.request_id),
        oldest_waiter=oldest,
    )
