"""A story of the core: facts are told one after another, and time moves only when told."""

from collections.abc import Callable
from typing import Any

from immutables import Map
from msgspec.structs import replace

from supervisor.core.byte_size import MIB
from supervisor.core.machine.commands import (
    CheckTarget,
    Command,
    FinishSwitch,
    GrantLease,
    RefuseRequest,
    SampleMemory,
    StartBackend,
    WarmFile,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    Event,
    MemorySampled,
    RequestArrived,
    RequestEnded,
    SwitchRequested,
    TargetAccepted,
    TimePassed,
    WarmingBegun,
)
from supervisor.core.machine.invariants import violations
from supervisor.core.machine.memory import Holder, HolderRole, MemorySample
from supervisor.core.machine.rules import DrainPolicy, SwitchRules
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import SwitchReport
from supervisor.core.machine.values import Device, Mode, Outcome, Phase, Target, TargetNeed
from tests.core.machine.surroundings import asked_for, taking

GIB = 1024 * MIB
TOTAL_BYTES = 24 * GIB

CHAT = Target(model="chat", mode=Mode.GENERATION, profile="chat", device="gpu0")
CHAT_LONG = replace(CHAT, profile="chat-long")
EMBED = Target(model="embed", mode=Mode.EMBEDDING, profile="embed", device="gpu0")
RERANK = Target(model="rerank", mode=Mode.EMBEDDING, profile="rerank", device="gpu0")
EMBED_1 = replace(EMBED, device="gpu1")

EXCLUSIVE = Device(name="gpu0", budget_bytes=TOTAL_BYTES, is_exclusive=True)
SHARED = replace(EXCLUSIVE, is_exclusive=False)


AT_ONCE = SwitchRules(warms=False)
"""Rules without the phase that only reads ahead: stories that are not about it pass it over."""


class Story:
    """Feeds events to `step()`, each at `now`, which only the test moves."""

    def __init__(self, *devices: Device, rules: SwitchRules = AT_ONCE) -> None:
        self.now = 1000.0
        self.switches = 0
        self.last: tuple[Command, ...] = ()
        self.snapshot = Snapshot(
            devices=Map({d.name: d for d in devices or (EXCLUSIVE,)}), rules=rules
        )

    def tell(self, fact: type[Event], **facts: Any) -> tuple[Command, ...]:
        self.snapshot, commands = step(self.snapshot, fact(at=self.now, **facts))
        assert violations(self.snapshot) == ()
        return commands

    def ask_for(
        self, target: Target | None, policy: DrainPolicy = DrainPolicy.CANCEL
    ) -> tuple[Command, ...]:
        """Request a switch; the ids are s1, s2, and so on."""
        self.switches += 1
        switch_id = f"s{self.switches}"
        return self.tell(
            SwitchRequested,
            switch_id=switch_id,
            target=target,
            requested_by="ops",
            drain_policy=policy,
        )

    def unload(self, name: str | None) -> tuple[Command, ...]:
        """Request that a model goes, or (None) all that are not pinned."""
        self.switches += 1
        return self.tell(
            SwitchRequested,
            switch_id=f"s{self.switches}",
            target=None,
            requested_by="ops",
            unloads=name,
        )

    def accept(
        self,
        need_bytes: int = 8 * GIB,
        *,
        used_bytes: int | None = None,
        also: tuple[MemorySample, ...] = (),
    ) -> tuple[Command, ...]:
        """Accept the target, with a reading of its device where `used_bytes` is told."""
        switch = self.snapshot.switch
        assert switch is not None
        assert switch.target is not None
        device = switch.target.device
        readings = () if used_bytes is None else (self.reading(used_bytes, device),)
        commands = self.tell(
            TargetAccepted,
            switch_id=self.running,
            need=TargetNeed(footprint=taking(need_bytes, device)),
            readings=(*readings, *also),
        )
        if not any(isinstance(c, WarmFile) for c in commands):
            return commands
        return self.tell(WarmingBegun, switch_id=switch.switch_id)

    def reading(self, used_bytes: int, device: str = "gpu0") -> MemorySample:
        """A reading of the device now."""
        return MemorySample(
            device=device,
            taken_at=self.now,
            total_bytes=TOTAL_BYTES,
            used_bytes=used_bytes,
            free_bytes=TOTAL_BYTES - used_bytes,
            source="test",
        )

    def show(self, used_bytes: int, device: str = "gpu0") -> tuple[Command, ...]:
        """Give one reading of the device to the running switch."""
        reading = self.reading(used_bytes, device)
        return self.tell(MemorySampled, switch_id=self.running, sample=reading)

    def confirm(self, used_bytes: int = 0, device: str = "gpu0") -> tuple[Command, ...]:
        """Give the readings that the gate asks for, at the times it asks: one of the host."""
        for _ in range(0 if self.snapshot.devices[device].is_host_memory else 2):
            assert self.show(used_bytes, device) == ()
            assert self.wake() == (SampleMemory(switch_id=self.running, device=device),)
        return self.show(used_bytes, device)

    def answer_until_the_gate_decides(
        self, answer: Callable[[], tuple[Command, ...]]
    ) -> tuple[Command, ...]:
        """Answer each reading that is ordered, and return what the last answer leads to."""
        for _ in range(100):
            commands = answer()
            if commands:
                return commands
            assert self.wake() == (SampleMemory(switch_id=self.running, device="gpu0"),)
        raise AssertionError("the gate never decides")

    def wake(self) -> tuple[Command, ...]:
        """Let the time pass until the moment that the core waits for."""
        wakeup = next_wakeup(self.snapshot)
        assert wakeup is not None
        self.now = wakeup
        return self.tell(TimePassed)

    def start(self, used_bytes: int = 0, device: str = "gpu0") -> int:
        """Confirm the device, and let what is started become ready. Returns its epoch."""
        *_, start = self.confirm(used_bytes, device)
        assert isinstance(start, StartBackend)
        self.last = self.tell(BackendReady, epoch=start.epoch, memory=None)
        return start.epoch

    def make_live(self, target: Target, need_bytes: int = 8 * GIB, used_bytes: int = 0) -> int:
        """Go through the whole switch when nothing has to give way. Returns the epoch."""
        self.ask_for(target)
        self.accept(need_bytes)
        return self.start(used_bytes, target.device)

    def reap(
        self,
        epoch: int,
        *,
        exit_code: int | None = 0,
        signal: int | None = None,
        last_lines: tuple[str, ...] = (),
    ) -> tuple[Command, ...]:
        return self.tell(
            BackendExited, epoch=epoch, exit_code=exit_code, signal=signal, last_lines=last_lines
        )

    def crash(self, epoch: int) -> tuple[Command, ...]:
        return self.reap(epoch, exit_code=None, signal=9)

    def retry(self, model: str = "chat") -> tuple[Command, ...]:
        """Let the pause before the next attempt be over, if there is one."""
        self.now = max(self.now, self.retry_at(model) or 0.0)
        return self.tell(TimePassed)

    def retry_at(self, model: str = "chat") -> float | None:
        """When a model is tried next."""
        down = self.snapshot.recovery(model)
        return None if down is None else down.retry_at

    def attempts(self) -> list[tuple[str, int]]:
        """What is tried next, and for which time."""
        down = [each for each in self.snapshot.recoveries if each.retry_at is not None]
        return [(each.target.model, each.attempt) for each in down]

    def arrive(self, request_id: str, model: str | None = "chat") -> tuple[Command, ...]:
        return self.tell(
            RequestArrived,
            request_id=request_id,
            target=asked_for(model),
        )

    def end(self, request_id: str) -> tuple[Command, ...]:
        return self.tell(RequestEnded, request_id=request_id)

    def recover(self, model: str = "chat") -> int:
        """Let the pause be over and everything go well. Returns the epoch that serves then."""
        (check,) = self.retry(model)
        assert isinstance(check, CheckTarget)
        self.accept()
        return self.start(device=check.target.device)

    def epoch_of(self, model: str) -> int:
        """The epoch that serves a model."""
        return next(b.epoch for b in self.snapshot.ready_backends() if b.target.model == model)

    @property
    def running(self) -> str:
        assert self.snapshot.switch is not None
        return self.snapshot.switch.switch_id

    @property
    def phase(self) -> Phase | None:
        return self.snapshot.switch.phase if self.snapshot.switch else None


class WatchedStory(Story):
    """One in which the driver says what others hold."""

    others_bytes = 0

    def reading(self, used_bytes: int, device: str = "gpu0") -> MemorySample:
        tenant = Holder(pid=7, used_bytes=self.others_bytes, role=HolderRole.FOREIGN)
        return replace(super().reading(used_bytes, device), holders=(tenant,))


def report_in(commands: tuple[Command, ...]) -> SwitchReport:
    (report,) = [c.report for c in commands if isinstance(c, FinishSwitch)]
    return report


def failure_in(commands: tuple[Command, ...]) -> tuple[str, str]:
    """Code and message of the switch that failed."""
    report = report_in(commands)
    assert report.outcome is Outcome.FAILED
    assert report.refusal is not None
    return report.refusal.code, report.refusal.message


def facts_in(commands: tuple[Command, ...]) -> dict[str, Any]:
    """Details of the refusal with which the switch failed."""
    refusal = report_in(commands).refusal
    assert refusal is not None
    return dict(refusal.details)


def granted_in(commands: tuple[Command, ...]) -> list[tuple[str, int]]:
    """Requests that were granted a lease, with the epoch, in order."""
    return [(c.request_id, c.epoch) for c in commands if isinstance(c, GrantLease)]


def refused_in(commands: tuple[Command, ...]) -> list[tuple[str, str]]:
    """Requests that were refused, with the code, in order."""
    return [(c.request_id, c.refusal.code) for c in commands if isinstance(c, RefuseRequest)]


def accept_unread(story: Story) -> tuple[Command, ...]:
    """Accept the target of the running switch, whose device cannot be read."""
    return story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=TargetNeed(footprint=taking(GIB)),
        readings=(),
        memory_problem="the driver hangs",
    )
