"""Invariants of `step()` under random events, in any order, late, twice, and with every failure.

`World` is what surrounds the core: it carries out the orders, in random order and with random
luck, and keeps books of its own, against which the snapshot is checked after every event.
"""

from collections import Counter
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from immutables import Map

from supervisor.core.commands import (
    CheckTarget,
    Command,
    CompleteShutdown,
    FinishSwitch,
    GrantLease,
    JoinSwitch,
    RefuseRequest,
    RefuseSwitch,
    SampleMemory,
    StartBackend,
    StopBackend,
)
from supervisor.core.events import (
    BackendExited,
    BackendReady,
    BackendSpawned,
    Event,
    MemorySampled,
    MemoryUnreadable,
    RequestArrived,
    RequestEnded,
    ShutdownRequested,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
)
from supervisor.core.memory import GateState, MemoryPolicy, MemorySample, judge_release
from supervisor.core.step import next_wakeup, step
from supervisor.core.values import BackendState, Device, Limits, Mode, Phase, Snapshot, Target

TOTAL = 100
POLICY = MemoryPolicy(margin_bytes=5, tolerance_bytes=2, stable_samples=2, release_timeout_s=4.0)


def target(model: str, mode: Mode, device: str, profile: str = "default") -> Target:
    return Target(model=model, mode=mode, profile=profile, device=device, memory=POLICY)


TARGETS = (
    target("chat", Mode.GENERATION, "alone"),
    target("chat", Mode.GENERATION, "alone", profile="long"),
    target("embed", Mode.EMBEDDING, "alone"),
    target("embed", Mode.EMBEDDING, "shared", profile="small"),
    target("rerank", Mode.EMBEDDING, "shared"),
    target("code", Mode.GENERATION, "shared"),
)
DEVICES = (
    Device(name="alone", budget_bytes=TOTAL, is_exclusive=True),
    Device(name="shared", budget_bytes=90),
)
LIMITS = Limits(hold_max_requests=4, hold_timeout_s=40.0)

targets = st.sampled_from(TARGETS)
models = st.sampled_from(["chat", "live", "target", None, "embed", "unknown"])
pauses_s = st.sampled_from([0.0, 0.0, 0.005, 0.3, 2.0, 31.0, 121.0])
luck = st.sampled_from([True, True, False])
picks = st.lists(st.integers(0, 5), min_size=1, max_size=12)
needs = st.integers(20, 60)


class Fate(Enum):
    """Where the world believes a request to stand."""

    WAITING = auto()
    LEASED = auto()
    OVER = auto()


@dataclass(frozen=True)
class AwaitReady(Command):
    """What the performer does by itself after a spawn."""

    epoch: int


class World(RuleBasedStateMachine):
    """Carries out orders and keeps books. Its processes, unlike the core's, really exist."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.snapshot = Snapshot(devices=Map({d.name: d for d in DEVICES}), limits=LIMITS)
        self.told: list[Event] = []
        self.orders: list[Command] = []
        self.requests: dict[str, Fate] = {}
        self.asked_for: dict[str, str | None] = {}
        self.leases: dict[str, int] = {}
        self.callers: dict[str, str] = {}  # who waits, and for the end of which switch
        self.switch_count = 0
        self.needs: dict[str, int] = {}
        self.alive: dict[int, Target] = {}
        self.held: dict[int, int] = {}
        self.reaped_at: dict[int, float] = {}
        self.residue = dict.fromkeys(("alone", "shared"), 0)
        self.foreign = dict.fromkeys(("alone", "shared"), 0)
        self.completions = 0

    # What happens around the core.

    @rule(pause_s=pauses_s, wanted=st.none() | targets)
    def somebody_requests_a_switch(self, pause_s: float, wanted: Target | None) -> None:
        self.pass_time(pause_s)
        self.switch_count += 1
        switch_id = f"s{self.switch_count}"
        self.callers[switch_id] = switch_id
        self.tell(
            SwitchRequested(at=self.now, switch_id=switch_id, target=wanted, requested_by="test")
        )

    @rule(pause_s=pauses_s, model=models, hint=st.sampled_from([None, *Mode]))
    def request_arrives(self, pause_s: float, model: str | None, hint: Mode | None) -> None:
        self.pass_time(pause_s)
        request_id = f"r{len(self.requests)}"
        self.requests[request_id] = Fate.WAITING
        live, running = self.snapshot.live_models(), self.snapshot.switch
        if model == "live" and live:
            model = live[-1]
        elif model == "target" and running and running.target:
            model = running.target.model
        self.asked_for[request_id] = model
        self.tell(RequestArrived(at=self.now, request_id=request_id, model=model, mode_hint=hint))

    @precondition(lambda self: self.requests)
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def request_ends(self, pause_s: float, pick: int) -> None:
        """Let the client leave, or the answer be complete; both may be told a second time."""
        self.pass_time(pause_s)
        request_id = f"r{pick % len(self.requests)}"
        self.requests[request_id] = Fate.OVER
        self.leases.pop(request_id, None)
        self.tell(RequestEnded(at=self.now, request_id=request_id))

    @precondition(lambda self: self.orders)
    @rule(pause_s=pauses_s, picks=picks, is_well=luck, need=st.integers(1, 110))
    def orders_are_performed(
        self, pause_s: float, picks: list[int], *, is_well: bool, need: int
    ) -> None:
        """Carry some out, the last one perhaps without luck."""
        self.pass_time(pause_s)
        for done, pick in enumerate(picks):
            if self.orders:
                order = self.orders.pop(pick % len(self.orders))
                self.perform(order, is_well=is_well or done + 1 < len(picks), need=need)
            elif self.phase is Phase.CONFIRMING:
                self.pass_time(0.05)

    @rule(wanted=targets, need=needs)
    def switch_goes_well(self, wanted: Target, need: int) -> None:
        self.somebody_requests_a_switch(0.0, wanted)
        self.everything_goes_well_for_a_while(need)

    @precondition(lambda self: self.orders)
    @rule(need=needs)
    def everything_goes_well_for_a_while(self, need: int) -> None:
        for _ in range(30):
            self.residue = dict.fromkeys(self.residue, 0)
            if self.orders:
                self.perform(self.orders.pop(0), is_well=True, need=need)
            elif self.phase is Phase.CONFIRMING:
                self.pass_time(0.25)

    @precondition(lambda self: self.alive)
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def backend_crashes(self, pause_s: float, pick: int) -> None:
        self.pass_time(pause_s)
        epochs = sorted(self.alive)
        self.reap(epochs[pick % len(epochs)], signal=11)

    @rule(device=st.sampled_from(["alone", "shared"]), used=st.integers(0, 60))
    def foreign_tenant_comes_or_goes(self, device: str, used: int) -> None:
        self.foreign[device] = used

    @precondition(lambda self: self.told)
    @rule(pause_s=pauses_s, pick=st.integers(0))
    def answer_is_told_again(self, pause_s: float, pick: int) -> None:
        self.pass_time(pause_s)
        event = replace(self.told[-1 - pick % len(self.told)], at=self.now)
        if isinstance(event, MemorySampled | MemoryUnreadable | TimePassed):
            self.tell(event)
        elif not isinstance(event, SwitchRequested | RequestArrived | ShutdownRequested):
            assert step(self.snapshot, event) == (self.snapshot, ())

    @precondition(lambda self: self.phase not in {None, Phase.PREFLIGHT})
    @rule()
    def target_is_rejected_after_it_was_accepted(self) -> None:
        switch_id = self.snapshot.switch.switch_id if self.snapshot.switch else ""
        late = TargetRejected(at=self.now, switch_id=switch_id, message="changed its mind")
        assert step(self.snapshot, late) == (self.snapshot, ())

    @precondition(lambda self: len(self.told) > 80 or self.snapshot.is_closing)
    @rule(drain_timeout_s=st.sampled_from([0.0, 30.0]))
    def shutdown_is_requested(self, drain_timeout_s: float) -> None:
        self.tell(ShutdownRequested(at=self.now, drain_timeout_s=drain_timeout_s))

    def teardown(self) -> None:
        """Answer every order: then the switch ends, and after a shutdown everything does."""
        self.perform_all(is_well=True)
        assert self.snapshot.switch is None
        assert not self.snapshot.waiters
        self.tell(ShutdownRequested(at=self.now, drain_timeout_s=30.0))
        self.perform_all(is_well=False)
        assert self.snapshot.backends == ()
        assert self.completions == 1
        assert not self.callers
        assert Fate.WAITING not in self.requests.values()

    # How orders are carried out.

    def perform_all(self, *, is_well: bool) -> None:
        for _ in range(300):
            wakeup = next_wakeup(self.snapshot)
            if self.orders:
                self.perform(self.orders.pop(0), is_well=is_well, need=30)
            elif wakeup is not None:
                self.pass_time(max(0.0, wakeup - self.now))
            else:
                return
        raise AssertionError("the core neither rests nor ends")

    def perform(self, order: Command, *, is_well: bool, need: int) -> None:
        match order:
            case CheckTarget(switch_id=switch_id):
                self.answer_check(switch_id, need if is_well else None)
            case StartBackend(epoch=epoch) if epoch in self.alive and is_well:
                self.orders.append(AwaitReady(epoch=epoch))
                self.tell(BackendSpawned(at=self.now, epoch=epoch, pid=epoch, address="a.sock"))
            case AwaitReady(epoch=epoch) if epoch in self.alive and is_well:
                self.tell(BackendReady(at=self.now, epoch=epoch, memory=None))
            case StartBackend(epoch=epoch) | AwaitReady(epoch=epoch) | StopBackend(epoch=epoch):
                if epoch in self.alive:
                    self.reap(epoch, signal=None)
            case SampleMemory(switch_id=switch_id, device=device):
                self.answer_sample(switch_id, device, is_well=is_well, still_held=need % 3)

    def answer_check(self, switch_id: str, need: int | None) -> None:
        if need is None:
            self.tell(TargetRejected(at=self.now, switch_id=switch_id, message="no such file"))
            return
        self.needs.setdefault(switch_id, need)
        self.tell(TargetAccepted(at=self.now, switch_id=switch_id, need_bytes=need, memory=None))

    def answer_sample(self, switch_id: str, device: str, *, is_well: bool, still_held: int) -> None:
        if not is_well:
            self.tell(MemoryUnreadable(at=self.now, switch_id=switch_id, reason="driver"))
            return
        self.residue[device] = self.residue[device] * still_held // 3
        ours = sum(self.held[e] for e, t in self.alive.items() if t.device == device)
        used = min(TOTAL, ours + self.residue[device] + self.foreign[device])
        sample = MemorySample(
            device=device,
            taken_at=self.now,
            total_bytes=TOTAL,
            used_bytes=used,
            free_bytes=TOTAL - used,
            source="test",
        )
        self.tell(MemorySampled(at=self.now, switch_id=switch_id, sample=sample))

    def reap(self, epoch: int, signal: int | None) -> None:
        self.residue[self.alive.pop(epoch).device] += self.held[epoch]
        self.reaped_at[epoch] = self.now
        self.leases = {r: e for r, e in self.leases.items() if e != epoch}
        self.tell(BackendExited(at=self.now, epoch=epoch, exit_code=None, signal=signal))

    def pass_time(self, seconds: float) -> None:
        """Move the clock, waking the core at each moment it names. Every wakeup is progress."""
        until = self.now + seconds
        while (wakeup := next_wakeup(self.snapshot)) is not None and wakeup <= until:
            self.now = max(self.now, wakeup)
            self.tell(TimePassed(at=self.now))
            following = next_wakeup(self.snapshot)
            assert following is None or following > self.now
        self.now = until

    # What the core orders, and what must hold.

    @property
    def phase(self) -> Phase | None:
        return self.snapshot.switch.phase if self.snapshot.switch else None

    def tell(self, event: Event) -> None:
        before = self.snapshot
        self.snapshot, commands = step(before, event)
        self.told.append(event)
        for command in commands:
            self.take(command, before, event)
        self.check_devices()
        self.check_requests()
        self.check_switch()

    def take(self, command: Command, before: Snapshot, event: Event) -> None:
        match command:
            case GrantLease():
                self.take_grant(command)
            case RefuseRequest(request_id=request_id):
                assert self.requests[request_id] is Fate.WAITING
                self.requests[request_id] = Fate.OVER
            case FinishSwitch(report=report):
                assert self.callers[report.switch_id] == report.switch_id
                self.callers = {c: s for c, s in self.callers.items() if s != report.switch_id}
            case JoinSwitch(switch_id=switch_id, running_id=running_id):
                assert self.callers[running_id] == running_id
                self.callers[switch_id] = running_id
            case RefuseSwitch(switch_id=switch_id):
                del self.callers[switch_id]
            case CompleteShutdown():
                self.completions += 1
            case StopBackend(epoch=epoch):
                self.check_drain(epoch, before)
                self.orders.append(command)
            case StartBackend():
                self.check_gate(command, before, event)
                self.alive[command.epoch] = command.target
                self.held[command.epoch] = self.needs[cast("MemorySampled", event).switch_id]
                self.orders.append(command)
            case _:
                self.orders.append(command)

    def take_grant(self, command: GrantLease) -> None:
        assert self.requests[command.request_id] is Fate.WAITING
        self.requests[command.request_id] = Fate.LEASED
        self.leases[command.request_id] = command.epoch
        backend = self.snapshot.backend(command.epoch)
        assert backend is not None
        assert backend.state is BackendState.READY
        assert self.asked_for[command.request_id] in {None, backend.target.model}

    def check_gate(self, command: StartBackend, before: Snapshot, event: Event) -> None:
        """Nothing starts unless the gate confirms its device, from fresh readings of it."""
        assert isinstance(event, MemorySampled)
        switch = before.switch
        assert switch is not None
        assert switch.question is not None
        readings = (*switch.samples, event.sample)
        assert judge_release(switch.question, readings).state is GateState.CONFIRMED
        assert switch.question.device == command.target.device
        assert switch.question.need_bytes == self.needs[switch.switch_id]
        assert {r.device for r in readings} == {command.target.device}
        assert len({r.taken_at for r in readings}) == len(readings)
        assert not set(switch.leaving) & set(self.alive)
        reaped_at = max((self.reaped_at[e] for e in switch.leaving), default=0.0)
        assert all(r.taken_at >= reaped_at for r in readings)
        assert command.epoch not in self.held

    def check_drain(self, epoch: int, before: Snapshot) -> None:
        """No request is cut off before a deadline has passed."""
        drain = before.switch.drain_deadline if before.switch else None
        deadlines = [d for d in (drain, self.snapshot.close_deadline) if d is not None]
        is_late = self.now >= min(deadlines, default=self.now + 1)
        assert is_late or epoch not in self.leases.values()

    def check_devices(self) -> None:
        assert {b.epoch for b in self.snapshot.backends} == set(self.alive)
        for device in DEVICES:
            there = [b for b in self.snapshot.backends if b.target.device == device.name]
            assert sum(b.need_bytes for b in there) <= device.budget_bytes
            assert not (device.is_exclusive and len(there) > 1)
        models_there = [b.target.model for b in self.snapshot.backends]
        assert len(models_there) == len(set(models_there))

    def check_requests(self) -> None:
        waiting = [r for r, fate in self.requests.items() if fate is Fate.WAITING]
        waiters = [w for _, w in sorted(self.snapshot.waiters.items())]
        assert [w.request_id for w in waiters] == waiting
        assert set(self.snapshot.waiter_numbers) == set(waiting)
        assert len(waiting) <= LIMITS.hold_max_requests
        assert all(self.now < w.arrived_at + LIMITS.hold_timeout_s for w in waiters)
        assert dict(self.snapshot.leases) == self.leases
        in_flight = {b.epoch: b.in_flight for b in self.snapshot.backends if b.in_flight}
        assert in_flight == Counter(self.leases.values())

    def check_switch(self) -> None:
        running = {self.snapshot.switch.switch_id} if self.snapshot.switch else set()
        assert set(self.callers.values()) == running
        assert running or not self.snapshot.waiters
        is_over = self.snapshot.is_closing and not self.snapshot.backends
        assert self.completions == int(is_over)


TestInvariants = World.TestCase
TestInvariants.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
