"""What the policy knows of the models in a simulated run: all of it from the start, or learned."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lab.simulate.workload import Model
from supervisor.core.scheduling import estimates
from supervisor.core.scheduling.estimates import Estimates
from supervisor.core.scheduling.values import Costs


class Knowledge(Protocol):
    """Costs by model; it is shown what happens, as the controller shows it to its estimates."""

    @property
    def costs(self) -> Mapping[str, Costs]:
        """What is known now."""

    def note_switch(self, model: str, took_s: float) -> None:
        """A switch to the model has ended."""

    def note_away(self, model: str, absence: "Absence") -> None:
        """The model is live again."""

    def note_leaving(self, model: str, stay: "Stayed") -> None:
        """The model has given way, its last request answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """How many asked for a model between two stays, and how long after the first, on average."""

    arrived: int
    after_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stayed:
    """What a stay has shown, and how many arrived in it."""

    answered: int
    busy_s: float
    drain_s: float
    arrived: int
    elapsed_s: float


class Told:
    """Knows what it was told, and has nothing to learn."""

    def __init__(self, costs: Mapping[str, Costs]) -> None:
        self.costs = costs

    def note_switch(self, model: str, took_s: float) -> None:
        """Nothing to learn."""

    def note_away(self, model: str, absence: Absence) -> None:
        """Nothing to learn."""

    def note_leaving(self, model: str, stay: Stayed) -> None:
        """Nothing to learn."""


class Known(Told):
    """Knows what is true."""

    def __init__(self, models: Iterable[Model]) -> None:
        super().__init__({model.name: _truth(model) for model in models})


def _truth(model: Model) -> Costs:
    """Return the costs of a model, whose clients come whenever they like."""
    return Costs(
        switch_s=model.switch_s,
        drain_s=model.service_s,
        service_s=model.service_s,
        arrivals_per_s=model.arrivals_per_s,
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

    def note_away(self, model: str, absence: Absence) -> None:
        """Learn how many come while the model is away, and how soon."""
        known = estimates.note_stay(
            self._estimates,
            model,
            answered=0,
            busy_s=0.0,
            arrived=absence.arrived,
            elapsed_s=absence.elapsed_s,
        )
        if absence.arrived:
            known = estimates.note_return(known, model, absence.after_s)
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

    def _renew(self, model: str, known: Estimates) -> None:
        self._estimates = known
        self.costs = {**self.costs, model: estimates.costs_of(known, model)}
