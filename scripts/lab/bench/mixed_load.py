"""Two models that want one device at once: a supervisor under the load of both, and what came."""

import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from typing import Any, TypeVar

from lab.bench.sides import Pair, Sides, running_sides
from lab.harness.command import LabError, say
from lab.harness.cpu import CpuMeter
from lab.harness.lean import LeanLoad, LeanTally, drive, drive_until_answered, post
from lab.harness.replay import poisson_moments, replay
from lab.harness.setting import CHAT_MODEL, EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

_Counted = TypeVar("_Counted")

MODELS = (CHAT_MODEL, EMBEDDING_MODEL)

TOKENS = 16
"""Tokens of a chat's answer: a short generation."""

ALONE_PART = 0.25
"""Part of a run's time for which each class is measured alone, half of it on either side."""

WARM_UP_S = 5.0
PROBES = 5
LEAD_S = 0.3
"""By how much both loads are started ahead, so that they begin together."""

STALL_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one model's clients saw: whole answers within the time, and how long each took."""

    answers_per_s: float
    latencies_s: Sequence[float]
    failures: Mapping[str, int]

    @property
    def failed(self) -> int:
        """How many requests got no right answer."""
        return sum(self.failures.values())

    def and_as_long(self, later: "Taken") -> "Taken":
        """Return what was seen in this time and in another that was as long."""
        return Taken(
            answers_per_s=(self.answers_per_s + later.answers_per_s) / 2,
            latencies_s=[*self.latencies_s, *later.latencies_s],
            failures=dict(Counter(self.failures) + Counter(later.failures)),
        )

    def summary(self) -> dict[str, Any]:
        """Sum up for the report."""
        return {
            "answers_per_s": self.answers_per_s,
            "answers": len(self.latencies_s),
            "failures": dict(self.failures),
            **{f"{name}_s": value for name, value in waits_of(self.latencies_s).items()},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One supervisor under both loads once.

    `switches`: how often the answers changed from one model to the other. `switches_s` and
    `drains_s`: of the product, the seconds that each switch took without its drain, and its drain.
    """

    by_model: Mapping[str, Taken]
    took_s: float
    switches: int
    switches_s: Sequence[float]
    drains_s: Sequence[float]
    others_share: float

    @property
    def latencies_s(self) -> list[float]:
        """Those of both models."""
        return [each for taken in self.by_model.values() for each in taken.latencies_s]

    @property
    def failed(self) -> int:
        """How many requests got no right answer."""
        return sum(taken.failed for taken in self.by_model.values())

    def switching_s(self, probed_s: float) -> float:
        """Return how long it switched; `probed_s` is what a switch takes where it does not say."""
        return sum(self.switches_s) if self.switches_s else self.switches * probed_s


class Contest:
    """Supervisors that are put under the same loads in turn."""

    def __init__(self, sides: Sides, pool: ProcessPoolExecutor, peers: Mapping[str, int]) -> None:
        self.sides = sides
        self._pool = pool
        self._pids = {"bench": os.getpid(), **peers}
        self.probed_s: dict[str, float] = {}

    def probe(self) -> None:
        """Measure what a switch takes with each: a request that needs one, less one that does not.

        Afterwards each has been warmed up, too.
        """
        for name, pair in self.sides.pairs.items():
            took_s = []
            for _ in range(PROBES):
                for model in MODELS:
                    first_s, second_s = (_ask_once(pair, model) for _ in range(2))
                    took_s.append(first_s - second_s)
            self.probed_s[name] = statistics.median(took_s)

    def alone(self, name: str, clients: int, seconds: float) -> dict[str, Taken]:
        """Put each model's load on a supervisor while the other model is not asked for.

        Raises LabError where one does not answer.
        """
        return {
            model: self._alone(self.sides.pairs[name], model, clients, seconds) for model in MODELS
        }

    def _alone(self, pair: Pair, model: str, clients: int, seconds: float) -> Taken:
        _ask_once(pair, model)
        return _taken(*self._submit(drive_until_answered, pair, model, clients, seconds).result())

    def closed(self, name: str, clients: int, seconds: float) -> Run:
        """Let so many clients of each model ask, each when it has its answer."""
        return self._run(
            name, seconds, lambda pair, model: self._submit(drive, pair, model, clients, seconds)
        )

    def open(self, name: str, rates: Mapping[str, float], seconds: float, seed: str) -> Run:
        """Let each model be asked at random moments, so often a second on average."""
        begins_at = time.monotonic() + LEAD_S

        def begin(pair: Pair, model: str) -> Future[LeanTally]:
            moments = poisson_moments(rates[model], seconds, f"{seed}:{model}")
            return self._submit(replay, pair, model, moments, begins_at)

        return self._run(name, seconds, begin)

    def _run(
        self, name: str, seconds: float, begin: Callable[[Pair, str], Future[LeanTally]]
    ) -> Run:
        meter = CpuMeter(self._pids, with_descendants=True)
        began_at, began_on_the_clock = time.monotonic(), time.time()
        loads = {model: begin(self.sides.pairs[name], model) for model in MODELS}
        tallies = {model: load.result() for model, load in loads.items()}
        took_s = time.monotonic() - began_at
        records = self._switches_since(name, began_on_the_clock)
        return Run(
            by_model={model: _taken(tally, seconds) for model, tally in tallies.items()},
            took_s=took_s,
            switches=changes([tally.ended_at for tally in tallies.values()]),
            switches_s=[each["total"] - each.get("draining", 0.0) for each in records],
            drains_s=[each.get("draining", 0.0) for each in records],
            others_share=meter.stop().others_share,
        )

    def _submit(
        self, function: Callable[..., _Counted], pair: Pair, model: str, *more: Any
    ) -> Future[_Counted]:
        side = pair[model]
        return self._pool.submit(function, load_of(model, side.prefix), side.endpoint, *more)

    def _switches_since(self, name: str, clock_s: float) -> list[Mapping[str, float]]:
        """Return the phases of the switches that one of ours has made since then."""
        controller = self.sides.controllers.get(name)
        if controller is None:
            return []
        listed = controller.call("GET", "/switches")["switches"]
        return [
            each["seconds"]
            for each in listed
            if each["outcome"] == "switched" and each["ended_at"] >= clock_s
        ]


@contextmanager
def contest_of(setting: Setting) -> Iterator[Contest]:
    """Start everybody, and measure what a switch takes with each."""
    with (
        ProcessPoolExecutor(len(MODELS), get_context("spawn")) as pool,
        running_sides(setting) as sides,
    ):
        peers = {name: sides.pairs[name][CHAT_MODEL].pid for name in setting.peers}
        contest = Contest(sides, pool, peers)
        say(f"  {', '.join(sides.pairs)}: what a switch takes …")
        contest.probe()
        yield contest


def load_of(model: str, prefix: str) -> LeanLoad:
    """Return the requests of a model's clients: short chats, or one text to embed each."""
    if model == EMBEDDING_MODEL:
        texts = short_texts(512, min_words=3, max_words=40)
        requests = [
            post(f"{prefix}/v1/embeddings", {"model": model, "input": text}) for text in texts
        ]
        return LeanLoad(requests=requests, mark=b'"embedding":[', stall_s=STALL_S)
    requests = [
        post(
            f"{prefix}/v1/chat/completions",
            {
                "model": model,
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": text}],
            },
        )
        for text in short_texts(256, min_words=10, max_words=60)
    ]
    return LeanLoad(requests=requests, mark=b'"finish_reason":"length"', stall_s=STALL_S)


def changes(ended_at: Sequence[Sequence[float]]) -> int:
    """Count how often the answers changed from one model to another, from when each was whole.

    With one device for all of them, each change is a switch.
    """
    answers = sorted((at, model) for model, moments in enumerate(ended_at) for at in moments)
    return sum(before[1] != after[1] for before, after in pairwise(answers))


def waits_of(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return their mean, median, 99th percentile and longest, in seconds; 0 for none."""
    if not latencies_s:
        return dict.fromkeys(("mean", "median", "p99", "longest"), 0.0)
    ordered = sorted(latencies_s)
    return {
        "mean": statistics.fmean(ordered),
        "median": statistics.median(ordered),
        "p99": ordered[math.ceil(len(ordered) * 0.99) - 1],
        "longest": ordered[-1],
    }


def _ask_once(pair: Pair, model: str) -> float:
    """Return the seconds until one request is answered. Raises LabError where it is not."""
    side = pair[model]
    tally = drive(load_of(model, side.prefix), side.endpoint, 1, seconds=0.0)
    if not tally.latencies_s:
        raise LabError(f"{model} at {side.endpoint.port}: no answer: {dict(tally.failures)}")
    return tally.latencies_s[0]


def _taken(tally: LeanTally, seconds: float) -> Taken:
    return Taken(
        answers_per_s=tally.units / seconds,
        latencies_s=tally.latencies_s,
        failures=dict(tally.failures),
    )
