"""Why requests are refused, in words, and when their clients may come back."""

import math
from collections.abc import Sequence

from msgspec.structs import replace

from supervisor.core.machine.snapshot import Setback, Snapshot
from supervisor.core.machine.values import Refusal
from supervisor.core.scheduling.estimates import costs_of

FIRST_RETRY_AFTER_S = 5.0
"""Retry-After in seconds before any switch was measured: a model of some GB."""

LONGEST_RETRY_AFTER_S = 60

SHUTTING_DOWN = Refusal(
    code="shutting_down", message="the controller is shutting down; try again after its restart"
)


def not_live(snapshot: Snapshot, model: str | None) -> Refusal:
    """Say that a request's model is not live, and which one is, or what brought it down."""
    live = snapshot.live_models()
    down = snapshot.recovery(model) or (snapshot.recoveries[0] if snapshot.recoveries else None)
    if down is not None and (not live or down.target.model == model):
        again = () if down.is_open else (("retry_after_s", int(FIRST_RETRY_AFTER_S)),)
        return Refusal(code="backend_down", message=down.reason, details=again)
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


def queue_full(snapshot: Snapshot, model: str | None, at: float) -> Refusal | None:
    """Return why one more may not wait: all places are taken, or all that its model may take."""
    limits, requests = snapshot.limits, snapshot.requests
    details = (
        ("retry_after_s", _drained_after_s(snapshot, model, at)),
        ("queue_position", requests.waiting_for(model) + 1),
    )
    if requests.waiting >= limits.hold_max_requests:
        message = f"{requests.waiting} requests wait already (queue.hold_max_requests)"
        return Refusal(
            code="hold_queue_full", message=f"{message}; try again later", details=details
        )
    most = limits.hold_max_per_model
    if most is None or model is None or requests.waiting_for(model) < most:
        return None
    message = f"{requests.waiting_for(model)} requests wait for '{model}' already, which is its"
    return Refusal(
        code="queue_full",
        message=f"{message} share of the queue (queue.model_share); try again later",
        details=details,
    )


def _drained_after_s(snapshot: Snapshot, model: str | None, at: float) -> int:
    """Return when those who wait for a model may all be answered, at the rate of late.

    A place is free before, but not for all who are refused now. Nobody is sent away for longer than
    clients take from Retry-After (OpenAI's: a minute).
    """
    wait_s = retry_after_s(snapshot, at)
    if model is None:
        return wait_s
    service_s = costs_of(snapshot.scheduling.estimates, model).service_s
    work_s = math.ceil(service_s * snapshot.requests.callers_of(model))
    return max(wait_s, min(wait_s + work_s, LONGEST_RETRY_AFTER_S))


def hold_timeout(snapshot: Snapshot, request_id: str, at: float) -> Refusal:
    """Say that a request has waited for as long as any may."""
    timeout_s = snapshot.limits.hold_timeout_s
    position = snapshot.requests.position_of(request_id)
    stood = () if position is None else (("queue_position", position),)
    return Refusal(
        code="hold_timeout",
        message=f"waited {timeout_s:g} s (queue.hold_timeout_s) and its model did not come; try "
        "again later",
        details=(("retry_after_s", retry_after_s(snapshot, at)), *stood),
    )


def switch_failed(refusal: Refusal) -> Refusal:
    """Say to those who waited that the switch they waited for failed, or that we shut down."""
    if refusal.code == SHUTTING_DOWN.code:
        return refusal
    return Refusal(code="switch_failed", message=f"the switch failed: {refusal.message}")


def refusal_after_setback(setback: Setback, refusal: Refusal, at: float) -> Refusal:
    """Say why a model is not switched to now, and when it will be tried again."""
    if setback.until == math.inf:
        again = (
            f"after {setback.failures} failures it is not tried again until POST /switch-backend"
        )
        return replace(refusal, message=f"{refusal.message}; {again}")
    left_s = max(1, math.ceil(setback.until - at))
    return replace(
        refusal,
        message=f"{refusal.message}; it is tried again in {left_s} s",
        details=(*refusal.details, ("retry_after_s", left_s)),
    )


def retry_after_s(snapshot: Snapshot, at: float) -> int:
    """Whole seconds after which a refused client may come back.

    The median of the last switches, less what the running one has taken; a guess before the
    first switch.
    """
    durations = sorted(snapshot.switch_durations_s)
    expected_s = durations[len(durations) // 2] if durations else FIRST_RETRY_AFTER_S
    elapsed_s = at - snapshot.switch.order.started_at if snapshot.switch else 0.0
    return max(1, math.ceil(expected_s - elapsed_s))
