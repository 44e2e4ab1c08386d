"""Clients that ask again once they are answered, and one that asks for more than its share."""

from collections.abc import Sequence
from dataclasses import dataclass

from lab.simulate.disciplines import exhaustive
from lab.simulate.knowledge import Known, Learned
from lab.simulate.simulation import Outcome, Simulation
from lab.simulate.workload import Client, Model, loop, poisson
from supervisor.core.scheduling.values import Policy, Priority, SchedulingRules

SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """So many clients of each of two models, on a device with so many slots.

    They ask again `think_s` after each answer, by default at once, but for the way; or up to
    `late_s` later.
    """

    clients: int
    chat_s: float
    embedding_s: float
    switch_s: float
    slots: int = 1
    think_s: float = 0.001
    late_s: float = 0.0

    def models(self) -> list[Model]:
        """Return the models; how often they are asked for follows from the clients."""
        pairs = (("chat", self.chat_s), ("embedding", self.embedding_s))
        return [Model(name=name, service_s=s, switch_s=self.switch_s) for name, s in pairs]

    def __str__(self) -> str:
        slots = f", {self.slots} slots" if self.slots > 1 else ""
        thinking = f", think {self.think_s:g} s" if self.think_s > self.embedding_s else ""
        late = f", up to {self.late_s:g} s late" if self.late_s else ""
        return f"{self.clients}+{self.clients}, switch {self.switch_s:g} s{slots}{thinking}{late}"

    def loops(self, models: Sequence[Model]) -> list[Client]:
        """Return the clients of these models."""
        each = [loop(model.name, self.think_s, late_s=self.late_s) for model in models]
        return [client for client in each for _ in range(self.clients)]


CROWDS = (
    Crowd(clients=1, chat_s=0.02, embedding_s=0.005, switch_s=0.4),
    Crowd(clients=1, chat_s=0.02, embedding_s=0.008, switch_s=0.14, late_s=0.001),
    Crowd(clients=4, chat_s=0.02, embedding_s=0.005, switch_s=0.4),
    Crowd(clients=4, chat_s=0.02, embedding_s=0.005, switch_s=0.4, think_s=0.05),
    Crowd(clients=8, chat_s=0.02, embedding_s=0.005, switch_s=0.4, slots=4),
    Crowd(clients=4, chat_s=0.5, embedding_s=0.05, switch_s=2.0),
    Crowd(clients=4, chat_s=0.5, embedding_s=0.05, switch_s=8.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What each model's clients get of what they get alone; the longest wait; time of switches."""

    chat: float
    embedding: float
    longest_wait_s: float
    switching: float

    def cells(self) -> tuple[float, float, float, float]:
        """Return them in that order."""
        return (self.chat, self.embedding, self.longest_wait_s, self.switching)


def shares(
    crowd: Crowd, policy: Policy, *, switching_share: float = 0.15, seconds: float = SECONDS
) -> Shares:
    """Run a crowd against a policy that has learned from the same crowd before."""
    models = crowd.models()
    learned = Learned(models)
    rules = SchedulingRules(switching_share=switching_share)
    for _ in range(2):
        simulation = Simulation(models, policy, learned, rules=rules, slots=crowd.slots)
        together = simulation.run((), crowd.loops(models), seconds)
    alone = [_served_alone(model, crowd, seconds) for model in models]
    parts = [
        len(together.waits_s[model.name]) / most for model, most in zip(models, alone, strict=True)
    ]
    return Shares(
        chat=parts[0],
        embedding=parts[1],
        longest_wait_s=together.longest_wait_s,
        switching=together.switching_s / seconds,
    )


def _served_alone(model: Model, crowd: Crowd, seconds: float) -> int:
    alone = Simulation([model], exhaustive, Known([model]), slots=crowd.slots)
    return len(alone.run((), crowd.loops([model]), seconds).waits_s[model.name])


def beside_greedy(policy: Policy, *, priority: Priority = Priority.INTERACTIVE) -> Outcome:
    """Run chats that come now and then beside a client that keeps 64 embeddings waiting."""
    chat = Model(name="chat", service_s=0.5, switch_s=0.4, arrivals_per_s=0.2)
    embedding = Model(name="embedding", service_s=0.05, switch_s=0.4, priority=priority)
    models = [chat, embedding]
    trace = poisson([chat], round(SECONDS * chat.arrivals_per_s), seed=1)
    clients = [loop(embedding.name)] * 64
    return Simulation(models, policy, Learned(models)).run(trace, clients, SECONDS)
