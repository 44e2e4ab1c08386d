"""What a simulated device is asked for: models with their true costs, traces, clients."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from math import inf
from typing import Any, TypeAlias

from supervisor.core.scheduling.values import Priority

Arrival: TypeAlias = tuple[float, str]
"""When a request comes, and which model it wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model as it truly is: seconds for a request, and for a switch to it; its clients' rate.

    `priority` is that of its requests, as long as a client does not want another.
    """

    name: str
    service_s: float
    switch_s: float
    arrivals_per_s: float = 0.0
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Asks for a model at `at`, and again `think_s` after each answer (None: once).

    It may ask up to `late_s` later. It leaves when it was not admitted within `patience_s`.
    `service_s` and `priority` are the model's unless said otherwise.
    """

    model: str
    at: float = 0.0
    think_s: float | None = None
    late_s: float = 0.0
    patience_s: float = inf
    service_s: float | None = None
    priority: Priority | None = None


def loop(model: str, think_s: float = 0.001, **more: Any) -> Client:
    """Return a client that asks again at once, but for the way."""
    return Client(model=model, at=think_s, think_s=think_s, **more)


def two_models(chat_s: float, embedding_s: float, switch_s: float, load: float) -> list[Model]:
    """Return two models that are asked for equally often and keep the device busy for `load`.

    `load` is ρ: the share of the time that service alone takes.
    """
    rate = load / (chat_s + embedding_s)
    pairs = (("chat", chat_s), ("embedding", embedding_s))
    return [
        Model(name=name, service_s=service_s, switch_s=switch_s, arrivals_per_s=rate)
        for name, service_s in pairs
    ]


def poisson(models: Sequence[Model], requests: int, seed: int) -> list[Arrival]:
    """Return so many arrivals in all, of each model at its rate, apart from all others."""
    return bursts(models, requests, 1, seed)


def bursts(models: Sequence[Model], requests: int, size: int, seed: int) -> list[Arrival]:
    """Return so many arrivals in all, of each model at its rate, `size` of them at a time."""
    arrivals_per_s = sum(model.arrivals_per_s for model in models)
    parts = [round(requests * model.arrivals_per_s / arrivals_per_s) for model in models]
    each = zip(models, parts, strict=True)
    return list(merge(*(_of_one(model, part, size, seed) for model, part in each)))


def _of_one(model: Model, requests: int, size: int, seed: int) -> Iterator[Arrival]:
    chance = random.Random(f"{seed} {model.name}")
    at = 0.0
    for number in range(requests):
        if number % size == 0:
            at += chance.expovariate(model.arrivals_per_s / size)
        yield at, model.name
