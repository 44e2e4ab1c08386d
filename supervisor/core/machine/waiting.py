"""How waiting ends: with a lease once the model admits, or with an answer that says why not."""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from supervisor.core.machine.draft import Draft
from supervisor.core.machine.queues import (
    Kind,
    LineKey,
    join,
    leave_line,
    put_in_order,
    take,
)
from supervisor.core.machine.refusals import (
    hold_timeout,
    not_live,
    outside_window,
    switch_failed,
)
from supervisor.core.machine.requests import (
    admit_again,
    backend_for,
    grant_all,
    is_under_way,
    may_restart_help,
    places_at,
    refuse,
    room_at,
)
from supervisor.core.machine.setbacks import is_targets_fault
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.twins import may_serve, twin_for
from supervisor.core.machine.values import Backend, Refusal, Target, Waiter

Granted = list[tuple[Waiter, Backend]]


def let_in(draft: Draft) -> None:
    """Give what is live to those in its line, as far as there is room for them."""
    _call_back(draft)
    _spill(draft)
    granted = _take_in(draft)
    if granted:
        grant_all(draft, sorted(granted, key=lambda each: each[0].number))


def settle_waiters(
    draft: Draft, failure: Refusal | None = None, failed: Target | None = None
) -> None:
    """After a switch ended: serve whoever waits for what is live, refuse who waits in vain.

    Those wait on who wait for their model's turn, whose model died and will be restarted, or for
    whom a switch by hand is about to begin. `failure` is for those who waited for `failed`
    (None: for the device), and for its turn where that was in vain; a request that named no model
    did not wait for a twin. Where a model and its twin can serve a request, it is refused when
    neither does.
    """
    _line_up_for_what_is_live(draft)
    let_in(draft)
    for key in tuple(draft.snapshot.requests.lines):
        if _waits_on(draft.snapshot, key, failure, failed):
            continue
        is_concerned = (
            failed is None
            or key.model == failed.model
            or (key.model is None and not failed.is_twin)
        )
        refusal = failure and is_concerned and switch_failed(failure)
        taken = _take_from(draft, key)
        admit_again(draft, [waiter for waiter in taken if waiter.may_spill])
        for waiter in taken:
            if waiter.may_spill:
                continue
            refuse(draft, waiter.request_id, refusal or not_live(draft.snapshot, key.model))


def expire_waiters(draft: Draft) -> None:
    """Refuse those who have waited longer than the bound, the oldest first."""
    timeout_s = draft.snapshot.limits.hold_timeout_s
    while (oldest := oldest_waiter(draft.snapshot)) is not None:
        if oldest.arrived_at + timeout_s > draft.at:
            return
        refusal = hold_timeout(draft.snapshot, oldest, draft.at)
        draft.set(requests=leave_line(draft.snapshot.requests, oldest.request_id))
        refuse(draft, oldest.request_id, refusal)


def refuse_outside(draft: Draft) -> None:
    """A period has begun: refuse those who wait for what it does not serve, and may not wait on."""
    spilling: list[Waiter] = []
    for key, line in draft.snapshot.requests.lines.items():
        is_served = backend_for(draft.snapshot, key.model) is not None
        if key.kind is Kind.BYSTANDER or is_served or is_under_way(draft.snapshot, key.model):
            continue
        for waiter in line.waiters.values():
            refusal = outside_window(draft.snapshot, waiter, waiter.arrived_at, draft.at)
            if refusal is not None:
                draft.set(requests=leave_line(draft.snapshot.requests, waiter.request_id))
                if waiter.may_spill:
                    spilling.append(waiter)
                else:
                    refuse(draft, waiter.request_id, refusal)
    admit_again(draft, spilling)


def exchange_targets(draft: Draft, targets: Mapping[str, Target]) -> None:
    """Other settings apply: who waits for one of these models waits for it as it is now."""
    changed: list[Waiter] = []
    for line in draft.snapshot.requests.lines.values():
        asked = line.head.main or line.head.target
        now = None if asked is None else targets.get(asked.model)
        if now is not None and now != asked:
            named = [waiter for waiter in line.waiters.values() if waiter.target is not None]
            changed += [replace(waiter, target=now, main=None) for waiter in named]
    _look_again(draft, changed)


def oldest_waiter(snapshot: Snapshot) -> Waiter | None:
    """Return who has waited longest, or None when nobody waits."""
    return min(snapshot.requests.heads(), key=lambda waiter: waiter.number, default=None)


def _call_back(draft: Draft) -> None:
    """Have those who wait for a twin wait for their model: that is live, or the twin cannot be.

    Some may wait for the twin alone, since their model cannot be used: they stay.
    """
    for line in draft.snapshot.requests.lines.values():
        twin = line.head.target
        if twin is None or twin.twin_of is None:
            continue
        if _is_live(draft, twin.twin_of) or not may_serve(draft.snapshot, twin, draft.at):
            _look_again(draft, [w for w in line.waiters.values() if w.main is not None])


def _spill(draft: Draft) -> None:
    """Have small requests wait for the twin of their model, which was live when they came."""
    for line in draft.snapshot.requests.lines.values():
        target = line.head.target
        if not line.spilling or target is None or _is_live(draft, target.model):
            continue
        if twin_for(draft.snapshot, target, draft.at) is not None:
            _look_again(draft, [w for w in line.waiters.values() if w.is_spilling])


def _is_live(draft: Draft, model: str) -> bool:
    return backend_for(draft.snapshot, model) is not None


def _look_again(draft: Draft, waiters: Sequence[Waiter]) -> None:
    """Take waiters out of their lines, and look anew who serves them."""
    for waiter in waiters:
        draft.set(requests=leave_line(draft.snapshot.requests, waiter.request_id))
    admit_again(draft, waiters)


def _take_in(draft: Draft) -> Granted:
    """Take those out of the lines of live models for whom there is room, the most urgent first.

    Whoever waits as a bystander is not part of a turn: it comes first, and needs no room in that.
    """
    granted: Granted = []
    for backend in draft.snapshot.admitting():
        model = backend.target.model
        if not draft.snapshot.requests.lines_of(model):
            continue
        taken: list[Waiter] = []
        bystanders = LineKey(model, Kind.BYSTANDER)
        if bystanders in draft.snapshot.requests.lines:
            taken += _take_from(draft, bystanders, places_at(draft.snapshot, backend))
        room = room_at(draft.snapshot, backend)
        room = None if room is None else room - len(taken)
        for key in _by_urgency(draft, model):
            more = _take_from(draft, key, room)
            taken += more
            room = None if room is None else room - len(more)
        granted += [(waiter, backend) for waiter in taken]
    return granted


def _by_urgency(draft: Draft, model: str) -> list[LineKey]:
    """Return the lines for a model's turn; batch work that has aged comes before all."""
    requests, aged_s = draft.snapshot.requests, draft.snapshot.rules.scheduling.batch_ages_s
    keys = [key for key, _ in requests.lines_of(model) if key.kind is not Kind.BYSTANDER]
    batch = LineKey(model, Kind.BATCH)
    if batch in keys and requests.lines[batch].head.arrived_at + aged_s <= draft.at:
        keys.remove(batch)
        keys.insert(0, batch)
    return keys


def _take_from(draft: Draft, key: LineKey, count: int | None = None) -> Sequence[Waiter]:
    """Take so many from the head of a line; None: all."""
    requests, taken = take(draft.snapshot.requests, key, count)
    if taken:
        draft.set(requests=requests)
    return taken


def _line_up_for_what_is_live(draft: Draft) -> None:
    """Those who named no model take what was switched to last: they stand in its line from now.

    Where they stand there is by their arrival: whoever has waited longest stands first in any line.
    """
    requests, nameless = draft.snapshot.requests, LineKey(None, Kind.BYSTANDER)
    backend = backend_for(draft.snapshot, None)
    if backend is None or nameless not in requests.lines:
        return
    held, (requests, taken) = requests.held, take(requests, nameless)
    for waiter in taken:
        requests = join(requests, LineKey(backend.target.model, Kind.BYSTANDER), waiter)
    draft.set(requests=put_in_order(replace(requests, held=held), taken))


def _waits_on(
    snapshot: Snapshot, key: LineKey, failure: Refusal | None, failed: Target | None
) -> bool:
    """Whether those of a line that was not emptied have something to wait for."""
    if snapshot.is_closing:
        return False
    if may_restart_help(snapshot, key.model) or backend_for(snapshot, key.model) is not None:
        return True
    if key.kind is Kind.BYSTANDER:
        return _is_pending(snapshot)
    is_down = snapshot.recovery(key.model) is not None
    is_concerned = failure is not None and failed is not None and failed.model == key.model
    return not is_down and not (is_concerned and failure and is_targets_fault(failure))


def _is_pending(snapshot: Snapshot) -> bool:
    return snapshot.scheduling.pending is not None
