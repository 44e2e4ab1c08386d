"""The best stationary policy for two models, by value iteration on a Markov chain.

For the chain, services, switches and gaps between arrivals are exponential, and an arrival at a
queue of 40 is lost; near load 1 that would distort the policy. Uniformisation: in each round one
event happens, at the rate at which all events together can; those that cannot now change nothing.
"""

from collections.abc import Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from lab.harness.command import LabError
from lab.simulate.disciplines import own_queue
from lab.simulate.workload import Model
from supervisor.core.scheduling.values import Decision, View

MOST_REQUESTS = 40

Values = NDArray[np.float64]
"""By the model that is live or comes, by what it does, by the requests of the first, the second."""

_SERVING, _IDLE, _COMING = range(3)
_SWITCH = 2
"""The place of the switch among the options."""

_SHAPE = (2, 3, MOST_REQUESTS + 1, MOST_REQUESTS + 1)
_SETTLED = 1e-3
_MOST_ROUNDS = 100_000


def best_stationary(models: Sequence[Model]) -> "StationaryPolicy":
    """Return the policy with the least mean number of waiting requests, for two models.

    It decides upon the numbers of requests, whenever no service and no switch runs. Raises LabError
    when the values do not settle.
    """
    values = np.zeros(_SHAPE)
    free = _free(values)
    for _ in range(_MOST_ROUNDS):
        values = _after_one_event(values, free, models)
        before, free = free, _free(values)
        grown = free - before
        values -= (least := grown.min())
        free -= least
        if np.ptp(grown) < _SETTLED * least:
            switches = (_options(values).argmin(axis=1) == _SWITCH).tolist()
            return StationaryPolicy([model.name for model in models], switches, inf)
    raise LabError(f"value iteration has not settled in {_MOST_ROUNDS} rounds")


def _options(values: Values) -> Values:
    """Return what follows from serving, from idling, and from a switch to the other model."""
    options = np.stack((values[:, _SERVING], values[:, _IDLE], values[::-1, _COMING]), axis=1)
    options[0, _SERVING, 0, :] = options[1, _SERVING, :, 0] = np.inf
    return options


def _free(values: Values) -> Values:
    """Return the values of the states in which the device is free to do what is best."""
    return np.asarray(_options(values).min(axis=1))


def _after_one_event(values: Values, free: Values, models: Sequence[Model]) -> Values:
    ends_per_s = np.array([(1 / each.service_s, 0.0, 1 / each.switch_s) for each in models])
    first_per_s, second_per_s = (model.arrivals_per_s for model in models)
    events_per_s = ends_per_s.max() + first_per_s + second_per_s
    seen = values.copy()
    seen[:, _IDLE] = free
    one_more_first = np.concatenate((seen[:, :, 1:], seen[:, :, -1:]), axis=2)
    one_more_second = np.concatenate((seen[..., 1:], seen[..., -1:]), axis=3)
    ended = np.zeros(_SHAPE)
    ended[0, _SERVING, 1:] = free[0, :-1]
    ended[1, _SERVING, :, 1:] = free[1, :, :-1]
    ended[:, _COMING] = free
    rates = ends_per_s[..., None, None]
    none_per_s = events_per_s - first_per_s - second_per_s - rates
    arrived = first_per_s * one_more_first + second_per_s * one_more_second
    return np.asarray((_waiting() + arrived + rates * ended + none_per_s * values) / events_per_s)


def _waiting() -> Values:
    """Return how many wait: all requests but the one that is served."""
    counts = np.arange(MOST_REQUESTS + 1, dtype=np.float64)
    waiting = np.broadcast_to(counts[:, None] + counts, _SHAPE).copy()
    waiting[:, _SERVING] -= 1
    return waiting


class StationaryPolicy:
    """Looks up what is best to be done.

    Once no more arrivals come, from `ends_at` on, it waits for none: it leaves an empty resident.
    """

    def __init__(
        self, names: Sequence[str], switches: Sequence[Sequence[Sequence[bool]]], ends_at: float
    ) -> None:
        self._names, self._switches, self._ends_at = names, switches, ends_at

    def until(self, ends_at: float) -> "StationaryPolicy":
        """Return the same policy for a trace whose last arrival is then."""
        return StationaryPolicy(self._names, self._switches, ends_at)

    def __call__(self, view: View) -> Decision:
        """Decide; a service that runs is not interrupted."""
        assert view.stay
        if view.stay.in_flight:
            return Decision()
        waiting = {queue.model: min(queue.waiting, MOST_REQUESTS) for queue in view.queues}
        live = self._names.index(view.stay.model)
        first, second = (waiting.get(name, 0) for name in self._names)
        if self._switches[live][first][second]:
            return Decision(model=self._names[1 - live])
        if own_queue(view) or not waiting:
            return Decision()
        if view.at < self._ends_at < inf:
            return Decision(wake_at=self._ends_at)
        return Decision(model=self._names[1 - live] if view.at >= self._ends_at else None)
