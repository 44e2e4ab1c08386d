"""A device on a virtual clock, on which a policy of the core decides who gets it.

As in the controller: a switch closes admission, waits for what is in flight, and takes its time;
what waits for the resident is admitted in the order of its arrival, as places become free.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

from lab.harness.command import LabError
from lab.simulate.knowledge import Knowledge, Stayed
from lab.simulate.workload import Arrival, Loop, Model
from supervisor.core.scheduling.values import (
    Policy,
    Priority,
    Queue,
    SchedulingRules,
    Stay,
    View,
)


@dataclass(slots=True)
class Outcome:
    """What became of the requests: by model, how long each waited until it was served.

    `oldest_unserved_s`: how long the oldest has waited of those that the end left waiting.
    """

    waits_s: dict[str, list[float]]
    oldest_unserved_s: float = 0.0
    switches: int = 0
    switching_s: float = 0.0
    decisions: int = 0
    ended_at: float = 0.0

    @property
    def total_wait_s(self) -> float:
        """The sum over all requests that were served."""
        return sum(map(sum, self.waits_s.values()))

    @property
    def longest_wait_s(self) -> float:
        """Of the request that waited longest, served or not."""
        return max(self.oldest_unserved_s, *(max(w, default=0.0) for w in self.waits_s.values()))


@dataclass(slots=True)
class _Line:
    """The requests that wait for a model, with the loop that asked, if one did.

    `idle_since`: since when the model has nothing to do, live or not. `arrived` have come since
    `noted_at`, when what happens was noted last.
    """

    model: Model
    requests: deque[tuple[float, Loop | None]] = field(default_factory=deque)
    arrived_at_sum: float = 0.0
    left_at: float | None = None
    idle_since: float | None = None
    arrived: int = 0
    noted_at: float = 0.0

    def queue(self) -> Queue:
        """Return it as policies see it."""
        oldest_at, waiting = self.requests[0][0], len(self.requests)
        is_batch = self.model.priority is Priority.BATCH
        return Queue(
            model=self.model.name,
            interactive=0 if is_batch else waiting,
            batch=waiting if is_batch else 0,
            oldest_at=oldest_at,
            oldest_interactive_at=None if is_batch else oldest_at,
            arrived_at_sum=self.arrived_at_sum,
            left_at=self.left_at,
        )


@dataclass(slots=True)
class _Held:
    """The stay of the resident, as it goes on.

    `next_model` is set once it has to give way, from `closed_at` on. It was busy for `busy_s` in
    all until `busy_since`.
    """

    model: Model
    since: float
    granted: int = 0
    in_flight: int = 0
    empty_since: float | None = 0.0
    next_model: str | None = None
    closed_at: float = 0.0
    busy_s: float = 0.0
    busy_since: float = 0.0

    def stay(self) -> Stay:
        """Return it as policies see it."""
        is_batch = self.model.priority is Priority.BATCH
        return Stay(
            model=self.model.name,
            since=self.since,
            granted=self.granted,
            in_flight=self.in_flight,
            interactive_in_flight=0 if is_batch else self.in_flight,
            empty_since=self.empty_since,
        )


class Simulation:
    """One run; the first model is live at 0. `slots` requests are served at the same time."""

    def __init__(
        self,
        models: Sequence[Model],
        policy: Policy,
        knowledge: Knowledge,
        *,
        rules: SchedulingRules | None = None,
        slots: int = 1,
    ) -> None:
        self._policy, self._knowledge, self._slots = policy, knowledge, slots
        self._rules = rules or SchedulingRules()
        self._lines = {model.name: _Line(model) for model in models}
        self._held = _Held(model=models[0], since=0.0)
        self._is_switching = False
        self._now = 0.0
        self._wake_at = inf
        self._due: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._numbers = count()
        self._chance = random.Random(1)
        self._unanswered = 0
        self._outcome = Outcome({model.name: [] for model in models})

    def run(
        self, arrivals: Iterable[Arrival], loops: Sequence[Loop] = (), until: float = inf
    ) -> Outcome:
        """Let the arrivals come, in their order, and the loops ask, until all are served.

        Loops ask for ever: with any of them, `until` is when the run ends. Raises LabError for a
        policy that goes on deciding without letting time pass, or switches to what is live.
        """
        for loop in loops:
            self._at(loop.think_s, self._ask_again, loop)
        stream = iter(arrivals)
        arrival = next(stream, None)
        while arrival or loops or self._unanswered:
            arrives_at = arrival[0] if arrival else inf
            due_at = self._due[0][0] if self._due else inf
            at = min(arrives_at, due_at, self._wake_at)
            if at > until:
                return self._ended(until)
            if at == inf:
                raise LabError(f"the policy lets {self._unanswered} requests wait for ever")
            self._now = at
            if arrival and arrives_at == at:
                self._arrive(arrival[1], None)
                arrival = next(stream, None)
            elif due_at == at:
                _, _, happen, subject = heappop(self._due)
                happen(subject)
            if not self._is_switching and self._held.next_model is None:
                self._decide()
        return self._ended(self._now)

    def _ended(self, at: float) -> Outcome:
        heads = [line.requests[0][0] for line in self._lines.values() if line.requests]
        self._outcome.ended_at = at
        self._outcome.oldest_unserved_s = at - min(heads, default=at)
        return self._outcome

    def _at(self, at: float, happen: Callable[[Any], None], subject: Any) -> None:
        heappush(self._due, (at, next(self._numbers), happen, subject))

    def _ask_again(self, loop: Loop) -> None:
        self._arrive(loop.model, loop)

    def _arrive(self, model: str, loop: Loop | None) -> None:
        line = self._lines[model]
        line.requests.append((self._now, loop))
        line.arrived_at_sum += self._now
        line.arrived += 1
        if line.idle_since is not None:
            self._knowledge.note_return(model, self._now - line.idle_since)
            line.idle_since = None
        self._unanswered += 1

    def _decide(self) -> None:
        decision = self._policy(self._view())
        self._outcome.decisions += 1
        self._wake_at = inf
        if decision.model is None:
            self._admit()
            if decision.wake_at is not None:
                if decision.wake_at <= self._now:
                    raise LabError(f"woken at {self._now}, the policy wants to be woken then again")
                self._wake_at = decision.wake_at
        elif decision.model == self._held.model.name:
            raise LabError(f"the policy switches to {decision.model}, which is live")
        else:
            self._held.next_model = decision.model
            self._held.closed_at = self._now
            self._switch_when_empty()

    def _view(self) -> View:
        return View(
            at=self._now,
            stay=self._held.stay(),
            queues=tuple(line.queue() for line in self._lines.values() if line.requests),
            costs=self._knowledge.costs,
            rules=self._rules,
        )

    def _admit(self) -> None:
        held = self._held
        line = self._lines[held.model.name]
        while line.requests and held.in_flight < self._slots:
            arrived_at, loop = line.requests.popleft()
            line.arrived_at_sum -= arrived_at
            self._outcome.waits_s[held.model.name].append(self._now - arrived_at)
            held.granted += 1
            held.in_flight += 1
            if held.empty_since is not None:
                held.empty_since, held.busy_since = None, self._now
            self._at(self._now + line.model.service_s, self._answer, loop)

    def _answer(self, loop: Loop | None) -> None:
        held = self._held
        self._unanswered -= 1
        if loop:
            late_s = loop.late_s * self._chance.random()
            self._at(self._now + loop.think_s + late_s, self._ask_again, loop)
        held.in_flight -= 1
        if not held.in_flight:
            held.empty_since = self._now
            held.busy_s += self._now - held.busy_since
            line = self._lines[held.model.name]
            if not line.requests:
                line.idle_since = self._now
            self._switch_when_empty()

    def _switch_when_empty(self) -> None:
        target = self._held.next_model
        if target is None or self._held.in_flight:
            return
        self._note_leaving()
        self._is_switching = True
        took_s = self._lines[target].model.switch_s
        self._outcome.switches += 1
        self._outcome.switching_s += took_s
        self._at(self._now + took_s, self._become_live, target)

    def _note_leaving(self) -> None:
        held, line = self._held, self._lines[self._held.model.name]
        stayed = Stayed(
            answered=held.granted,
            busy_s=held.busy_s,
            drain_s=self._now - held.closed_at,
            arrived=line.arrived,
            elapsed_s=self._now - line.noted_at,
        )
        self._knowledge.note_leaving(held.model.name, stayed)
        line.arrived, line.noted_at, line.left_at = 0, self._now, self._now

    def _become_live(self, target: str) -> None:
        self._is_switching = False
        line = self._lines[target]
        self._knowledge.note_switch(target, line.model.switch_s)
        self._knowledge.note_away(target, line.arrived, self._now - line.noted_at)
        line.arrived, line.noted_at = 0, self._now
        self._held = _Held(model=self._lines[target].model, since=self._now, empty_since=self._now)
