"""What is done while nobody asks for anything: idle models are unloaded, the idle model comes back.

Both are judged by the state, and their moments derived from it. An unloaded model comes back with
its next request, as by any switch that a request causes.
"""

from collections.abc import Iterator

from msgspec.structs import replace

from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import SwitchRequested
from supervisor.core.machine.placing import free_of_hands_at
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import IDLENESS
from supervisor.core.machine.switch_requests import begin_switch, own_switch_id
from supervisor.core.machine.values import Backend, BackendState, Target


def due_at(snapshot: Snapshot) -> float | None:
    """Return when something is to be done for want of requests; None: nothing, as things stand."""
    if snapshot.switch is not None or snapshot.is_closing:
        return None
    moments = [unload_at(snapshot, backend) for backend in snapshot.backends]
    moments.append(return_at(snapshot))
    return min((moment for moment in moments if moment is not None), default=None)


def unload_at(snapshot: Snapshot, backend: Backend) -> float | None:
    """Return when a model is unloaded if nobody asks for it; None: it is not for that reason."""
    after_s, empty_since = snapshot.rules.of(backend.target).idle_unload_s, backend.work.empty_since
    if after_s is None or empty_since is None or backend.state is not BackendState.READY:
        return None
    return empty_since + after_s


def return_at(snapshot: Snapshot) -> float | None:
    """Return when the idle model is made live again if nobody asks for anything; None: it is not.

    It is live or down, something is under way, the schedule does not serve it, or a hand has
    unloaded. What a hand has switched to is left for as long as it holds.
    """
    target, scheduling = snapshot.rules.idle_target, snapshot.scheduling
    if target is None or scheduling.is_unloaded or not snapshot.agenda.admits(target):
        return None
    is_busy = snapshot.requests.waiting or any(b.in_flight for b in snapshot.backends)
    is_busy = is_busy or any(not down.is_open for down in snapshot.recoveries)
    is_down = snapshot.recovery(target.model) is not None
    if is_busy or is_down or any(_is_of(b, target) for b in snapshot.tenants()):
        return None
    work_at = max(_work_ended(snapshot), default=None)
    setback = scheduling.setbacks.get(target.model)
    if work_at is None or (setback is not None and setback.is_final):
        return None
    at = max(work_at + snapshot.rules.idle_after_s, free_of_hands_at(snapshot, target))
    return at if setback is None else max(at, setback.until)


def begin_due(draft: Draft) -> None:
    """Unload the model whose time has come, or bring the idle one back."""
    snapshot = draft.snapshot
    due = due_at(snapshot)
    if due is None or due > draft.at:
        return
    idle = next((b for b in snapshot.backends if unload_at(snapshot, b) == due), None)
    if idle is not None:
        _unload(draft, idle)
    else:
        target = snapshot.rules.idle_target
        _begin(draft, target, None, "nothing was asked for: back to the idle model")


def _unload(draft: Draft, idle: Backend) -> None:
    model = idle.target.model
    after_s = draft.snapshot.rules.of(idle.target).idle_unload_s
    agenda = draft.snapshot.agenda
    if agenda.admits(idle.target):  # the schedule would have it live again at once
        draft.set(agenda=replace(agenda, rests=True))
    _begin(draft, None, model, f"'{model}' has had nothing to do for {after_s:g} s (idle_unload_s)")


def _begin(draft: Draft, target: Target | None, unloads: str | None, reason: str) -> None:
    begin_switch(
        draft,
        SwitchRequested(
            at=draft.at,
            switch_id=own_switch_id(draft),
            target=target,
            requested_by=IDLENESS,
            drain_policy=draft.snapshot.rules.scheduler_drains,
            unloads=unloads,
            reason=reason,
        ),
    )


def _work_ended(snapshot: Snapshot) -> Iterator[float]:
    """When those who are there had work last, those who were left, and those who are gone."""
    yield from (b.work.empty_since for b in snapshot.backends if b.work.empty_since is not None)
    yield from (away.left_at for away in snapshot.scheduling.away.values())
    if snapshot.endings.work_at is not None:
        yield snapshot.endings.work_at


def _is_of(backend: Backend, target: Target) -> bool:
    return backend.target.model == target.model
