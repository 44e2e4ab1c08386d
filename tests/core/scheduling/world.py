"""A device in virtual time, driven by a policy: servers with places, drains, switches, clients.

Every event is followed by a question to the policy, as in the product. Nothing here is random and
nothing waits: the same story gives the same record.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from supervisor.core.scheduling.estimates import (
    Estimates,
    costs_of,
    note_drain,
    note_return,
    note_stay,
    note_switch,
)
from supervisor.core.scheduling.values import (
    Costs,
    Decision,
    Policy,
    Priority,
    Queue,
    SchedulingRules,
    Stay,
    View,
)


@dataclass(kw_only=True)
class Request:
    """`patience_s`: how long its client waits for admission; `think_s`: its client asks again."""

    model: str
    at: float
    service_s: float
    priority: Priority = Priority.INTERACTIVE
    patience_s: float = math.inf
    think_s: float | None = None


@dataclass(kw_only=True)
class StayRecord:
    """A stay that is over: how long it admitted, and whether anybody was left in its queue."""

    model: str
    since: float
    until: float
    granted: int
    still_waiting: int


@dataclass(kw_only=True)
class Record:
    """What happened. Waits are those of heads for their model: since they count, until it came.

    `longest_idle_s`: for how long nothing was done beside one and the same request that waited.
    """

    head_waits_s: list[tuple[str, Priority, float]] = field(default_factory=list)
    stays: list[StayRecord] = field(default_factory=list)
    switched_for: list[int] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    serving_s: float = 0.0
    switching_s: float = 0.0
    longest_wait_s: float = 0.0
    longest_idle_s: float = 0.0


class World:
    """One device, some models, `places` requests at once."""

    def __init__(
        self,
        policy: Policy,
        costs: Mapping[str, Costs],
        *,
        rules: SchedulingRules | None = None,
        places: int = 1,
        learns: bool = False,
    ) -> None:
        self.policy, self.costs, self.places = policy, costs, places
        self.rules = rules or SchedulingRules()
        self.now = 0.0
        self.stay: Stay | None = None
        self.record = Record(answered=dict.fromkeys(costs, 0))
        self._queues: dict[str, deque[Request]] = {model: deque() for model in costs}
        self._left_at: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._flying: list[Request] = []
        self._granted, self._since, self._closed_at = 0, 0.0, 0.0
        self._resident: str | None = None
        self._target: str | None = None
        self._switching = False
        self._empty_at: dict[str, float] = {}
        self._wake_at: float | None = None
        self._idle_since = 0.0
        self._learner = _Learner(costs) if learns else None

    def comes(self, request: Request) -> None:
        self._later(request.at, lambda: self._arrive(request))

    def run(self, until: float = math.inf) -> Record:
        """Let time pass until nothing is to happen, or until then."""
        for events in itertools.count():
            assert events < 400_000, "the world does not come to rest"
            due = self._events[0][0] if self._events else math.inf
            if self._wake_at is not None and self._wake_at < due and self._wake_at <= until:
                assert self._wake_at >= self.now
                self._pass_time(self._wake_at)
                self._decide()
                continue
            if due == math.inf or due > until:
                break
            at, _, happens = heapq.heappop(self._events)
            self._pass_time(at)
            happens()
            self._decide()
        if until < math.inf:
            self._pass_time(until)
        return self.record

    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    def _later(self, at: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), happens))

    def _pass_time(self, at: float) -> None:
        passed_s = at - self.now
        self.record.serving_s += passed_s if self._flying else 0.0
        self.record.switching_s += passed_s if self._switching else 0.0
        if self._flying or self._switching:
            self._idle_since = at
        elif self.waiting():
            oldest_at = min(queue[0].at for queue in self._queues.values() if queue)
            idle_s = at - max(self._idle_since, oldest_at)
            self.record.longest_idle_s = max(self.record.longest_idle_s, idle_s)
        self.now = at

    def _arrive(self, request: Request) -> None:
        if self._learner:
            gap_s = self.now - self._empty_at.pop(request.model, self.now)
            self._learner.arrived(request.model, gap_s)
        self._queues[request.model].append(request)
        if request.patience_s < math.inf:
            self._later(self.now + request.patience_s, lambda: self._give_up(request))
        self._grant()

    def _give_up(self, request: Request) -> None:
        if request in self._queues[request.model]:
            self._queues[request.model].remove(request)

    def _grant(self) -> None:
        model = self._resident
        if model is None or self._target is not None:
            return
        queue = self._queues[model]
        while queue and len(self._flying) < self.places:
            request = queue.popleft()
            self._granted += 1
            self._flying.append(request)
            self.record.longest_wait_s = max(self.record.longest_wait_s, self.now - request.at)
            self._later(self.now + request.service_s, partial(self._answer, request))

    def _answer(self, request: Request) -> None:
        self._flying = [other for other in self._flying if other is not request]
        self.record.answered[request.model] += 1
        if self._learner:
            self._learner.answered(request.model)
        if request.think_s is not None:
            at = self.now + request.think_s
            again = Request(
                model=request.model,
                at=at,
                service_s=request.service_s,
                priority=request.priority,
                think_s=request.think_s,
            )
            self.comes(again)
        self._grant()
        if not self._flying and not self._queues[request.model]:
            self._empty_at[request.model] = self.now
        if not self._flying and self._target is not None:
            self._switch()

    def _decide(self) -> None:
        self._wake_at = None
        if self._target is not None:
            return
        decision: Decision = self.policy(self.view())
        if decision.model is None:
            self._wake_at = decision.wake_at
            return
        assert decision.model != self._resident
        self.record.switched_for.append(len(self._queues[decision.model]))
        self._target = decision.model
        self._closed_at = self.now
        if self._resident is not None:
            self.record.stays.append(
                StayRecord(
                    model=self._resident,
                    since=self._since,
                    until=self.now,
                    granted=self._granted,
                    still_waiting=len(self._queues[self._resident]),
                )
            )
        if not self._flying:
            self._switch()

    def _switch(self) -> None:
        assert self._target is not None
        if self._resident is not None:
            self._left_at[self._resident] = self.now
            if self._learner:
                self._learner.left(self._resident, self._closed_at, self._since, self.now)
        self._switching = True
        self._resident = None
        self._later(self.now + self.costs[self._target].switch_s, self._go_live)

    def _go_live(self) -> None:
        model = self._target
        assert model is not None
        self._switching, self._target, self._resident = False, None, model
        self._granted, self._since = 0, self.now
        self._empty_at.setdefault(model, self.now)
        if self._learner:
            self._learner.switched(model)
        queue = self._queues[model]
        if queue:
            head = queue[0]
            since = max(head.at, self._left_at.get(model, 0.0))
            self.record.head_waits_s.append((model, head.priority, self.now - since))
        self._decide()  # asked before anybody is granted, as may happen
        self._grant()

    def view(self) -> View:
        stay = None
        if self._resident is not None:
            empty = not self._flying
            interactive = sum(r.priority is Priority.INTERACTIVE for r in self._flying)
            stay = Stay(
                model=self._resident,
                since=self._since,
                granted=self._granted,
                in_flight=len(self._flying),
                interactive_in_flight=interactive,
                empty_since=self._empty_at.get(self._resident, self._since) if empty else None,
            )
        queues = tuple(self._queue(model) for model, queue in self._queues.items() if queue)
        costs = self._learner.costs() if self._learner else self.costs
        return View(at=self.now, stay=stay, queues=queues, costs=costs, rules=self.rules)

    def _queue(self, model: str) -> Queue:
        queue = self._queues[model]
        interactive = [each.at for each in queue if each.priority is Priority.INTERACTIVE]
        return Queue(
            model=model,
            interactive=len(interactive),
            batch=len(queue) - len(interactive),
            oldest_at=queue[0].at,
            oldest_interactive_at=interactive[0] if interactive else None,
            arrived_at_sum=math.fsum(each.at for each in queue),
            left_at=self._left_at.get(model),
        )


class _Learner:
    """Notes what the arbiter would note."""

    def __init__(self, costs: Mapping[str, Costs]) -> None:
        self._true = costs
        self._estimates = Estimates()
        self._known = {model: costs_of(self._estimates, model) for model in costs}
        self._arrived = dict.fromkeys(costs, 0)
        self._answered = dict.fromkeys(costs, 0)
        self._noted_at = dict.fromkeys(costs, 0.0)

    def costs(self) -> Mapping[str, Costs]:
        return self._known

    def arrived(self, model: str, gap_s: float) -> None:
        self._arrived[model] += 1
        if gap_s > 0:
            self._note(note_return(self._estimates, model, gap_s))

    def answered(self, model: str) -> None:
        self._answered[model] += 1

    def switched(self, model: str) -> None:
        took_s = self._true[model].switch_s
        self._note(note_switch(self._estimates, model, took_s, is_cold=False))

    def left(self, model: str, closed_at: float, since: float, now: float) -> None:
        estimates = note_drain(self._estimates, model, now - closed_at)
        self._note(
            note_stay(
                estimates,
                model,
                answered=self._answered[model],
                busy_s=now - since,
                arrived=self._arrived[model],
                elapsed_s=now - self._noted_at[model],
            )
        )
        self._arrived[model] = self._answered[model] = 0
        self._noted_at[model] = now

    def _note(self, estimates: Estimates) -> None:
        self._estimates = estimates
        self._known = {model: costs_of(estimates, model) for model in self._true}


def closed_loop(model: str, clients: int, service_s: float, think_s: float) -> Sequence[Request]:
    """Clients that ask again as soon as they are answered; they begin a little apart."""
    return [
        Request(model=model, at=number * 1e-4, service_s=service_s, think_s=think_s)
        for number in range(clients)
    ]
