"""Models to which a switch of the scheduler failed: when each may be tried again.

Every attempt may stop what is live, so that the pauses grow from what one costs: no more than
`switching_share` of the time is lost to them. After as many failures as open a breaker, only a
switch by hand tries again, unless what failed passes by itself, as telemetry that is lost does.
"""

import math

from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.refusals import switch_failed
from supervisor.core.machine.snapshot import Scheduling, Setback, Snapshot
from supervisor.core.machine.values import Refusal
from supervisor.core.pauses import doubled_pause_s

SHORTEST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 600.0

TWIN_DIFFERS = "twin_differs"
"""Code of a twin that makes other vectors: it is not tried again before other settings apply."""

_NOT_THE_TARGETS_FAULT = frozenset({"place_is_taken", "drain_refused", "twin_does_not_fit"})


_PASSES = frozenset({"pinned_in_the_way", "telemetry_lost", "target_does_not_fit"})
"""Codes of what is the target's fault only as things stand; nothing was stopped for it."""


def is_targets_fault(refusal: Refusal) -> bool:
    """Whether a switch failed because of its target, which is then not worth waiting for."""
    return refusal.code not in _NOT_THE_TARGETS_FAULT


def note_failure(
    snapshot: Snapshot, model: str, refusal: Refusal, took_s: float, at: float
) -> Scheduling:
    """A switch of the scheduler failed: leave its model alone for a while that grows.

    Its requests are refused with the reason meanwhile, or wait on where it was not its fault.
    """
    scheduling, share = snapshot.scheduling, snapshot.rules.scheduling.switching_share
    before = scheduling.setbacks.get(model)
    failures = 1 if before is None else before.failures + 1
    is_fault = is_targets_fault(refusal)
    faults = (0 if before is None else before.faults) + (is_fault and refusal.code not in _PASSES)
    first_s = max(SHORTEST_PAUSE_S, took_s * (1.0 - share) / share)
    pause_s = doubled_pause_s(failures, first_s, max(first_s, LONGEST_PAUSE_S))
    if refusal.code == TWIN_DIFFERS or faults >= snapshot.limits.breaker_deaths:
        pause_s = math.inf
    setback = Setback(
        failures=failures,
        faults=faults,
        is_drain=refusal.code == "drain_refused",
        until=at + pause_s,
        refusal=switch_failed(refusal) if is_fault else None,
    )
    return replace(scheduling, setbacks=scheduling.setbacks.set(model, setback))


def try_all_again(scheduling: Scheduling) -> Scheduling:
    """Much may work that failed before: a hand has unloaded, or other settings apply."""
    parkings = scheduling.parkings.items()
    anew = {key: replace(each, unproved_until=-math.inf) for key, each in parkings}
    return replace(scheduling, setbacks=Map(), parkings=Map(anew))


def forget_setback(scheduling: Scheduling, model: str) -> Scheduling:
    """The model was switched to: whatever failed before is over."""
    if model not in scheduling.setbacks:
        return scheduling
    return replace(scheduling, setbacks=scheduling.setbacks.delete(model))
