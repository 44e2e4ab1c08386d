"""What is learned of each model: from the last 20 times, and robust against a few odd ones.

Values only: msgspec writes them as JSON, so that they are kept over restarts.
"""

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from supervisor.core.scheduling.values import Costs

KEPT = 20
"""How many of the last values count; arrivals are counted until there are so many, too."""

ABSENCES = 3
"""How many of the last absences of a model show how soon its clients return."""

SWITCH_S = 0.25
"""What a switch is taken to last before one was measured.

Too short, it costs one early switch, after which more is known; too long, it makes the first heads
wait for nothing.
"""

UNKNOWN_SWITCH_S = 30.0
"""What is allowed for a switch that must be done in time, before one was measured: a model of some
GB, read from a disk."""


class StaySeen(Struct, frozen=True, kw_only=True):
    """How many requests came in how many seconds."""

    arrived: int
    elapsed_s: float


class ModelEstimates(Struct, frozen=True, kw_only=True):
    """The last values of one model, in seconds, the newest at the end.

    `revision`: of the settings that its server was started with then; empty: not known.
    `unparkings_s`: of switches to it while its server was parked; `switches_s`: of all others.
    """

    revision: str = ""
    switches_s: tuple[float, ...] = ()
    unparkings_s: tuple[float, ...] = ()
    drains_s: tuple[float, ...] = ()
    services_s: tuple[float, ...] = ()
    returns_s: tuple[float, ...] = ()
    stays: tuple[StaySeen, ...] = ()


class Estimates(Struct, frozen=True, kw_only=True):
    """What is known of every model that was live at some time."""

    models: Mapping[str, ModelEstimates] = {}


def note_revision(estimates: Estimates, model: str, revision: str) -> Estimates:
    """The model serves with the settings of this revision.

    What its server took and did with others is forgotten, and what its clients do is not.
    """
    known = _of(estimates, model)
    if known.revision == revision:
        return estimates
    if known.revision:
        known = ModelEstimates(returns_s=known.returns_s, stays=known.stays)
    return _with(estimates, model, replace(known, revision=revision))


def note_switch(
    estimates: Estimates, model: str, took_s: float, *, is_cold: bool, was_parked: bool = False
) -> Estimates:
    """Learn from a switch to the model that took so long, the drain before it left out.

    A cold one read its file from the disk: that is no switch's cost, and nothing is learned. One
    whose server was parked tells what the next of the kind will take, and of no other.
    """
    known = _of(estimates, model)
    if was_parked:
        unparkings_s = _kept(known.unparkings_s, took_s)
        return _with(estimates, model, replace(known, unparkings_s=unparkings_s))
    if is_cold:
        return estimates
    return _with(estimates, model, replace(known, switches_s=_kept(known.switches_s, took_s)))


def note_drain(estimates: Estimates, model: str, took_s: float) -> Estimates:
    """Learn how long it took from the end of the model's admission to its last answer."""
    known = _of(estimates, model)
    return _with(estimates, model, replace(known, drains_s=_kept(known.drains_s, took_s)))


def note_stay(  # noqa: PLR0913 - what a stretch of time shows
    estimates: Estimates,
    model: str,
    *,
    answered: int,
    busy_s: float,
    arrived: int,
    elapsed_s: float,
) -> Estimates:
    """Learn from a stretch of time: what was answered in it, and what arrived.

    `busy_s` are the seconds in which at least one request was in flight: with `answered` they make
    the seconds per answer at the concurrency that there was. `arrived` requests came in
    `elapsed_s`, also while the model was not live.
    """
    known = _of(estimates, model)
    if answered:
        known = replace(known, services_s=_kept(known.services_s, busy_s / answered))
    if elapsed_s > 0:
        seen = StaySeen(arrived=arrived, elapsed_s=elapsed_s)
        known = replace(known, stays=(*known.stays, seen)[-KEPT:])
    return _with(estimates, model, known)


def note_return(estimates: Estimates, model: str, after_s: float) -> Estimates:
    """Learn from an absence: how long after the model was left those came who asked for it then.

    `after_s` is their mean. Clients that ask again because they were answered come at once, and
    nobody after them; of those that come whenever they like the mean is in the midst of the
    absence, which lasts for two switches and more. So one absence tells them apart where many
    come; of the lone ones some come early by chance, and thus the median of three counts. What was
    before, such as pauses before loops began, is forgotten after two.
    """
    known = _of(estimates, model)
    returns_s = (*known.returns_s, after_s)[-ABSENCES:]
    return _with(estimates, model, replace(known, returns_s=returns_s))


def costs_of(estimates: Estimates, model: str, *, is_parked: bool = False) -> Costs:
    """What a switch to the model costs, and what its requests do.

    `is_parked`: its server is, or will be.
    """
    known, switch_s = _of(estimates, model), load_s(estimates, model, is_parked=is_parked)
    return Costs(
        switch_s=SWITCH_S if switch_s is None else switch_s,
        drain_s=_quantile(known.drains_s, 0.5) if known.drains_s else 0.0,
        service_s=_quantile(known.services_s, 0.5) if known.services_s else 0.0,
        arrivals_per_s=_arrivals_per_s(known.stays),
        return_s=sorted(known.returns_s)[1] if len(known.returns_s) > 1 else None,
    )


def load_s(estimates: Estimates, model: str, *, is_parked: bool = False) -> float | None:
    """How long a switch to the model takes, the drain before it left out; None: not known yet.

    Of one whose server is parked, or will be, before that was measured: what others to it take.
    """
    known = _of(estimates, model)
    switches_s = (is_parked and known.unparkings_s) or known.switches_s
    return _quantile(switches_s, 0.5) if switches_s else None


def arrivals_per_s(estimates: Estimates, model: str) -> float:
    """How often the model is asked for; 0 as long as that is not known."""
    return _arrivals_per_s(_of(estimates, model).stays)


def longest_switch_s(estimates: Estimates, model: str, there: Sequence[str]) -> float:
    """Return how long a switch to the model should be begun before it is needed.

    As long as the slow ones of late, behind the slow drains of those that are there, and a quarter
    more. The very slowest of several is left out: it may have been one in twenty.
    """
    switch_s = _slow(_of(estimates, model).switches_s, UNKNOWN_SWITCH_S)
    drain_s = max((_slow(_of(estimates, name).drains_s, 0.0) for name in there), default=0.0)
    return 1.25 * (switch_s + drain_s)


def _slow(values: Sequence[float], unknown: float) -> float:
    """Return the second longest, of one or two values the longest."""
    return sorted(values)[-2 if len(values) > 2 else -1] if values else unknown


def _of(estimates: Estimates, model: str) -> ModelEstimates:
    return estimates.models.get(model) or ModelEstimates()


def _with(estimates: Estimates, model: str, known: ModelEstimates) -> Estimates:
    return Estimates(models={**estimates.models, model: known})


def _kept(values: tuple[float, ...], value: float) -> tuple[float, ...]:
    return (*values, value)[-KEPT:]


def _quantile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least so large a part of all does not exceed."""
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def _arrivals_per_s(stays: Sequence[StaySeen]) -> float:
    """The rate over the newest stretches that make up 20 arrivals; 0 before so many were seen.

    Two in a short stay would else be taken for a flood, and others made to wait for it. A night
    without requests counts only until enough have come since; a median of the stretches would be 0
    where most of them are short and see nobody.
    """
    arrived, elapsed_s = 0, 0.0
    for stay in reversed(stays):
        arrived += stay.arrived
        elapsed_s += stay.elapsed_s
        if arrived >= KEPT:
            break
    is_enough = arrived >= KEPT or len(stays) >= KEPT
    return arrived / elapsed_s if is_enough and elapsed_s else 0.0
