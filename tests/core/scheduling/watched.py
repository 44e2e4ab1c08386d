"""A policy that is watched: what it is shown and what it decides, on a simulated device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from lab.simulate.knowledge import Told
from lab.simulate.simulation import Outcome, Simulation
from lab.simulate.workload import Client, Model

from supervisor.core.scheduling.turns import turns
from supervisor.core.scheduling.values import (
    Costs,
    Decision,
    Priority,
    Queue,
    SchedulingRules,
    Stay,
    View,
)


@dataclass(kw_only=True)
class StayRecord:
    """A stay that is over: how long it admitted, and whether anybody was left in its queue."""

    model: str
    since: float
    until: float
    granted: int
    still_waiting: int


@dataclass(kw_only=True)
class Watched:
    """Asks `turns`, and keeps a record. Waits are those of heads: since they count, until the stay.

    `switched_for`: how many waited for each switch. `longest_idle_s`: for how long nothing was
    done beside one and the same request that waited.
    """

    head_waits_s: list[tuple[str, Priority, float]] = field(default_factory=list)
    stays: list[StayRecord] = field(default_factory=list)
    switched_for: list[int] = field(default_factory=list)
    longest_idle_s: float = 0.0
    _idle_since: float | None = None
    _stay_since: float = 0.0

    def __call__(self, view: View) -> Decision:
        stay = view.stay
        assert stay is not None
        own = next((queue for queue in view.queues if queue.model == stay.model), None)
        if stay.since > self._stay_since:  # its first moment: nobody is admitted yet
            self._note_head(view.at, own)
            self._stay_since = stay.since
        self._note_idling(view, is_busy=bool(stay.in_flight or own))
        decision = turns(view)
        if decision.model is not None:
            self._note_switch(view, stay, own, decision.model)
        return decision

    def _note_head(self, at: float, own: Queue | None) -> None:
        if own is not None and own.oldest_at is not None:
            is_interactive = own.oldest_at == own.oldest_interactive_at
            priority = Priority.INTERACTIVE if is_interactive else Priority.BATCH
            since = max(own.oldest_at, own.left_at or 0.0)
            self.head_waits_s.append((own.model, priority, at - since))

    def _note_idling(self, view: View, *, is_busy: bool) -> None:
        oldest_at = min((queue.oldest_at or 0.0 for queue in view.queues), default=inf)
        if self._idle_since is not None and oldest_at < inf:
            idle_s = view.at - max(self._idle_since, oldest_at)
            self.longest_idle_s = max(self.longest_idle_s, idle_s)
        if is_busy:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = view.at

    def _note_switch(self, view: View, stay: Stay, own: Queue | None, model: str) -> None:
        self._idle_since = None
        self.switched_for.append(next(q.waiting for q in view.queues if q.model == model))
        self.stays.append(
            StayRecord(
                model=stay.model,
                since=stay.since,
                until=view.at,
                granted=stay.granted,
                still_waiting=own.waiting if own else 0,
            )
        )


def watch(
    costs: Mapping[str, Costs],
    clients: Sequence[Client],
    *,
    rules: SchedulingRules | None = None,
    slots: int = 1,
    until: float = inf,
) -> tuple[Watched, Outcome]:
    """Run clients against `turns`, which is told what everything costs; the first model is live.

    A request takes as long as its client says, else as its model's drain, the longest.
    """
    watched = Watched()
    models = [
        Model(name=name, service_s=known.drain_s, switch_s=known.switch_s)
        for name, known in costs.items()
    ]
    simulation = Simulation(models, watched, Told(costs), rules=rules, slots=slots)
    return watched, simulation.run((), clients, until)
