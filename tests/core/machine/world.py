"""What surrounds the core in the property tests: it carries out orders and keeps books.

The books are its own; the snapshot is checked against them after every event.
"""

from collections import Counter
from enum import Enum, auto
from itertools import chain, combinations
from typing import cast

import pytest
from hypothesis.stateful import RuleBasedStateMachine
from immutables import Map

from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    CompleteShutdown,
    FinishSwitch,
    GrantLease,
    JoinSwitch,
    ReadSchedule,
    RefuseRequest,
    RefuseSwitch,
    ReleaseMemory,
    SampleMemory,
    StartBackend,
    UnparkBackend,
    WarmFile,
)
from supervisor.core.machine.contentions import contentions, view_of
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendNotParked,
    BackendParked,
    BackendReady,
    BackendSpawned,
    Event,
    MemorySampled,
    MemoryUnreadable,
    RequestArrived,
    RequestEnded,
    RestartRequested,
    ScheduleRead,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
    WarmingBegun,
)
from supervisor.core.machine.exits import Part, part_of
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.invariants import violations
from supervisor.core.machine.memory import GateState, MemorySample, judge_release
from supervisor.core.machine.phases import phase_deadline
from supervisor.core.machine.queues import Kind
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.scheduler import SHORTEST_WAIT_S
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import (
    AUTOMATIC,
    IDLENESS,
    RESTART,
    SCHEDULER,
    Order,
    Switch,
    SwitchReport,
)
from supervisor.core.machine.values import BackendState, Outcome, Park, Phase, Target, TargetNeed
from supervisor.core.scheduling.bounds import cycle_of
from supervisor.core.scheduling.values import Priority, View
from tests.core.machine.surroundings import ALONE, DEVICES, LIMITS, TOTAL, taking

ROUNDING_S = 1e-6


class Fate(Enum):
    """Where the world believes a request to stand."""

    WAITING = auto()
    LEASED = auto()
    OVER = auto()


class AwaitReady(Command, frozen=True, kw_only=True):
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
        self.asked_for: dict[str, RequestArrived] = {}
        self.leases: dict[str, int] = {}
        self.callers: dict[str, str] = {}  # who waits, and for the end of which switch
        self.switch_count = 0
        self.needs: dict[str, int] = {}
        self.alive: dict[int, Target] = {}
        self.targets: dict[int, Target] = {}
        self.takes: dict[int, int] = {}  # of its device, while it serves
        self.held: dict[int, int] = {}  # of its device, now
        self.on_host: dict[int, int] = {}  # of the host, by those that are parked
        self.gave_up_at: dict[int, float] = {}
        self.residue = dict.fromkeys(("alone", "shared", "host"), 0)
        self.foreign = dict.fromkeys(("alone", "shared", "host"), 0)
        self.completions = 0
        self.policies: dict[str, DrainPolicy] = {}
        self.recovering: set[str] = set()  # switches that bring back what died
        self.started_by: dict[int, str] = {}
        self.was_ready: set[int] = set()
        self.live_before: dict[str, frozenset[Target]] = {}
        self.deaths: dict[str, list[float]] = {}
        self.died_at: dict[str, float] = {}  # which an operator's restart does not forget
        self.held_until: dict[str, float] = {}
        self.unloads: dict[str, str] = {}  # switches that stop one model by its name
        self.idle_since: dict[int, float] = {}
        self.worked_at = 0.0
        self.broken: set[str] = set()
        self.dismissed: set[Target] = set()  # twins that differ, or are started otherwise now

    # How orders are carried out.

    def perform_all(self, *, is_well: bool) -> None:
        for _ in range(300):
            moment = next_wakeup(self.snapshot)
            if self.orders:
                self.perform(self.orders.pop(0), is_well=is_well, need=30)
            elif self.drains_without_a_deadline() and self.leases:
                self.end_request(min(self.leases))
            elif moment is not None:
                self.pass_time(max(0.0, moment - self.now))
            else:
                return
        raise AssertionError("the core neither rests nor ends")

    def drains_without_a_deadline(self) -> bool:
        switch = self.snapshot.switch
        is_draining = switch is not None and switch.phase is Phase.DRAINING
        return is_draining and switch is not None and switch.leaving.drain_deadline is None

    def perform(self, order: Command, *, is_well: bool, need: int) -> None:
        match order:
            case CheckTarget(switch_id=switch_id):
                self.answer_check(switch_id, need if is_well else None)
            case WarmFile(switch_id=switch_id):
                self.tell(WarmingBegun(at=self.now, switch_id=switch_id))
            case ReadSchedule():
                self.tell(ScheduleRead(at=self.now))
            case SampleMemory(switch_id=switch_id, device=device):
                self.answer_sample(switch_id, device, is_well=is_well, still_held=need % 3)
            case _:
                self.perform_on_server(order, is_well=is_well, need=need)

    def perform_on_server(self, order: Command, *, is_well: bool, need: int) -> None:
        match order:
            case ReleaseMemory(epoch=epoch, how=Park()) if epoch in self.alive and need % 7:
                self.answer_parking(epoch, need, is_well=is_well)
            case UnparkBackend(epoch=epoch) if epoch in self.alive and is_well:
                self.orders.append(AwaitReady(epoch=epoch))
            case StartBackend(epoch=epoch) if epoch in self.alive and is_well:
                self.orders.append(AwaitReady(epoch=epoch))
                self.tell(BackendSpawned(at=self.now, epoch=epoch, pid=epoch, address="a.sock"))
            case AwaitReady(epoch=epoch) if epoch in self.alive and is_well:
                self.was_ready.add(epoch)
                self.tell(BackendReady(at=self.now, epoch=epoch, memory=None))
            case (
                StartBackend(epoch=epoch)
                | UnparkBackend(epoch=epoch)
                | AwaitReady(epoch=epoch)
                | ReleaseMemory(epoch=epoch)
            ):
                if epoch in self.alive:
                    self.reap(epoch, signal=None)

    def answer_parking(self, epoch: int, need: int, *, is_well: bool) -> None:
        """It keeps a little of its device, or all of it, and that of the host which it says."""
        if not is_well:
            self.tell(BackendNotParked(at=self.now, epoch=epoch, reason="status 500"))
            return
        host = Footprint.of({"host": need})
        backend = self.snapshot.backend(epoch)
        if backend is None or backend.state is not BackendState.PARKING:  # too late: it is stopped
            self.tell(BackendParked(at=self.now, epoch=epoch, kept=host))
            return
        kept = self.held[epoch] if need % 5 == 0 else min(self.held[epoch], need % 4)
        self.residue[self.alive[epoch].device] += self.held[epoch] - kept
        self.held[epoch], self.on_host[epoch] = kept, need
        self.gave_up_at[epoch] = self.now
        self.leases = {r: e for r, e in self.leases.items() if e != epoch}
        self.tell(BackendParked(at=self.now, epoch=epoch, kept=host))

    def releasing(self) -> list[int]:
        """The servers that are ordered to give their memory up, and have not begun to."""
        ordered = {order.epoch for order in self.orders if isinstance(order, ReleaseMemory)}
        return sorted(ordered & self.alive.keys())

    def answer_check(self, switch_id: str, need: int | None) -> None:
        if need is None:
            self.tell(TargetRejected(at=self.now, switch_id=switch_id, message="no such file"))
            return
        switch = self.snapshot.switch
        target = switch.target if switch and switch.switch_id == switch_id else None
        is_recovery = switch_id in self.recovering
        if is_recovery:  # one that needs more than before, or has no reading, is tried for ever
            before = [size for e, size in self.takes.items() if self.targets[e] == target]
            need = min([need, *before[-1:]])
        self.needs.setdefault(switch_id, need)
        device = target.device if target else "alone"
        others = [name for name in target.candidates if name != device] if target else []
        devices = (device, *others, "host")
        self.tell(
            TargetAccepted(
                at=self.now,
                switch_id=switch_id,
                need=TargetNeed(footprint=taking(need, device)),
                readings=tuple(
                    self.reading(name, 0 if name == "host" else need % 3) for name in devices
                )
                if target and (is_recovery or need % 4)
                else (),
                elsewhere=tuple(
                    (name, TargetNeed(footprint=taking(need, name))) for name in others
                ),
            )
        )

    def answer_sample(self, switch_id: str, device: str, *, is_well: bool, still_held: int) -> None:
        if not is_well:
            self.tell(MemoryUnreadable(at=self.now, switch_id=switch_id, reason="driver"))
            return
        sample = self.reading(device, still_held)
        self.tell(MemorySampled(at=self.now, switch_id=switch_id, sample=sample))

    def reading(self, device: str, still_held: int) -> MemorySample:
        """Read the device; of what the dead had, so many thirds are held still."""
        self.residue[device] = self.residue[device] * still_held // 3
        ours = sum(self.held[e] for e, t in self.alive.items() if t.device == device)
        ours += sum(self.on_host.values()) if device == "host" else 0
        used = min(TOTAL, ours + self.residue[device] + self.foreign[device])
        return MemorySample(
            device=device,
            taken_at=self.now,
            total_bytes=TOTAL,
            used_bytes=used,
            free_bytes=TOTAL - used,
            source="test",
        )

    def reap(self, epoch: int, signal: int | None) -> None:
        self.residue[self.alive.pop(epoch).device] += self.held[epoch]
        self.on_host.pop(epoch, None)
        self.gave_up_at[epoch] = self.now
        self.leases = {r: e for r, e in self.leases.items() if e != epoch}
        self.tell(BackendExited(at=self.now, epoch=epoch, exit_code=None, signal=signal))

    def end_request(self, request_id: str) -> None:
        self.requests[request_id] = Fate.OVER
        epoch = self.leases.pop(request_id, None)
        if epoch is not None:
            self.worked_at = self.idle_since[epoch] = self.now
        self.tell(RequestEnded(at=self.now, request_id=request_id))

    def pass_time(self, seconds: float) -> None:
        """Move the clock, waking the core at each moment it names. Every wakeup is progress.

        What one does may make something else due, as the unload of a model that a coming period
        would have admitted: that is done in a second one, at the same moment.
        """
        until, woken_at = self.now + seconds, [-1.0, -1.0]
        while (moment := next_wakeup(self.snapshot)) is not None and moment <= until:
            self.now = max(self.now, moment)
            self.tell(TimePassed(at=self.now))
            assert woken_at[-2] < self.now
            woken_at.append(self.now)
        self.now = until

    def new_switch_id(self) -> str:
        """As the arbiter does: no two switches have one id."""
        self.switch_count += 1
        return f"s{self.switch_count}"

    # What the core orders, and what must hold.

    @property
    def phase(self) -> Phase | None:
        return self.snapshot.switch.phase if self.snapshot.switch else None

    def tell(self, event: Event) -> None:
        before = self.snapshot
        self.snapshot, commands = step(before, event)
        self.told.append(event)
        self.note(before, event)
        for command in commands:
            self.take(command, before, event)
        assert violations(self.snapshot) == ()
        self.check_devices()
        self.check_requests()
        self.check_switch()
        self.check_recoveries()
        self.check_heads()
        self.check_idleness()

    def note(self, before: Snapshot, event: Event) -> None:
        """Enter into the books what the event itself means."""
        if isinstance(event, BackendExited):
            self.check_part(before, event)
            self.note_death(before, event)
        if isinstance(event, BackendReady):
            self.idle_since[event.epoch] = self.now
        switch = self.snapshot.switch
        if switch is not None and switch.switch_id not in self.live_before:
            self.note_begin(switch)
        if switch is not None and switch.order.requested_by == SCHEDULER:
            self.check_that_those_who_leave_have_served(before, switch)

    def note_begin(self, switch: Switch) -> None:
        """A switch has begun: by whom, and what is live then."""
        order, switch_id = switch.order, switch.switch_id
        ready = [b.target for b in self.snapshot.admitting()]
        closed = [placement.target for placement in switch.rollback.to_restore]
        self.live_before[switch_id] = frozenset((*ready, *closed))
        if order.is_recovery:
            self.recovering.add(switch_id)
        if order.unloads is not None:
            self.unloads[switch_id] = order.unloads
        if order.requested_by == IDLENESS:
            self.check_that_it_was_time(order)
        if order.requested_by == "restart":
            self.deaths.clear()
            self.broken.clear()
            self.policies[switch_id] = order.drain_policy
        elif order.requested_by in AUTOMATIC:
            self.callers[switch_id] = switch_id
            self.policies[switch_id] = order.drain_policy
        if order.requested_by == "recovery" and order.target is not None:
            assert order.target.model not in self.broken
        if order.requested_by == SCHEDULER and order.target is not None:
            assert order.drain_policy is DrainPolicy.WAIT
            assert order.reason
            self.check_that_somebody_waits_for(order.target)
            here = [b for b in self.snapshot.backends if b.target.device == order.target.device]
            assert (
                not here
                or self.now >= self.held_until.get("alone", 0.0)
                or (order.target.device != "alone")
            )

    def check_that_those_who_leave_have_served(self, before: Snapshot, switch: Switch) -> None:
        """Every stay serves somebody, unless nobody waits for it, however many leave together."""
        for backend in before.ready_backends():
            if backend.epoch in switch.leaving.epochs:
                model = backend.target.model
                assert backend.work.granted or not before.requests.lines_of(model)

    def check_that_somebody_waits_for(self, target: Target) -> None:
        """No switch without a reason."""
        assert any(
            fate is Fate.WAITING
            and (
                (asked.model == target.model and asked.may_switch)
                or (asked.may_spill and asked.model == target.twin_of)
            )
            for request_id, fate in self.requests.items()
            if (asked := self.asked_for[request_id])
        )

    def check_part(self, before: Snapshot, event: BackendExited) -> None:
        """What an end means follows from who waited for it."""
        backend = before.backend(event.epoch)
        if backend is None:
            return
        part = part_of(before, backend)
        is_own = before.switch and self.started_by[event.epoch] == before.switch.switch_id
        assert (part is Part.CLOSING) == before.is_closing
        if part is Part.STARTED:
            assert is_own
            assert backend.state in {BackendState.STARTING, BackendState.STOPPING}
        if part is Part.PARKED:
            assert self.snapshot.recoveries == before.recoveries
        if part is Part.ORDERED_OUT:
            assert self.snapshot.recoveries == before.recoveries
            begun = self.snapshot.switch  # the scheduler's, into the room that there is now
            is_begun = begun is not None and begun.order.requested_by == SCHEDULER
            assert begun == before.switch or (before.switch is None and is_begun)
        if part is Part.SERVING:
            assert event.epoch in self.was_ready
            assert self.snapshot.recovery(backend.target.model)

    def note_death(self, before: Snapshot, event: BackendExited) -> None:
        """The fifth death in the window breaks a model; fewer are followed by a restart."""
        backend = before.backend(event.epoch)
        if backend is None or before.is_closing or backend.departure.is_retiring:
            return
        is_replaced = backend.departure.is_replaced
        if backend.state is not BackendState.READY and not is_replaced:
            return
        model, since = backend.target.model, self.now - LIMITS.breaker_window_s
        recent = [at for at in self.deaths.get(model, []) if at > since]
        self.deaths[model] = [*recent, self.now]
        self.died_at[model] = self.now
        if len(self.deaths[model]) >= LIMITS.breaker_deaths:
            self.broken.add(model)
        recovery = self.snapshot.recovery(model)
        if is_replaced and before.switch and before.switch.target is None:
            return  # an unload wants nothing brought back
        assert recovery is not None
        assert recovery.is_open is (model in self.broken)

    def take(self, command: Command, before: Snapshot, event: Event) -> None:
        match command:
            case GrantLease():
                self.take_grant(command, before)
            case RefuseRequest(request_id=request_id):
                assert self.requests[request_id] is Fate.WAITING
                self.requests[request_id] = Fate.OVER
            case FinishSwitch(report=report):
                assert self.callers.get(report.switch_id) == report.switch_id, report
                self.callers = {c: s for c, s in self.callers.items() if s != report.switch_id}
                self.note_hold(report)
                self.check_outcome(report, before)
            case JoinSwitch(switch_id=switch_id, running_id=running_id):
                assert self.callers[running_id] == running_id
                self.callers[switch_id] = running_id
                self.note_joined(before, event)
            case RefuseSwitch(switch_id=switch_id):
                assert self.callers[switch_id] == switch_id
                self.callers = {c: s for c, s in self.callers.items() if s != switch_id}
            case CompleteShutdown():
                self.completions += 1
            case ReleaseMemory(epoch=epoch):
                self.check_drain(epoch, before)
                self.check_that_it_is_not_pinned(epoch, before)
                self.check_that_no_recovery_stops_others(epoch, before)
                self.orders.append(command)
            case StartBackend():
                self.check_gate(command, before, event)
                self.alive[command.epoch] = self.targets[command.epoch] = command.target
                self.takes[command.epoch] = self.need_of(command.target, before)
                self.held[command.epoch] = self.takes[command.epoch]
                assert len(self.takes) == len(self.held)
                self.started_by[command.epoch] = cast("MemorySampled", event).switch_id
                self.orders.append(command)
            case UnparkBackend(epoch=epoch):
                self.check_gate(command, before, event)
                assert epoch in self.on_host
                assert command.target.is_same(self.alive[epoch])
                self.alive[epoch] = self.targets[epoch] = command.target
                self.takes[epoch] = self.held[epoch] = self.need_of(command.target, before)
                del self.on_host[epoch]
                self.started_by[epoch] = cast("MemorySampled", event).switch_id
                self.was_ready.discard(epoch)
                self.orders.append(command)
            case _:
                self.orders.append(command)

    def note_joined(self, before: Snapshot, event: Event) -> None:
        """A hand joins what the controller does by itself: it is the hand's from here on."""
        running = before.switch
        if isinstance(event, RestartRequested):
            self.deaths.clear()
            self.broken.clear()
        elif isinstance(event, SwitchRequested) and running and not running.order.is_by_hand:
            self.policies[running.switch_id] = event.drain_policy

    def note_hold(self, report: SwitchReport) -> None:
        """What a hand has set on a device stays for a while."""
        by_hand = report.requested_by not in AUTOMATIC
        is_of_one = report.switch_id in self.unloads
        if (
            by_hand
            and report.outcome is not Outcome.FAILED
            and report.model in {None, *ALONE}
            and not is_of_one
        ):
            self.held_until["alone"] = self.now + self.snapshot.rules.manual_hold_s

    def take_grant(self, command: GrantLease, before: Snapshot) -> None:
        assert self.requests[command.request_id] is Fate.WAITING
        self.requests[command.request_id] = Fate.LEASED
        self.leases[command.request_id] = command.epoch
        backend = self.snapshot.backend(command.epoch)
        assert backend is not None
        is_next = self.snapshot.switch is not before.switch  # begun right behind the grants
        assert backend.state is BackendState.READY or (
            is_next and backend.state is BackendState.DRAINING
        )
        asked, target = self.asked_for[command.request_id], backend.target
        assert asked.model in {None, target.model} or (
            asked.may_spill and asked.model == target.twin_of
        )
        assert asked.model is not None or not target.is_twin
        if target.is_twin:  # while its model is live, that serves
            stays = {b.epoch for b in self.snapshot.ready_backends()}  # else it died just now
            live = [b for b in before.ready_backends() if b.target.model == target.twin_of]
            assert not [b for b in live if b.epoch in stays]
        most = self.snapshot.rules.of(backend.target).max_concurrency
        assert most is None or backend.in_flight <= most

    def check_that_it_is_not_pinned(self, epoch: int, before: Snapshot) -> None:
        """What is pinned goes for itself only: another profile, its name in an unload, a stall."""
        backend = before.backend(epoch)
        if backend is None or not self.snapshot.rules.of(backend.target).is_pinned:
            return
        model = backend.target.model
        is_own = any(
            (switch.target is not None and switch.target.model == model)
            or self.unloads.get(switch.switch_id) == model
            for switch in (before.switch, self.orders_of(before))  # one may end in this very step
            if switch is not None
        )
        is_over = backend.departure.is_retiring or backend.state is BackendState.STARTING
        assert is_own or is_over or self.snapshot.is_closing or self.is_replaced(epoch)

    def check_that_it_was_time(self, order: Order) -> None:
        """What idleness does, it does after so long without work, and for nobody who waits."""
        rules = self.snapshot.rules
        if order.target is not None:
            assert not self.leases
            assert not self.snapshot.requests.waiting
            assert self.now - self.worked_at >= rules.idle_after_s - ROUNDING_S
            return
        # An older one retires, with what it still works on.
        epoch = max(e for e, target in self.alive.items() if target.model == order.unloads)
        idle_unload_s = rules.of(self.alive[epoch]).idle_unload_s
        assert idle_unload_s is not None
        assert epoch not in self.leases.values()
        assert self.now - self.idle_since[epoch] >= idle_unload_s - ROUNDING_S

    def check_idleness(self) -> None:
        """No alarm is missed: nothing idles for longer than it may while no switch runs."""
        for epoch in self.alive:
            backend = self.snapshot.backend(epoch)
            is_idle = epoch not in self.leases.values()
            is_there = backend is not None and backend.state in {
                BackendState.READY,
                BackendState.DRAINING,  # it may stay after all, and has had no work meanwhile
            }
            if not is_there or not is_idle:
                self.idle_since[epoch] = self.now
        moment = next_wakeup(self.snapshot)
        is_woken_now = moment is not None and moment <= self.now
        if self.snapshot.switch is not None or self.snapshot.is_closing or is_woken_now:
            return
        for backend in self.snapshot.ready_backends():
            idle_unload_s = self.snapshot.rules.of(backend.target).idle_unload_s
            idle_s = self.now - self.idle_since.setdefault(backend.epoch, self.now)
            assert idle_unload_s is None or idle_s <= idle_unload_s + ROUNDING_S

    def need_of(self, target: Target, before: Snapshot) -> int:
        """What was estimated for it; what is brought back needs what it needed before."""
        switch = before.switch
        assert switch is not None
        stopped = [e for e in switch.leaving.epochs if self.targets[e] == target]
        is_rollback = switch.phase is Phase.ROLLING_BACK
        return self.takes[stopped[-1]] if is_rollback else self.needs[switch.switch_id]

    def check_gate(
        self, command: StartBackend | UnparkBackend, before: Snapshot, event: Event
    ) -> None:
        """Nothing starts unless the gate confirms its device, from fresh readings of it."""
        assert isinstance(event, MemorySampled)
        switch = before.switch
        assert switch is not None
        assert switch.gate.question is not None
        readings = (*switch.gate.samples, event.sample)
        assert judge_release(switch.gate.question, readings).state is GateState.CONFIRMED
        assert switch.gate.question.device == command.target.device
        parked = before.parked_of(command.target)
        kept_bytes = 0 if parked is None else parked.footprint.on(command.target.device)
        whole_bytes = self.need_of(command.target, before)
        assert switch.gate.question.need_bytes == max(0, whole_bytes - kept_bytes)
        assert {r.device for r in readings} == {command.target.device}
        assert len({r.taken_at for r in readings}) == len(readings)
        room_bytes = event.sample.free_bytes + switch.gate.question.allowed_bytes
        assert room_bytes >= switch.gate.question.need_bytes
        assert set(switch.leaving.epochs) & set(self.alive) <= set(self.on_host)
        started = {e for e, s in self.started_by.items() if s == switch.switch_id}
        gone = set(switch.leaving.epochs) | (started - self.was_ready)
        gave_up_at = max((self.gave_up_at[e] for e in gone), default=0.0)
        assert all(r.taken_at >= gave_up_at for r in readings)
        assert isinstance(command, UnparkBackend) or command.epoch not in self.held

    def check_drain(self, epoch: int, before: Snapshot) -> None:
        """No request is cut off before a deadline has passed, and only if the policy says so."""
        switch = self.orders_of(before)
        may_cancel = switch and self.policies.get(switch.switch_id) is DrainPolicy.CANCEL
        drain = switch.leaving.drain_deadline if switch and may_cancel else None
        backend = before.backend(epoch)
        is_retiring = backend is not None and backend.departure.is_retiring
        retire = backend.departure.deadline if backend and is_retiring else None
        deadlines = [d for d in (drain, retire, self.snapshot.close_deadline) if d is not None]
        is_late = self.now >= min(deadlines, default=self.now + 1) or (
            not deadlines and self.hangs(epoch)  # nothing else would end it
        )
        assert is_late or epoch not in self.leases.values() or self.is_replaced(epoch)

    def orders_of(self, before: Snapshot) -> Switch | None:
        """The switch that gives orders: the one that ran, or one that has begun behind it."""
        begun = self.snapshot.switch
        is_next = begun is not None and (
            before.switch is None or begun.switch_id != before.switch.switch_id
        )
        return begun if is_next else before.switch

    def is_replaced(self, epoch: int) -> bool:
        backend = self.snapshot.backend(epoch)
        return backend is not None and backend.departure.is_replaced

    def hangs(self, epoch: int) -> bool:
        backend = self.snapshot.backend(epoch)
        is_still = backend is not None and backend.stalled_s is not None
        return is_still and self.targets[epoch].patience.restart_on_stall

    def brings_back(self, switch: Switch) -> bool:
        """Whether it is a recovery's, and no hand's that wanted the same meanwhile."""
        by = switch.order.requested_by
        return switch.switch_id in self.recovering and by in {"recovery", RESTART}

    def check_that_no_recovery_stops_others(self, epoch: int, before: Snapshot) -> None:
        switch = self.orders_of(before)
        if switch is not None and self.brings_back(switch):
            if switch.target is not None and self.snapshot.rules.of(switch.target).is_pinned:
                return  # its place was never anybody else's
            is_own = self.started_by[epoch] == switch.switch_id
            backend = before.backend(epoch)
            is_on_its_way = self.is_replaced(epoch) or (backend and backend.departure.is_retiring)
            is_twin = self.targets[epoch].is_twin  # makes room for all
            was_parked = backend is not None and backend.state is BackendState.PARKED
            assert is_own or self.snapshot.is_closing or is_on_its_way or was_parked or is_twin

    def check_outcome(self, report: SwitchReport, before: Snapshot) -> None:
        """What was live and did not give way to a success is live, or will be brought back."""
        if report.outcome is Outcome.UNCHANGED or self.snapshot.is_closing:
            return
        if self.frees_devices_next(before):
            return
        switch = before.switch
        assert switch is not None
        live = {b.target for b in self.snapshot.admitting()}
        begun = self.snapshot.switch
        if begun is not None and begun.order.requested_by == IDLENESS:  # right behind this one
            live |= {self.targets[epoch] for epoch in begun.leaving.epochs}
        lost = self.live_before[report.switch_id] - live - self.dismissed
        if report.outcome is Outcome.SWITCHED and switch.target:
            self.broken.discard(switch.target.model)
            lost = frozenset(t for t in lost if not self.gives_way(t, switch))
        refusal = report.refusal
        if switch.target or (refusal and refusal.code == "drain_refused"):
            assert all(self.snapshot.recovery(t.model) for t in lost), (lost, report)
        if refusal and dict(refusal.details).get("rolled_back"):
            assert all(self.died_at.get(t.model, 0.0) >= switch.order.started_at for t in lost)
        is_pinned = switch.target and self.snapshot.rules.of(switch.target).is_pinned
        if self.brings_back(switch) and not is_pinned:
            assert all(placement.target.is_twin for placement in switch.rollback.to_restore)

    def frees_devices_next(self, before: Snapshot) -> bool:
        """Whether an unload waited for the end of this switch: nothing is to be live behind it."""
        pending = before.scheduling.pending
        is_unload = isinstance(pending, SwitchRequested) and pending.target is None
        return is_unload and self.snapshot.scheduling.pending is None

    def gives_way(self, before: Target, switch: Switch) -> bool:
        """Whether it was stopped for the target, or died and finds its place taken."""
        now = switch.target
        assert now is not None
        is_alone = before.device == now.device == "alone"
        left = {
            self.targets[epoch].model for epoch in (*switch.leaving.epochs, *switch.leaving.behind)
        }
        is_replaced = self.snapshot.rules.replaces
        return before.model in {*left, now.model} or is_alone or is_replaced

    def check_recoveries(self) -> None:
        """What is down is tried again, unless its breaker is open; nothing live is down."""
        down = [r.target.model for r in self.snapshot.recoveries]
        assert len(down) == len(set(down))
        assert not set(down) & set(self.snapshot.live_models())
        assert not (down and self.snapshot.is_closing)
        switch = self.snapshot.switch
        for recovery in self.snapshot.recoveries:
            is_tried = switch and switch.target and switch.target.is_same(recovery.target)
            is_coming = recovery.retry_at is not None
            is_ending = any(
                b.target.model == recovery.target.model and self.is_replaced(b.epoch)
                for b in self.snapshot.backends
            )
            assert is_tried or is_coming or recovery.is_open or is_ending
            assert not (recovery.is_open and recovery.may_hold)

    def check_devices(self) -> None:
        assert {b.epoch for b in self.snapshot.backends} == set(self.alive)
        for device in DEVICES:
            tenants = [b for b in self.snapshot.tenants() if b.target.device == device.name]
            tenants = [b for b in tenants if b.epoch not in self.on_host]
            there = (*tenants, *self.snapshot.parked())
            assert sum(b.footprint.on(device.name) for b in there) <= device.budget_bytes
            assert not (device.is_exclusive and len(tenants) > 1)
        models_there = self.snapshot.live_models()
        assert len(models_there) == len(set(models_there))
        switch = self.snapshot.switch
        for backend in self.snapshot.backends:
            is_draining = backend.state is BackendState.DRAINING
            is_leaving = switch is not None and backend.epoch in switch.leaving.epochs
            assert (
                not is_draining
                or is_leaving
                or backend.departure.is_retiring
                or self.snapshot.is_closing
            )

    def check_requests(self) -> None:
        waiting = [r for r, fate in self.requests.items() if fate is Fate.WAITING]
        requests = self.snapshot.requests
        lines = {
            key: [waiter for _, waiter in sorted(line.waiters.items(), key=lambda item: item[0])]
            for key, line in requests.lines.items()
        }
        waiters = sorted(chain.from_iterable(lines.values()), key=lambda waiter: waiter.number)
        assert [w.request_id for w in waiters] == waiting
        assert set(requests.places) == set(waiting)
        assert len(waiting) <= LIMITS.hold_max_requests
        assert all(self.now < w.arrived_at + LIMITS.hold_timeout_s for w in waiters)
        for key, line in requests.lines.items():
            assert line.head is lines[key][0]
            assert line.callers == sum(w.callers for w in lines[key])
            assert line.arrived_at_sum == pytest.approx(sum(w.arrived_at_sum for w in lines[key]))
        assert dict(requests.leases) == self.leases
        in_flight = {b.epoch: b.in_flight for b in self.snapshot.backends if b.in_flight}
        assert in_flight == Counter(self.leases.values())
        for backend in self.snapshot.backends:
            held = [self.asked_for[r] for r, e in self.leases.items() if e == backend.epoch]
            urgent = [request for request in held if request.priority is Priority.INTERACTIVE]
            assert backend.work.interactive_in_flight == len(urgent)

    def check_switch(self) -> None:
        running = {self.snapshot.switch.switch_id} if self.snapshot.switch else set()
        pending = self.snapshot.scheduling.pending
        assert running or pending is None
        waited = running | ({pending.switch_id} if pending else set())
        assert set(self.callers.values()) == waited, (self.callers, waited, self.snapshot.switch)
        self.check_waiting(is_switching=bool(running))
        if running and not self.drains_without_a_deadline():  # then it goes on by itself
            assert phase_deadline(self.snapshot) is not None or self.orders
        is_over = self.snapshot.is_closing and not self.snapshot.backends
        assert self.completions == int(is_over)

    def check_waiting(self, *, is_switching: bool) -> None:
        """Whoever waits while no switch runs waits for a recovery, for room, or for a turn."""
        holding = {r.target.model for r in self.snapshot.recoveries if r.may_hold}
        live = [b.target.model for b in self.snapshot.admitting()]
        for (model, kind), line in self.snapshot.requests.lines.items():
            if not self.snapshot.agenda.admits(line.head.target):
                continue  # it waits for its period, or the end of its patience
            is_any_live = bool(self.snapshot.live_models())
            if is_switching or model in holding or (holding and model is None and not is_any_live):
                continue
            assert model is not None
            if model in live:
                backend = next(b for b in self.snapshot.ready_backends() if b.target.model == model)
                most = self.snapshot.rules.of(backend.target).max_concurrency
                is_full = most is not None and backend.in_flight >= most
                in_turn = backend.in_flight >= 2 * backend.target.parallel
                assert is_full or (in_turn and kind is not Kind.BYSTANDER)
                continue
            assert kind is not Kind.BYSTANDER
            waiters = line.waiters.values()
            assert all(self.asked_for[w.request_id].may_switch or w.main for w in waiters)
            # Its turn comes when the clock, or somebody who uses the device, says so.
            in_use = [b for b in self.snapshot.ready_backends() if b.in_flight]
            assert in_use or self.snapshot.scheduling.wake_at is not None

    def check_heads(self) -> None:
        """No head that may have the device is left beyond its bound, whatever else happens.

        Its bound is kept if its switch begins by the last moment that leaves time for the drain
        and the switch itself, or at the end of the resident's turn (`turns` proves it).
        So whenever no switch runs, that moment is to come, and the clock comes before it. A head
        that a fault, a setback or a hand keeps back does not contend meanwhile.
        """
        if self.snapshot.switch is not None or self.snapshot.is_closing:
            return
        wake_at = self.snapshot.scheduling.wake_at
        for contention in contentions(self.snapshot, self.now):
            if not contention.targets:
                continue
            view = view_of(self.snapshot, contention, self.now)
            heads = [
                (max(q.oldest_interactive_at, q.left_at or 0.0), q.model)
                for q in view.queues
                if q.oldest_interactive_at is not None
                and q.model in {target.model for target in contention.targets}
            ]
            if heads:
                assert view.stay is not None
                latest = last_moment(view, *min(heads)) + ROUNDING_S
                assert self.now <= latest
                assert wake_at is not None
                assert wake_at <= max(latest, self.now + SHORTEST_WAIT_S)


def last_moment(view: View, since: float, model: str) -> float:
    """When the resident is left at the latest for a head that contends since then.

    Who else contends may have changed meanwhile: the longest of all sets counts.
    """
    assert view.stay is not None
    resident, own = view.stay, view.costs[model]
    others = sorted(set(view.costs) - {model, resident.model})
    ahead_s = view.costs[resident.model].drain_s + own.switch_s
    latest = 0.0
    for count in range(len(others) + 1):
        for more in combinations(others, count):
            cycle = cycle_of([resident.model, model, *more], view.costs, view.rules)
            until = since + cycle.longest_wait_s(own) - ahead_s
            turn_s = cycle.longest_turn_of(view.costs[resident.model])
            latest = max(latest, resident.since + turn_s, until)
    return latest
