"""Why each resident stays, when it goes, and who would go first, written as JSON for `/status`."""

from typing import Any

from supervisor.core.machine.idleness import return_at, unload_at
from supervisor.core.machine.packing import cost_of, likelihood_of_return
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, BackendState


def describe_stay(snapshot: Snapshot, backend: Backend, now: float) -> dict[str, Any]:
    """Write what keeps a backend live, and what it would cost that it goes.

    `gives_way` counts from 1, the first to go; null for one that does not. Costs are in seconds of
    loading, each as likely as its model is asked for again.
    """
    rules = snapshot.rules.of(backend.target)
    order = _first_to_go(snapshot, now)
    unloads_at = unload_at(snapshot, backend)
    return {
        "pinned": rules.is_pinned,
        "max_concurrency": rules.max_concurrency,
        "gives_way": order.index(backend) + 1 if backend in order else None,
        "cost_s": round(cost_of(snapshot, backend, now).seconds, 3),
        "likely_to_return": round(likelihood_of_return(snapshot, backend, now), 3),
        "unloads_in_s": None if unloads_at is None else round(max(0.0, unloads_at - now), 1),
        "stays": _why(snapshot, backend),
    }


def describe_idle_model(snapshot: Snapshot, now: float) -> dict[str, Any] | None:
    """Write which model comes back when nothing is asked for, and when; None: there is none."""
    target = snapshot.rules.idle_target
    if target is None:
        return None
    at = None if snapshot.switch is not None or snapshot.is_closing else return_at(snapshot)
    in_s = None if at is None else round(max(0.0, at - now), 1)
    return {"model": target.model, "comes_back_in_s": in_s}


def _first_to_go(snapshot: Snapshot, now: float) -> list[Backend]:
    """Sort those that give way, the cheapest first, as if one of them had to."""
    rules = snapshot.rules
    movable = [b for b in snapshot.ready_backends() if not rules.of(b.target).is_pinned]
    return sorted(movable, key=lambda b: (cost_of(snapshot, b, now), b.epoch))


def _why(snapshot: Snapshot, backend: Backend) -> str | None:
    """Say why it is live; None: it is on its way in or out."""
    if backend.state is not BackendState.READY:
        return None
    if snapshot.rules.of(backend.target).is_pinned:
        return "it is pinned: nothing but an unload by its name ends it"
    if backend.in_flight:
        return f"it works on {backend.in_flight} requests"
    if unload_at(snapshot, backend) is not None:
        return "there is room for it until it has been idle for idle_unload_s"
    return "there is room for it, and nobody needs that"
