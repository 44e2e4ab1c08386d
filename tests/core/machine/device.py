"""The machine on a virtual clock: a device whose orders take their time, and clients that ask."""

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Any

from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    FinishSwitch,
    GrantLease,
    ReleaseMemory,
    SampleMemory,
    StartBackend,
    StopWarming,
    WarmFile,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    CallersCounted,
    Event,
    MemorySampled,
    RequestArrived,
    RequestEnded,
    TargetAccepted,
    TimePassed,
    WarmingBegun,
)
from supervisor.core.machine.rules import SwitchRules
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Phase, TargetNeed
from tests.core.machine.story import CHAT, EMBED, GIB, Story
from tests.core.machine.surroundings import taking

CHECK_S, WARM_S, STOP_S, SAMPLE_S, START_S = 0.008, 0.001, 0.03, 0.002, 0.1
"""What a real switch of two small models takes: 0.16 s in all, with the pauses between samples."""

NEED = TargetNeed(footprint=taking(8 * GIB))
TARGETS = {"chat": replace(CHAT, parallel=4), "embed": replace(EMBED, parallel=4)}


@dataclass(kw_only=True)
class Measured:
    """What came of some seconds: answers by model, the longest wait for one, the switches."""

    answers: Counter[str]
    longest_s: float
    reports: list[SwitchReport]
    seconds: float

    @property
    def switching(self) -> float:
        """The share of the time that switches took, without their drains."""
        return sum(report.total_s - _drain_s(report) for report in self.reports) / self.seconds


@dataclass(kw_only=True)
class _Asked:
    """A request, and the callers that wait for it: since when, and what they do when answered."""

    model: str
    callers: list[tuple[float, Callable[[], object]]]


class Device(Story):
    """One exclusive device, chat and embed. A model serves so many at once, each for its time.

    Callers of a `batched` model do not ask while a request for it waits: they wait for that.
    """

    def __init__(
        self, service_s: Mapping[str, float], slots: int, batched: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(rules=SwitchRules())
        self._batched = batched
        self._service_s, self._slots = service_s, slots
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()
        self._models: dict[int, str] = {}
        self._asked: dict[str, _Asked] = {}
        self._granted: dict[int, deque[str]] = defaultdict(deque)
        self._in_work: Counter[int] = Counter()
        self._reports: list[SwitchReport] = []
        self._answered: list[tuple[str, float, float]] = []

    def ask(self, model: str, on_answer: Callable[[], object] = lambda: None) -> None:
        caller = (self.now, on_answer)
        waiting = self._waiting_request(model)
        if waiting is not None:
            self._asked[waiting].callers.append(caller)
            callers = len(self._asked[waiting].callers)
            self.post(CallersCounted(at=self.now, request_id=waiting, callers=callers))
            return
        request_id = f"r{next(self._numbers)}"
        self._asked[request_id] = _Asked(model=model, callers=[caller])
        self.post(
            RequestArrived(
                at=self.now, request_id=request_id, target=TARGETS[model], may_switch=True
            )
        )

    def _waiting_request(self, model: str) -> str | None:
        if model not in self._batched:
            return None
        places = self.snapshot.requests.places.items()
        return next((name for name, place in places if place.line.model == model), None)

    def ask_once(self, model: str) -> None:
        """Ask, and let time pass until that is answered."""
        self.ask(model)
        self._run_until(lambda: not self._asked)

    def measure(
        self, models: Sequence[str], clients: int, seconds: float, gap_s: Callable[[], float]
    ) -> Measured:
        """Let clients of each model ask for some seconds, each again so long after its answer."""
        ends_at = self.now + seconds
        self._reports, self._answered = [], []

        def ask_again(model: str) -> None:
            if self.now < ends_at:
                self.ask(model, lambda: self._later(gap_s(), partial(ask_again, model)))

        for model in models:
            for _ in range(clients):
                ask_again(model)
        self._run_until(lambda: self.now >= ends_at)
        measured = Measured(
            answers=Counter(model for model, at, _ in self._answered if at <= ends_at),
            longest_s=max(took_s for _, _, took_s in self._answered),
            reports=self._reports.copy(),
            seconds=seconds,
        )
        self._run_until(lambda: not self._asked)
        return measured

    def come(self, moments: Iterable[tuple[float, str]]) -> Measured:
        """Let requests come at these moments from now on, until all are answered."""
        self._reports, self._answered, began_at = [], [], self.now
        for after_s, model in moments:
            self._later(after_s, partial(self.ask, model))
        self._run_until(lambda: not (self._due or self._asked))
        return Measured(
            answers=Counter(model for model, _, _ in self._answered),
            longest_s=max(took_s for _, _, took_s in self._answered),
            reports=self._reports,
            seconds=self.now - began_at,
        )

    def _run_until(self, is_over: Callable[[], bool]) -> None:
        while not is_over():
            wakeup = next_wakeup(self.snapshot)
            wakes_at, due_at = inf if wakeup is None else wakeup, inf
            if self._due:
                due_at = self._due[0][0]
            self.now = max(self.now, min(wakes_at, due_at))
            if due_at <= wakes_at:
                heappop(self._due)[2]()
            else:
                self.post(TimePassed(at=self.now))

    def _later(self, after_s: float, happen: Callable[[], object]) -> None:
        heappush(self._due, (self.now + after_s, next(self._numbers), happen))

    def post(self, event: Event) -> None:
        """Tell the machine, and carry out what it orders."""
        self.snapshot, commands = step(self.snapshot, event)
        for command in commands:
            self._take(command)

    def _take(self, command: Command) -> None:
        match command:
            case CheckTarget(switch_id=switch_id):
                self._fact(CHECK_S, TargetAccepted, switch_id=switch_id, need=NEED, readings=())
            case WarmFile(switch_id=switch_id):
                self._fact(WARM_S, WarmingBegun, switch_id=switch_id)
            case ReleaseMemory(epoch=epoch):
                self._fact(STOP_S, BackendExited, epoch=epoch, exit_code=0, signal=None)
            case SampleMemory(switch_id=switch_id):
                self._later(SAMPLE_S, lambda: self._show(switch_id))
            case StartBackend(epoch=epoch, target=target):
                self._models[epoch] = target.model
                self._fact(START_S, BackendReady, epoch=epoch, memory=None)
            case GrantLease(request_id=request_id, epoch=epoch):
                self._granted[epoch].append(request_id)
                self._serve(epoch)
            case FinishSwitch(report=report):
                self._reports.append(report)
            case StopWarming():
                pass
            case _:
                raise AssertionError(f"nothing goes wrong here: {command}")

    def _fact(self, after_s: float, fact: type[Event], **facts: Any) -> None:
        self._later(after_s, lambda: self.post(fact(at=self.now, **facts)))

    def _show(self, switch_id: str) -> None:
        self.post(MemorySampled(at=self.now, switch_id=switch_id, sample=self.reading(0)))

    def _serve(self, epoch: int) -> None:
        while self._granted[epoch] and self._in_work[epoch] < self._slots:
            request_id = self._granted[epoch].popleft()
            self._in_work[epoch] += 1
            callers = len(self._asked[request_id].callers)
            served_s = self._service_s[self._models[epoch]] * callers
            self._later(served_s, partial(self._answer, epoch, request_id))

    def _answer(self, epoch: int, request_id: str) -> None:
        self._in_work[epoch] -= 1
        self._serve(epoch)
        asked = self._asked.pop(request_id)
        callers = len(asked.callers)
        self.post(RequestEnded(at=self.now, request_id=request_id, callers=callers))
        for at, on_answer in asked.callers:
            self._answered.append((asked.model, self.now, self.now - at))
            on_answer()


def _drain_s(report: SwitchReport) -> float:
    return sum(took_s for phase, took_s in report.phase_seconds if phase is Phase.DRAINING)
