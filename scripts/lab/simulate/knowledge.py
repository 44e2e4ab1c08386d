"""What the policy knows of the models in a simulated run: all of it from the start, or learned."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log
from typing import Protocol

from lab.simulate.workload import Model
from supervisor.core.scheduling import estimates
from supervisor.core.scheduling.estimates import Estimates
from supervisor.core.scheduling.values import Costs, ReturnGap


class Knowledge(Protocol):
    """Costs by model; it is shown what happens, as the controller shows it to its estimates."""

    @property
    def costs(self) -> Mapping[str, Costs]:
        """What is known now."""

    def note_switch(self, model: str, took_s: float) -> None:
        """A switch to the model has ended."""

    def note_away(self, model: str, arrived: int, elapsed_s: float) -> None:
        """The model is live again; so many have come since its last stay."""

    def note_leaving(self, model: str, stay: "Stayed") -> None:
        """The model has given way, its last request answered."""

    def note_return(self, model: str, gap_s: float) -> None:
        """A model with nothing to do is asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stayed:
    """What a stay has shown, and how many arrived in it."""

    answered: int
    busy_s: float
    drain_s: float
    arrived: int
    elapsed_s: float


class Known:
    """Knows what is true, and has nothing to learn."""

    def __init__(self, models: Iterable[Model]) -> None:
        self.costs: Mapping[str, Costs] = {model.name: _truth(model) for model in models}

    def note_switch(self, model: str, took_s: float) -> None:
        """Nothing to learn."""

    def note_away(self, model: str, arrived: int, elapsed_s: float) -> None:
        """Nothing to learn."""

    def note_leaving(self, model: str, stay: Stayed) -> None:
        """Nothing to learn."""

    def note_return(self, model: str, gap_s: float) -> None:
        """Nothing to learn."""


def _truth(model: Model) -> Costs:
    """Return the costs of a model; its gaps are exponential where its clients have a rate."""
    rate = model.arrivals_per_s
    return Costs(
        switch_s=model.switch_s,
        drain_s=model.service_s,
        service_s=model.service_s,
        arrivals_per_s=rate,
        return_gap=ReturnGap(median_s=log(2) / rate, p90_s=log(10) / rate) if rate else None,
    )


class Learned:
    """Learns as the controller does, from nothing on."""

    def __init__(self, models: Iterable[Model]) -> None:
        self._estimates = Estimates()
        names = [model.name for model in models]
        self.costs = {name: estimates.costs_of(self._estimates, name) for name in names}

    def note_switch(self, model: str, took_s: float) -> None:
        """Learn what a switch costs."""
        known = estimates.note_switch(self._estimates, model, took_s, is_cold=False)
        self._renew(model, known)

    def note_away(self, model: str, arrived: int, elapsed_s: float) -> None:
        """Learn how many come while the model is away."""
        known = estimates.note_stay(
            self._estimates, model, answered=0, busy_s=0.0, arrived=arrived, elapsed_s=elapsed_s
        )
        self._renew(model, known)

    def note_leaving(self, model: str, stay: Stayed) -> None:
        """Learn how fast requests are answered, and how many come."""
        known = estimates.note_drain(self._estimates, model, stay.drain_s)
        known = estimates.note_stay(
            known,
            model,
            answered=stay.answered,
            busy_s=stay.busy_s,
            arrived=stay.arrived,
            elapsed_s=stay.elapsed_s,
        )
        self._renew(model, known)

    def note_return(self, model: str, gap_s: float) -> None:
        """Learn how soon clients come back."""
        self._renew(model, estimates.note_return(self._estimates, model, gap_s))

    def _renew(self, model: str, known: Estimates) -> None:
        self._estimates = known
        self.costs = {**self.costs, model: estimates.costs_of(known, model)}
