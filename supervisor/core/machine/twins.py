"""Twins: a model's second server, on the host, for small requests while the first is not live.

A twin is a backend with a target of its own, whose model has a name of its own: so it has its own
line, recovery and setbacks, and is started by a switch as any other. What is special of it:

- It makes nobody leave. Where it does not fit beside what is there, it is not started; what others
  need for their start, it gives up first.
- It has no turn. Who waits for it is no reason to switch, and does not count as waiting for a
  device that others use.
- While its model is live, that serves. Whoever waits for the twin then goes there, and who waits
  for the model goes to the twin once that is live no more.
- Where it cannot serve, its requests wait for their model as if there were none.
- It is used once its vectors were compared with those of its model. As long as it is not known what
  those are, its model serves; but where that cannot be had, a twin is better than a refusal.
"""

from msgspec.structs import replace

from supervisor.core.machine.draft import Draft
from supervisor.core.machine.leaving import advance_retiring
from supervisor.core.machine.recovery import forget_recovery
from supervisor.core.machine.residency import Plan
from supervisor.core.machine.setbacks import TWIN_DIFFERS, note_failure
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.starting import give_up_start
from supervisor.core.machine.values import Backend, BackendState, Departure, Refusal, Target


def twin_for(snapshot: Snapshot, target: Target | None, at: float) -> Target | None:
    """Return the twin that is to serve small requests for a target that is not live, if one is."""
    if target is None or target.spill is None or not may_serve(snapshot, target.spill, at):
        return None
    is_comparable = target.identity in snapshot.scheduling.comparable
    return target.spill if is_comparable or _is_out_of_reach(snapshot, target, at) else None


def may_serve(snapshot: Snapshot, twin: Target, at: float) -> bool:
    """Whether a twin is live, or can be expected to be soon."""
    setback = snapshot.scheduling.setbacks.get(twin.model)
    down = snapshot.recovery(twin.model)
    return (setback is None or setback.until <= at) and (down is None or down.may_hold)


def _is_out_of_reach(snapshot: Snapshot, target: Target, at: float) -> bool:
    """Whether a model cannot be made live for now: whoever waits for it would be refused."""
    setback = snapshot.scheduling.setbacks.get(target.model)
    if setback is not None and setback.refusal is not None and at < setback.until:
        return True
    down = snapshot.recovery(target.model)
    return down is not None and not down.may_hold


def dismiss_twin(draft: Draft, backend: Backend, reason: str) -> None:
    """A twin makes other vectors than its model: it does not serve, now or later."""
    if backend.state not in {BackendState.STARTING, BackendState.READY}:
        return
    model, refusal = backend.target.model, Refusal(code=TWIN_DIFFERS, message=reason)
    forget_recovery(draft, model)
    draft.set(scheduling=note_failure(draft.snapshot, model, refusal, 0.0, draft.at))
    if backend.state is BackendState.STARTING:
        give_up_start(draft, backend, refusal)
    else:
        _retire(draft, backend)


def drop_twins(draft: Draft) -> None:
    """Other settings apply: twins that would be started otherwise end behind their requests."""
    for backend in draft.snapshot.admitting():
        if backend.target.is_twin and backend.is_outdated:
            _retire(draft, backend)


def _retire(draft: Draft, backend: Backend) -> None:
    draft.move_backend(
        replace(backend, departure=Departure(is_retiring=True)), BackendState.DRAINING
    )
    advance_retiring(draft)


def does_not_fit(twin: Target, plan: Plan) -> Refusal | None:
    """Return why a twin is not started: others would have to leave for it; None: nobody would."""
    in_the_way = (*plan.leaving, *plan.retiring, *plan.in_the_way)
    others = [b for b in in_the_way if b.target.model != twin.model]
    if not others:
        return None
    named = ", ".join(f"'{b.target.model}'" for b in others)
    return Refusal(
        code="twin_does_not_fit",
        message=f"'{twin.model}' does not fit beside {named} on {', '.join(twin.devices)}, and "
        "nobody leaves for it; free memory there, or raise the device's budget",
    )
