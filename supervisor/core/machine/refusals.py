"""Why requests are refused, in words, and when their clients may come back."""

import math
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from supervisor.core.machine.events import RequestArrived
from supervisor.core.machine.snapshot import Setback, Snapshot
from supervisor.core.machine.values import Refusal, Target, Waiter
from supervisor.core.scheduling.estimates import costs_of
from supervisor.core.scheduling.values import Priority

FIRST_RETRY_AFTER_S = 5.0
"""Retry-After in seconds before any switch was measured: a model of some GB."""

LONGEST_RETRY_AFTER_S = 60

BATCH_RETRY_AFTER_S = 300.0
"""After so long batch work asks again, whatever it was told: a period may end early, a hand may
switch, and other settings may apply."""

SHUTTING_DOWN = Refusal(
    code="shutting_down", message="the controller is shutting down; try again after its restart"
)


def not_live(snapshot: Snapshot, model: str | None) -> Refusal:
    """Say that a request's model is not live, and which one is, or what brought it down."""
    live = snapshot.live_models()
    others = (each for each in snapshot.recoveries if not each.target.is_twin)
    down = snapshot.recovery(model) or next(others, None)
    if down is not None and (not live or down.target.model == model):
        again = () if down.is_open else (("retry_after_s", int(FIRST_RETRY_AFTER_S)),)
        return Refusal(code="backend_down", message=down.reason, details=again)
    if not live:
        why = f": {snapshot.endings.failure.message}" if snapshot.endings.failure else ""
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


def hold_timeout(snapshot: Snapshot, waiter: Waiter, at: float) -> Refusal:
    """Say that a request has waited for as long as any may."""
    timeout_s = snapshot.limits.hold_timeout_s
    position = snapshot.requests.position_of(waiter.request_id)
    stood = () if position is None else (("queue_position", position),)
    waited = f"waited {timeout_s:g} s (queue.hold_timeout_s) and"
    if waiter.target is not None and not snapshot.agenda.admits(waiter.target):
        outside = _outside(snapshot, waiter.target, at)
        return Refusal(
            code="hold_timeout", **outside | {"message": f"{waited} {outside['message']}"}
        )
    model = waiter.model
    why = "its model did not come"
    if model in snapshot.live_models():  # at most so many at once, or so many in its turn
        why = f"no place at '{model}' came free (max_concurrency, parallel)"
    return Refusal(
        code="hold_timeout",
        message=f"{waited} {why}; try again later",
        details=(("retry_after_s", retry_after_s(snapshot, at)), *stood),
    )


def outside_window(
    snapshot: Snapshot, request: RequestArrived | Waiter, arrived_at: float, at: float
) -> Refusal | None:
    """Return why a request may not wait for a period that serves it; None: it may, or need not.

    It may where that can begin before it has waited for as long as any may: at a boundary, or when
    the work of the present period is done, or a hand wills it. Batch work may not: it would keep
    places from work that can be done, and comes again by itself.
    """
    target = request.target
    agenda = snapshot.agenda
    period = agenda.period
    if period is None or target is None or period.admits(target):
        return None
    coming = agenda.next_admitting(target)
    may_end_early = period.until_done or agenda.by_hand is not None
    latest = arrived_at + snapshot.limits.hold_timeout_s
    comes_in_time = coming is not None and coming.starts_at <= latest
    is_batch = request.priority is Priority.BATCH
    if not agenda.refuses and not is_batch and (may_end_early or comes_in_time):
        return None
    most_s = BATCH_RETRY_AFTER_S if is_batch else math.inf
    return Refusal(code="outside_window", **_outside(snapshot, target, at, most_s))


def _outside(
    snapshot: Snapshot, target: Target, at: float, most_s: float = math.inf
) -> dict[str, Any]:
    """Say what holds in place of a target, and when that is served: message and details.

    Who is refused is to come back after `most_s` at the latest.
    """
    agenda = snapshot.agenda
    whose = "the schedule" if agenda.by_hand is None else "a switch by hand"
    holds = agenda.period.serves if agenda.period else "mixed"
    message = f"'{target.model}' is not served now: {whose} has {holds}"
    coming = agenda.next_admitting(target)
    if coming is None:
        ends = agenda.period is not None and agenda.period.until_done
        why = "until its work is done" if ends else "and no period to come serves it"
        details = () if most_s == math.inf else (("retry_after_s", math.ceil(most_s)),)
        return {"message": f"{message}, {why}", "details": details}
    left_s = max(1, math.ceil(min(coming.starts_at - at, most_s)))
    return {
        "message": f"{message}; it is served from {coming.local} on",
        "details": (("retry_after_s", left_s), ("served_from", coming.local)),
    }


def switch_failed(refusal: Refusal) -> Refusal:
    """Say to those who waited that the switch they waited for failed, or that we shut down."""
    if refusal.code == SHUTTING_DOWN.code:
        return refusal
    return Refusal(code="switch_failed", message=f"the switch failed: {refusal.message}")


def refusal_after_setback(
    setback: Setback, refusal: Refusal, priority: Priority, at: float
) -> Refusal:
    """Say why a model is not switched to now, and when it will be tried again."""
    if setback.is_final:
        again = (
            f"after {setback.failures} failures it is not tried again until POST /switch-backend"
        )
        is_batch = priority is Priority.BATCH  # it comes again by itself
        late = (("retry_after_s", math.ceil(BATCH_RETRY_AFTER_S)),) if is_batch else ()
        details = (*refusal.details, *late)
        return replace(refusal, message=f"{refusal.message}; {again}", details=details)
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
