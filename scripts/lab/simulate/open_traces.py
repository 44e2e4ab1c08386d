"""Poisson traces: what policies make of them, beside what could be had at best.

Everything is judged by the total wait, summed over the seeds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Self

from lab.simulate.clairvoyant import least_total_wait_s, least_wait_of_most_s
from lab.simulate.disciplines import DISCIPLINES
from lab.simulate.knowledge import Knowledge, Known, Learned
from lab.simulate.simulation import Simulation
from lab.simulate.stationary import best_stationary
from lab.simulate.workload import Arrival, Model, bursts, two_models
from supervisor.core.scheduling.policies import POLICIES
from supervisor.core.scheduling.values import Policy

REQUESTS = 80
"""In each trace: so few that the optimum is exact."""

LEARNING_REQUESTS = 200
"""So many come before those that are judged, where the policy has to learn."""

NEAR_FULL = 0.9
"""From this load on, the truncated chain does not give the best stationary policy."""

MOST = 0.99
"""The part of the requests whose longest wait is a tail."""

STATIONARY, CLAIRVOYANT = "best stationary", "clairvoyant"

PRACTISED: Mapping[str, Policy] = {**DISCIPLINES, **POLICIES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Two models, by the seconds that a request of each and a switch to either take.

    Requests come `burst` at a time.
    """

    chat_s: float
    embedding_s: float
    switch_s: float
    burst: int = 1

    def models(self, load: float) -> list[Model]:
        """Return them, asked for equally often, so that service takes `load` of the time."""
        return two_models(self.chat_s, self.embedding_s, self.switch_s, load)

    def trace(self, load: float, seed: int, requests: int = REQUESTS) -> list[Arrival]:
        """Return so many arrivals."""
        return bursts(self.models(load), requests, self.burst, seed)

    def __str__(self) -> str:
        burst = f", {self.burst} at a time" if self.burst > 1 else ""
        return f"{self.chat_s:g} / {self.embedding_s:g} s, switch {self.switch_s:g} s{burst}"


EQUAL = (
    Setting(chat_s=0.5, embedding_s=0.5, switch_s=0.5),
    Setting(chat_s=0.5, embedding_s=0.5, switch_s=2.0),
)
UNEQUAL = (
    Setting(chat_s=0.5, embedding_s=0.05, switch_s=2.0),
    Setting(chat_s=0.5, embedding_s=0.05, switch_s=8.0),
)
VERY_UNEQUAL = Setting(chat_s=5.0, embedding_s=0.05, switch_s=2.0)
IN_BURSTS = Setting(chat_s=0.5, embedding_s=0.05, switch_s=2.0, burst=8)

OVER_STATIONARY: Mapping[Setting, float] = {
    **dict.fromkeys(EQUAL, 1.10),
    **dict.fromkeys(UNEQUAL, 1.35),
}
"""To be reached by `turns` at load 0.3 and 0.6: its total wait over the best stationary one's."""

OVER_CLAIRVOYANT: Mapping[Setting, float] = dict.fromkeys(EQUAL, 1.5)
"""To be reached at load 0.6. At 0.3 nobody can: not even the best stationary policy does."""


def total_waits_s(
    setting: Setting, load: float, seeds: Sequence[int], policies: Mapping[str, Policy] = PRACTISED
) -> dict[str, float]:
    """Return the total wait of each policy, all rates known.

    The best stationary one is among them, but near load 1, where it cannot be computed well.
    """
    models = setting.models(load)
    stationary = best_stationary(models) if load < NEAR_FULL else None
    waits_s: dict[str, float] = defaultdict(float)
    for seed in seeds:
        trace = setting.trace(load, seed)
        compared = dict(policies)
        if stationary:
            compared[STATIONARY] = stationary.until(trace[-1][0])
        for name, policy in compared.items():
            waits_s[name] += Simulation(models, policy, Known(models)).run(trace).total_wait_s
    return waits_s


def optimum_s(
    setting: Setting, load: float, seeds: Sequence[int], *, may_switch_ahead: bool = True
) -> float:
    """Return the total wait of whoever knows the traces beforehand."""
    models = setting.models(load)
    traces = (setting.trace(load, seed) for seed in seeds)
    return sum(
        least_total_wait_s(models, trace, may_switch_ahead=may_switch_ahead) for trace in traces
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """The waits of a trace: their mean, their 99th percentile, and the longest."""

    mean_s: float
    p99_s: float
    longest_s: float

    @classmethod
    def of(cls, waits_s: Iterable[float]) -> Self:
        """Return those of waits."""
        ordered = sorted(waits_s)
        at_p99 = math.ceil(MOST * len(ordered)) - 1
        return cls(mean_s=fmean(ordered), p99_s=ordered[at_p99], longest_s=ordered[-1])


def tails(models: Sequence[Model], trace: Sequence[Arrival]) -> dict[str, Tail]:
    """Return the waits of those that are compared; each of the clairvoyant's is the least of all.

    No schedule need have all three of them.
    """
    found = {
        name: Tail.of(chain(*Simulation(models, policy, Known(models)).run(trace).waits_s.values()))
        for name, policy in PRACTISED.items()
    }
    least = Tail(
        mean_s=least_total_wait_s(models, trace) / len(trace),
        p99_s=least_wait_of_most_s(models, trace, MOST),
        longest_s=least_wait_of_most_s(models, trace, 1.0),
    )
    return {**found, CLAIRVOYANT: least}


def mean_waits_s(
    setting: Setting, load: float, seeds: Sequence[int], policies: Mapping[str, Policy]
) -> dict[str, float]:
    """Return the mean wait of a request: of the policies, the best stationary one, the optimum."""
    total_s = total_waits_s(setting, load, seeds, policies)
    total_s[CLAIRVOYANT] = optimum_s(setting, load, seeds)
    return {name: wait_s / (len(seeds) * REQUESTS) for name, wait_s in total_s.items()}


def learned_over_known(setting: Setting, load: float, seeds: Sequence[int]) -> float:
    """Return what `turns` waits with learned rates over what it waits when it knows them.

    Both are given the same traces, longer ones, of which the first requests are not judged.
    """
    models = setting.models(load)
    learned_s = known_s = 0.0
    for seed in seeds:
        trace = setting.trace(load, seed, LEARNING_REQUESTS + REQUESTS)
        learned_s += _late_wait_s(models, Learned(models), trace)
        known_s += _late_wait_s(models, Known(models), trace)
    return learned_s / known_s


def _late_wait_s(models: Sequence[Model], knowledge: Knowledge, trace: Sequence[Arrival]) -> float:
    waits_s = Simulation(models, POLICIES["turns"], knowledge).run(trace).waits_s.values()
    return sum(sum(each[LEARNING_REQUESTS // len(waits_s) :]) for each in waits_s)
