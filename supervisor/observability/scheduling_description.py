"""What the scheduler knows and has decided, written as JSON for `/status`."""

from typing import Any

from supervisor.core.machine.queues import Requests, queue_of
from supervisor.core.machine.snapshot import Setback, Snapshot
from supervisor.core.machine.values import BackendState, Phase
from supervisor.core.scheduling.bounds import Bounds, ModelBounds, bounds
from supervisor.core.scheduling.estimates import costs_of
from supervisor.core.scheduling.values import Costs, View


def describe_scheduling(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """Write policy, last decision, who waits, what is waited for, and what holds for each model.

    `models` has all that somebody waits for, that are live, or of which something was learned, as
    if all of them contended for one device. Seconds.
    """
    scheduling = snapshot.scheduling
    view = _view(snapshot, now)
    held = bounds(view)
    return {
        "policy": view.rules.policy,
        "decision": scheduling.decision.reason if scheduling.decision else None,
        "decides_again_in_s": _left_s(scheduling.wake_at, now),
        "held_by_hand_for_s": _left_s(max(scheduling.held_until.values(), default=None), now),
        "waits_for": _drain(snapshot),
        "next_by_hand": scheduling.pending.switch_id if scheduling.pending else None,
        "switching_share": held.switching_share,
        "load": round(held.load, 4),
        "shortest_turn_s": round(held.shortest_turn_s, 4),
        "max_wait_s": view.rules.max_wait_s,
        "keeps_max_wait": held.keeps_max_wait,
        "keeps_hold_timeout": _keeps_hold_timeout(snapshot, held),
        "models": {
            name: _model(snapshot, name, each, view.costs[name], now)
            for name, each in held.models.items()
        },
    }


def _keeps_hold_timeout(snapshot: Snapshot, held: Bounds) -> bool:
    """Whether a request may wait as long as its turn may take to come: W + s."""
    needed_s = [each.longest_wait_s + each.switch_s for each in held.models.values()]
    return max(needed_s, default=0.0) <= snapshot.limits.hold_timeout_s


def _view(snapshot: Snapshot, now: float) -> View:
    names = dict.fromkeys(
        (
            *snapshot.requests.heads_in_turn(),
            *snapshot.live_models(),
            *snapshot.scheduling.estimates.models,
        )
    )
    costs = {name: costs_of(snapshot.scheduling.estimates, name) for name in names}
    return View(at=now, stay=None, queues=(), costs=costs, rules=snapshot.rules.scheduling)


def _model(
    snapshot: Snapshot, name: str, held: ModelBounds, costs: Costs, now: float
) -> dict[str, Any]:
    return {
        **_waiting(snapshot.requests, name, now),
        "switch_s": round(held.switch_s, 4),
        "drain_s": round(held.drain_s, 4),
        "service_s": round(costs.service_s, 6),
        "arrivals_per_s": round(costs.arrivals_per_s, 4),
        "load": round(held.load, 4),
        "turn_s": round(held.turn_s, 4),
        "longest_turn_s": round(held.longest_turn_s, 4),
        "longest_wait_s": round(held.longest_wait_s, 4),
        "leaves_empty_at": held.threshold,
        "linger_s": round(held.linger_s, 4),
        "return_s": None if costs.return_s is None else round(costs.return_s, 4),
        "setback": _setback(snapshot.scheduling.setbacks.get(name), now),
    }


def _waiting(requests: Requests, name: str, now: float) -> dict[str, Any]:
    queue = queue_of(requests, name, None)
    oldest_s = None if queue.oldest_at is None else round(now - queue.oldest_at, 3)
    return {"interactive": queue.interactive, "batch": queue.batch, "oldest_wait_s": oldest_s}


def _drain(snapshot: Snapshot) -> str | None:
    """Say for which requests a switch waits, while it drains."""
    switch = snapshot.switch
    if switch is None or switch.phase is not Phase.DRAINING:
        return None
    draining = [b for b in snapshot.backends if b.state is BackendState.DRAINING and b.in_flight]
    return ", ".join(f"'{b.target.model}': {b.in_flight} in flight" for b in draining) or None


def _setback(setback: Setback | None, now: float) -> dict[str, Any] | None:
    if setback is None:
        return None
    return {
        "failures": setback.failures,
        "reason": setback.refusal.message if setback.refusal else None,
        "tried_again_in_s": _left_s(setback.until, now),
    }


def _left_s(moment: float | None, now: float) -> float | None:
    """Return the seconds until a moment; None where there is none, or it has passed."""
    if moment is None or moment <= now or moment == float("inf"):
        return None
    return round(moment - now, 3)
