"""What a policy could reach at best that knew every arrival beforehand: exact, for small traces.

Serving is first-come within a model and one request at a time. A dynamic programme over how many
of each model are served, and which came last; at each state stand the labels (time, cost so far)
that no other label beats in both. What a wait costs is its length, or 1 if it is too long.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from lab.simulate.workload import Arrival, Model

Label: TypeAlias = tuple[float, float]
State: TypeAlias = tuple[tuple[int, ...], int]
"""How many of each model have been served, and the number of the model that is live."""


def least_total_wait_s(
    models: Sequence[Model], arrivals: Sequence[Arrival], *, may_switch_ahead: bool = True
) -> float:
    """Return the smallest sum of waits that any schedule has; the first model is live at 0.

    Without `may_switch_ahead`, a switch begins only once the request is there that it is for.
    """
    return _least_cost(models, arrivals, _length, may_switch_ahead=may_switch_ahead)


def least_wait_of_most_s(
    models: Sequence[Model], arrivals: Sequence[Arrival], part: float, within_s: float = 0.001
) -> float:
    """Return the smallest wait that so large a part of the requests does not exceed in a schedule.

    For 0.99, the 99th percentile at its best; for 1, the longest wait. Exact to `within_s`.
    """
    most_late = len(arrivals) - math.ceil(part * len(arrivals))
    below_s, above_s = 0.0, within_s
    while _late(models, arrivals, above_s, most_late) > most_late:
        below_s, above_s = above_s, 2 * above_s
    while above_s - below_s > within_s:
        middle_s = (below_s + above_s) / 2
        if _late(models, arrivals, middle_s, most_late) > most_late:
            below_s = middle_s
        else:
            above_s = middle_s
    return above_s


def _late(models: Sequence[Model], arrivals: Sequence[Arrival], limit_s: float, most: int) -> float:
    """How many must wait longer than that; infinity where it is more than `most`."""
    return _least_cost(models, arrivals, lambda wait_s: float(wait_s > limit_s), most=most)


def _length(wait_s: float) -> float:
    return wait_s


def _least_cost(
    models: Sequence[Model],
    arrivals: Sequence[Arrival],
    cost_of: Callable[[float], float],
    *,
    most: float = math.inf,
    may_switch_ahead: bool = True,
) -> float:
    """Return the least that all waits cost together; infinity where it is more than `most`."""
    times = [[at for at, name in arrivals if name == model.name] for model in models]
    frontier: dict[State, list[Label]] = {((0,) * len(models), 0): [(0.0, 0.0)]}
    for _ in arrivals:
        reached: dict[State, list[Label]] = {}
        for (served, live), labels in frontier.items():
            for number, model in enumerate(models):
                if served[number] == len(times[number]):
                    continue
                arrives_at = times[number][served[number]]
                after = (*served[:number], served[number] + 1, *served[number + 1 :])
                switch_s = model.switch_s if number != live else 0.0
                grown = reached.setdefault((after, number), [])
                for at, cost in labels:
                    starts_at = start(at, arrives_at, switch_s, is_ahead=may_switch_ahead)
                    total = cost + cost_of(starts_at - arrives_at)
                    if total <= most:
                        grown.append((starts_at + model.service_s, total))
        frontier = {state: list(_unbeaten(labels)) for state, labels in reached.items() if labels}
    return min((cost for labels in frontier.values() for _, cost in labels), default=math.inf)


def start(at: float, arrives_at: float, switch_s: float, *, is_ahead: bool) -> float:
    """Return when a request is served at the earliest by a device that is free from `at`."""
    return max(at + switch_s, arrives_at) if is_ahead else max(at, arrives_at) + switch_s


def _unbeaten(labels: Iterable[Label]) -> Iterator[Label]:
    """Yield the labels for which no other is both as early and as cheap."""
    least = math.inf
    for at, cost in sorted(labels):
        if cost < least:
            least = cost
            yield at, cost
