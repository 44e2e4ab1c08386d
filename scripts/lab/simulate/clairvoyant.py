"""What a policy could reach at best that knew every arrival beforehand: exact, for small traces.

Serving is first-come within a model and one request at a time. A dynamic programme over how many
of each model are served, and which came last; at each state stand the labels (time, wait so far)
that no other label beats in both.
"""

from collections.abc import Iterable, Iterator, Sequence
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
                for at, wait_s in labels:
                    starts_at = start(at, arrives_at, switch_s, is_ahead=may_switch_ahead)
                    grown.append((starts_at + model.service_s, wait_s + starts_at - arrives_at))
        frontier = {state: list(_unbeaten(labels)) for state, labels in reached.items()}
    return min(wait_s for labels in frontier.values() for _, wait_s in labels)


def start(at: float, arrives_at: float, switch_s: float, *, is_ahead: bool) -> float:
    """Return when a request is served at the earliest by a device that is free from `at`."""
    return max(at + switch_s, arrives_at) if is_ahead else max(at, arrives_at) + switch_s


def _unbeaten(labels: Iterable[Label]) -> Iterator[Label]:
    """Yield the labels for which no other is both as early and as cheap."""
    least_wait_s = float("inf")
    for at, wait_s in sorted(labels):
        if wait_s < least_wait_s:
            least_wait_s = wait_s
            yield at, wait_s
