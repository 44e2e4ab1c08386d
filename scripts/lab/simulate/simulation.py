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
from lab.simulate.knowledge import Absence, Knowledge, Stayed
from lab.simulate.workload import Arrival, Client, Model
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


@dataclass(slots=True, eq=False)
class _Request:
    """One that waits, or is served; `client` is who asked, if not a trace."""

    at: float
    service_s: float
    is_batch: bool
    client: Client | None


@dataclass(slots=True)
class _Line:
    """The requests that wait for a model, interactive ones and batch work.

    `came` have come since `noted_at`, when what happens was noted last, with that sum of moments.
    """

    model: Model
    interactive: deque[_Request] = field(default_factory=deque)
    batch: deque[_Request] = field(default_factory=deque)
    arrived_at_sum: float = 0.0
    left_at: float | None = None
    came: int = 0
    came_at_sum: float = 0.0
    noted_at: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.interactive or self.batch)

    def join(self, request: _Request) -> None:
        """Put it at the end."""
        (self.batch if request.is_batch else self.interactive).append(request)
        self.arrived_at_sum += request.at
        self.came += 1
        self.came_at_sum += request.at

    def leave(self, request: _Request) -> bool:
        """Take it out of the middle; returns whether it was there."""
        waiting = self.batch if request.is_batch else self.interactive
        if request not in waiting:
            return False
        waiting.remove(request)
        self.arrived_at_sum -= request.at
        return True

    def take(self, aged_at: float) -> _Request:
        """Take the most urgent: batch work that came before `aged_at` goes before all."""
        is_aged = self.batch and self.batch[0].at <= aged_at
        request = (self.batch if is_aged or not self.interactive else self.interactive).popleft()
        self.arrived_at_sum -= request.at
        return request

    def oldest_at(self) -> float:
        """Return when the first of all came; infinity where nobody waits."""
        return min(line[0].at if line else inf for line in (self.interactive, self.batch))

    def note(self, at: float) -> tuple[int, float]:
        """Return how many have come and the sum of their moments, and count anew from now."""
        seen = self.came, self.came_at_sum
        self.came, self.came_at_sum, self.noted_at = 0, 0.0, at
        return seen

    def queue(self) -> Queue:
        """Return it as policies see it."""
        return Queue(
            model=self.model.name,
            interactive=len(self.interactive),
            batch=len(self.batch),
            oldest_at=self.oldest_at(),
            oldest_interactive_at=self.interactive[0].at if self.interactive else None,
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
    queued: int = 0
    granted: int = 0
    in_flight: int = 0
    interactive_in_flight: int = 0
    empty_since: float | None = 0.0
    next_model: str | None = None
    closed_at: float = 0.0
    busy_s: float = 0.0
    busy_since: float = 0.0

    def stay(self) -> Stay:
        """Return it as policies see it."""
        return Stay(
            model=self.model.name,
            since=self.since,
            queued=self.queued,
            granted=self.granted,
            in_flight=self.in_flight,
            interactive_in_flight=self.interactive_in_flight,
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
        self._coming = self._unanswered = 0
        self._outcome = Outcome({model.name: [] for model in models})

    def run(
        self, arrivals: Iterable[Arrival], clients: Sequence[Client] = (), until: float = inf
    ) -> Outcome:
        """Let the arrivals come, in their order, and the clients ask, until all are served.

        Clients that ask again do so for ever: with any of them, `until` is when the run ends.
        Raises LabError for a policy that goes on deciding without letting time pass, or switches to
        what is live.
        """
        for client in clients:
            self._ask_at(client.at, client)
        stream = iter(arrivals)
        arrival = next(stream, None)
        while arrival or self._coming or self._unanswered:
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
        self._outcome.ended_at = at
        oldest_at = min(line.oldest_at() for line in self._lines.values())
        self._outcome.oldest_unserved_s = max(0.0, at - oldest_at)
        return self._outcome

    def _at(self, at: float, happen: Callable[[Any], None], subject: Any) -> None:
        heappush(self._due, (at, next(self._numbers), happen, subject))

    def _ask_at(self, at: float, client: Client) -> None:
        self._coming += 1
        self._at(at, self._ask, client)

    def _ask(self, client: Client) -> None:
        self._coming -= 1
        request = self._arrive(client.model, client)
        if client.patience_s < inf:
            self._at(self._now + client.patience_s, self._give_up, (client.model, request))

    def _arrive(self, model: str, client: Client | None) -> _Request:
        line = self._lines[model]
        service_s, priority = line.model.service_s, line.model.priority
        if client is not None:
            service_s = service_s if client.service_s is None else client.service_s
            priority = client.priority or priority
        request = _Request(self._now, service_s, priority is Priority.BATCH, client)
        line.join(request)
        self._unanswered += 1
        return request

    def _give_up(self, place: tuple[str, _Request]) -> None:
        model, request = place
        if self._lines[model].leave(request):
            self._unanswered -= 1

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
            queues=tuple([line.queue() for line in self._lines.values() if line]),
            costs=self._knowledge.costs,
            rules=self._rules,
        )

    def _admit(self) -> None:
        held = self._held
        line = self._lines[held.model.name]
        while line and held.in_flight < self._slots:
            request = line.take(self._now - self._rules.batch_ages_s)
            self._outcome.waits_s[held.model.name].append(self._now - request.at)
            held.granted += 1
            held.in_flight += 1
            held.interactive_in_flight += not request.is_batch
            if held.empty_since is not None:
                held.empty_since, held.busy_since = None, self._now
            self._at(self._now + request.service_s, self._answer, request)

    def _answer(self, request: _Request) -> None:
        held, client = self._held, request.client
        self._unanswered -= 1
        if client and client.think_s is not None:
            late_s = client.late_s * self._chance.random()
            self._ask_at(self._now + client.think_s + late_s, client)
        held.in_flight -= 1
        held.interactive_in_flight -= not request.is_batch
        if not held.in_flight:
            held.empty_since = self._now
            held.busy_s += self._now - held.busy_since
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
        elapsed_s = self._now - line.noted_at
        came, _ = line.note(self._now)
        stayed = Stayed(
            answered=held.granted,
            busy_s=held.busy_s,
            drain_s=self._now - held.closed_at,
            arrived=came,
            elapsed_s=elapsed_s,
        )
        self._knowledge.note_leaving(held.model.name, stayed)
        line.left_at = self._now if held.empty_since is None else held.empty_since

    def _become_live(self, target: str) -> None:
        self._is_switching = False
        line = self._lines[target]
        self._knowledge.note_switch(target, line.model.switch_s)
        elapsed_s = self._now - line.noted_at
        came, came_at_sum = line.note(self._now)
        after_s = came_at_sum / came - (line.left_at or 0.0) if came else 0.0
        absence = Absence(arrived=came, after_s=after_s, elapsed_s=elapsed_s)
        self._knowledge.note_away(target, absence)
        queued = len(line.interactive)
        self._held = _Held(model=line.model, since=self._now, queued=queued, empty_since=self._now)
