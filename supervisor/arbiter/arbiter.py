"""The arbiter: the sole writer of the snapshot.

Whoever learns a fact posts it as an event; nobody else starts, stops or chooses a backend. Events
are handled one after the other, each to its end: a command's result is another event behind it.
Handling is synchronous, so that a request for a live model gets its lease without a task switch.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

import structlog
from msgspec import Struct

from supervisor.arbiter.performer import Performer
from supervisor.arbiter.ports import (
    BackendLauncher,
    MemorySource,
    NoSchedule,
    NoTwins,
    Schedule,
    TwinComparison,
)
from supervisor.core.machine.commands import (
    Command,
    CompleteShutdown,
    FinishSwitch,
    GrantLease,
    JoinSwitch,
    RefuseRequest,
    RefuseSwitch,
)
from supervisor.core.machine.deadlines import lease_moves_wakeup, next_wakeup
from supervisor.core.machine.events import (
    CallersCounted,
    Event,
    RequestArrived,
    RequestEnded,
    RestartRequested,
    ShutdownRequested,
    SwitchRequested,
    TimePassed,
)
from supervisor.core.machine.invariants import violations
from supervisor.core.machine.refusals import hold_timeout
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Refusal, Target
from supervisor.core.scheduling.values import Priority
from supervisor.engine.servers.backend import Backend
from supervisor.errors import InvalidTransition, RequestRefused
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

Observer = Callable[[Event, Snapshot, Snapshot, tuple[Command, ...]], None]
"""Called after each event with the snapshot before and after; decides nothing.

One that raises is a bug of ours, which is noted as an impairment; the machine goes on.
"""


_AFTER_A_FAULT_S = 1.0
"""Seconds until time passes again where a step failed: what it fails of may be due all the time."""

SwitchTicket = tuple[str, asyncio.Future[SwitchReport]]
"""A switch's id, and its report to come."""


class Lease(Struct, frozen=True, eq=False):
    """Leave to use a backend until `end()`, which whoever got the lease must call."""

    request_id: str
    backend: Backend
    waited_s: float
    give_back: Callable[[str, int], None]

    def end(self, callers: int = 1) -> None:
        """Give the lease back, under which so many were answered. A second time changes nothing."""
        self.give_back(self.request_id, callers)


class Arbiter:
    """Grants leases, runs switches, and keeps the snapshot. Use it on one event loop only."""

    def __init__(  # noqa: PLR0913 - the world is injected
        self,
        *,
        snapshot: Snapshot,
        launcher: BackendLauncher,
        memory: MemorySource,
        observers: Sequence[Observer],
        schedule: Schedule | None = None,
        comparison: TwinComparison | None = None,
        impairments: Impairments | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._observers = observers
        self._impairments = impairments or Impairments()
        self._clock = clock
        self._performer = Performer(
            launcher=launcher,
            memory=memory,
            schedule=schedule or NoSchedule(),
            comparison=comparison or NoTwins(),
            clock=clock,
            post=self.post,
        )
        self._mailbox: deque[Event] = deque()
        self._is_handling = False
        self._recent: deque[Event] = deque(maxlen=50)
        self._request_numbers = count(1)
        self._requests: dict[str, asyncio.Future[int]] = {}
        self._switch_numbers = count(1)
        self._switches: dict[str, list[asyncio.Future[SwitchReport]]] = {}
        self._wakeup: asyncio.TimerHandle | None = None
        self._wakeup_at: float | None = None
        self._is_shut_down = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        """The state now, to be shown. Reading it to decide something is a bug: post an event."""
        return self._snapshot

    def post(self, event: Event) -> None:
        """Handle the event, or queue it behind the one that is being handled."""
        if self._is_handling:
            self._mailbox.append(event)
            return
        self._is_handling = True
        try:
            moves_deadlines = self._handle(event)
            while self._mailbox:
                moves_deadlines |= self._handle(self._mailbox.popleft())
        except Exception:  # the state is as before, and so are its deadlines
            self._set_wakeup(_AFTER_A_FAULT_S)
            raise
        finally:
            self._is_handling = False
        if moves_deadlines:
            self._set_wakeup()

    @asynccontextmanager
    async def lease(
        self,
        target: Target | None,
        *,
        may_switch: bool = False,
        may_spill: bool = False,
        priority: Priority = Priority.INTERACTIVE,
        request_id: str | None = None,
    ) -> AsyncIterator[Lease]:
        """Use a backend of `target`'s model (None: whatever is live).

        Waits while a switch that may bring it runs, and for one that the scheduler decides upon
        (`may_switch`), the more urgent first. `may_spill`: its twin may serve instead, which is
        for small interactive requests. `request_id` is from `new_request_id()`, for whoever
        wants to look where it stands. Raises RequestRefused with the reason.
        """
        arrived = RequestArrived(
            at=self._clock(),
            request_id=request_id or self.new_request_id(),
            target=target,
            may_switch=may_switch,
            may_spill=may_spill,
            priority=priority,
        )
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._requests[arrived.request_id] = answer
        self.post(arrived)
        try:
            epoch = answer.result() if answer.done() else await answer
            backend = self._performer.backends.get(epoch)
            if backend is None:  # it died before this task ran
                raise RequestRefused(
                    "backend_unreachable", "the model's server died; see /status for its last exit"
                )
            waited_s = self._clock() - arrived.at
            yield Lease(arrived.request_id, backend, waited_s, self._end_request)
        finally:
            self._end_request(arrived.request_id)

    def new_request_id(self) -> str:
        """Return an id under which the snapshot knows a request that waits."""
        return f"r{next(self._request_numbers)}"

    def lease_at_once(
        self,
        target: Target | None,
        priority: Priority = Priority.INTERACTIVE,
        *,
        may_spill: bool = False,
    ) -> Lease | None:
        """Return a lease as `lease()` gives, or None where that would wait or refuse.

        Call its `end()` when the request is over. Nothing is kept of a request that gets None.
        """
        request_id = self.new_request_id()
        self.post(
            RequestArrived(
                at=self._clock(),
                request_id=request_id,
                target=target,
                may_wait=False,
                may_spill=may_spill,
                priority=priority,
            )
        )
        epoch = self._snapshot.requests.leases.get(request_id)  # no future waits for it
        backend = None if epoch is None else self._performer.backends.get(epoch)
        if backend is None:
            self._end_request(request_id)
            return None
        return Lease(request_id, backend, 0.0, self._end_request)

    def count_callers(self, request_id: str, callers: int) -> None:
        """Say how many wait for a request that waits for its lease; it counts as one at first."""
        self.post(CallersCounted(at=self._clock(), request_id=request_id, callers=callers))

    def refusal_for_time(self, request_id: str) -> RequestRefused | None:
        """Return what a request that waits is refused with when it has waited for too long."""
        waiter = self._snapshot.requests.waiter(request_id)
        if waiter is None:
            return None
        return as_error(hold_timeout(self._snapshot, waiter, self._clock()))

    def _end_request(self, request_id: str, callers: int = 1) -> None:
        self._requests.pop(request_id, None)
        self.post(RequestEnded(at=self._clock(), request_id=request_id, callers=callers))

    def request_switch(
        self,
        target: Target | None,
        requested_by: str,
        drain_policy: DrainPolicy = DrainPolicy.CANCEL,
        unloads: str | None = None,
    ) -> SwitchTicket:
        """Ask for a switch to `target` (None: unload). Returns its id and its result to come.

        `unloads`: the only model that is unloaded; None: all that are not pinned. The id is that of
        the switch that runs or waits, when it wants the same. Raises RequestRefused when the switch
        is not begun. One that fails is a report, not an exception.
        """
        return self._ask(
            lambda switch_id: SwitchRequested(
                at=self._clock(),
                switch_id=switch_id,
                target=target,
                requested_by=requested_by,
                drain_policy=drain_policy,
                unloads=unloads,
            )
        )

    def request_restart(self) -> SwitchTicket:
        """Ask that what died be brought back now. Raises RequestRefused when nothing is down."""
        return self._ask(lambda switch_id: RestartRequested(at=self._clock(), switch_id=switch_id))

    def _ask(self, event: Callable[[str], Event]) -> SwitchTicket:
        switch_id = self._new_switch_id()
        result: asyncio.Future[SwitchReport] = asyncio.get_running_loop().create_future()
        self._switches[switch_id] = [result]
        self.post(event(switch_id))
        if result.done():
            result.result()  # raises what refused it
        joined = (i for i, callers in self._switches.items() if result in callers)
        return next(joined, switch_id), result

    def _new_switch_id(self) -> str:
        return f"s{int(time.time())}-{next(self._switch_numbers)}"

    async def shut_down(self, drain_timeout_s: float) -> None:
        """Refuse what comes, drain for `drain_timeout_s`, stop all; return when all is reaped."""
        self.post(ShutdownRequested(at=self._clock(), drain_timeout_s=drain_timeout_s))
        await self._is_shut_down.wait()
        self._performer.close()
        if self._wakeup is not None:
            self._wakeup.cancel()

    def _handle(self, event: Event) -> bool:
        """Decide, show and carry out. Returns whether deadlines may have moved.

        A request that gets its lease at once, or gives it back while nothing waits for that, is
        shown to nobody: there are thousands a second.
        """
        before = self._snapshot
        self._recent.append(event)
        try:
            self._snapshot, commands = step(before, event)
        except InvalidTransition as error:
            history = "\n".join(repr(past) for past in self._recent)
            raise InvalidTransition(f"{error}; the last events were:\n{history}") from error
        after, has_arrived = self._snapshot, isinstance(event, RequestArrived)
        if (
            (has_arrived or (not commands and isinstance(event, RequestEnded)))
            and after.requests.lines is before.requests.lines  # nobody waits who did not,
            and after.switch is before.switch  # nor for something else
        ):
            if commands:
                self._perform_all(commands)
            rules = after.rules  # without a call: there are thousands of these a second
            if after.scheduling is before.scheduling and not (
                after.scheduling.linger_s or rules.models or rules.idle_target
            ):
                return False
            return lease_moves_wakeup(before, after)
        self._check_invariants(event)
        self._perform_all(commands)  # what is to be done comes first: observers write files
        for observe in self._observers:
            try:
                observe(event, before, after, commands)
            except Exception as error:  # noqa: BLE001 - whoever watches never stops the machine
                self._note_failed_observer(observe, event, error)
        return True

    def _perform_all(self, commands: tuple[Command, ...]) -> None:
        for command in commands:
            try:
                self._perform(command)
            except Exception:  # one that cannot be carried out takes no other along
                log.exception("arbiter.command_failed", command=type(command).__name__)

    def _check_invariants(self, event: Event) -> None:
        """Log what does not hold: a bug of ours, which must not become an outage."""
        for violation in violations(self._snapshot):
            if self._impairments.note("decisions", f"an invariant does not hold: {violation}"):
                history = [repr(past) for past in self._recent]
                name = type(event).__name__
                log.error("arbiter.invariant", after=name, what=violation, events=history)

    def _note_failed_observer(self, observe: Observer, event: Event, error: Exception) -> None:
        name = getattr(observe, "__qualname__", repr(observe))
        reason = f"failed at {type(event).__name__} ({type(error).__name__}: {error})"
        if self._impairments.note(name, f"{reason}; what it records may be wrong until a restart"):
            log.error("arbiter.observer_failed", observer=name, exc_info=error)

    def _perform(self, command: Command) -> None:
        match command:
            case GrantLease():
                self._answer_request(command.request_id, command.epoch)
            case RefuseRequest():
                self._answer_request(command.request_id, command.refusal)
            case FinishSwitch():
                for result in self._switches.pop(command.report.switch_id, ()):
                    if not result.done():
                        result.set_result(command.report)
            case JoinSwitch():
                joined = self._switches.pop(command.switch_id)
                self._switches.setdefault(command.running_id, []).extend(joined)
            case RefuseSwitch():
                for result in self._switches.pop(command.switch_id):
                    result.set_exception(as_error(command.refusal))
                    result.exception()  # nobody waits where it was to begin later
            case CompleteShutdown():
                self._is_shut_down.set()
            case _:
                self._performer.perform(command)

    def _answer_request(self, request_id: str, answer: int | Refusal) -> None:
        future = self._requests.get(request_id)
        if future is None or future.done():  # its client left; RequestEnded is on its way
            return
        if isinstance(answer, Refusal):
            future.set_exception(as_error(answer))
        else:
            future.set_result(answer)

    def _set_wakeup(self, at_least_s: float = 0.0) -> None:
        """Sleep until the core wants to know that time has passed, and for at least so long."""
        is_left = bool(self._mailbox)  # by a fault: it is handled behind the next event
        due_at = self._clock() if is_left else next_wakeup(self._snapshot)
        if due_at == self._wakeup_at and due_at is not None:
            return
        if self._wakeup is not None:
            self._wakeup.cancel()
        self._wakeup_at = due_at
        self._wakeup = None
        if due_at is not None:
            delay_s = max(at_least_s, due_at - self._clock())
            self._wakeup = asyncio.get_running_loop().call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._wakeup_at = None
        self.post(TimePassed(at=self._clock()))


def as_error(refusal: Refusal) -> RequestRefused:
    """Turn the core's refusal into the exception that the gateway answers with."""
    return RequestRefused(refusal.code, refusal.message, dict(refusal.details))
