"""Events that come late, twice, or about something that is gone change nothing."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.commands import Command, FinishSwitch, SampleMemory
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    BackendSpawned,
    Event,
    MemorySampled,
    MemoryUnreadable,
    RequestArrived,
    RequestEnded,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
)
from supervisor.core.machine.invariants import violations
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.values import Device, Mode, Phase, Refusal, Target, TargetNeed
from tests.core.machine.story import AT_ONCE
from tests.core.machine.surroundings import taking

TOTAL_BYTES = 1000 * 1024 * 1024
CHAT = Target(model="chat", mode=Mode.GENERATION, profile="chat", device="gpu0")
EMBED = Target(model="embed", mode=Mode.EMBEDDING, profile="embed", device="gpu1")
DEVICES = Map(
    {
        name: Device(name=name, budget_bytes=TOTAL_BYTES, is_exclusive=True)
        for name in ("gpu0", "gpu1")
    }
)

ANSWERS = (
    TargetAccepted,
    TargetRejected,
    BackendSpawned,
    BackendReady,
    BackendExited,
    RequestEnded,
)


def reading(device: str, taken_at: float, used_bytes: int = 0) -> MemorySample:
    return MemorySample(
        device=device,
        taken_at=taken_at,
        total_bytes=TOTAL_BYTES,
        used_bytes=used_bytes,
        free_bytes=TOTAL_BYTES - used_bytes,
        source="test",
    )


class History:
    """Keeps every event that was told; if `is_repeating`, tells all of them again each time."""

    def __init__(self, *, is_repeating: bool = False) -> None:
        self.is_repeating = is_repeating
        self.now = 0.0
        self.snapshot = Snapshot(devices=DEVICES, rules=AT_ONCE)
        self.told: list[Event] = []
        self.last_commands: tuple[Command, ...] = ()

    def tell(self, fact: type[Event], **facts: Any) -> tuple[Command, ...]:
        self.now += 0.001
        event = fact(at=self.now, **facts)
        self.snapshot, self.last_commands = step(self.snapshot, event)
        assert violations(self.snapshot) == ()
        self.told.append(event)
        if self.is_repeating:
            self.check_that_answers_told_again_change_nothing()
        return self.last_commands

    def check_that_answers_told_again_change_nothing(self) -> None:
        for event in self.told:
            again = replace(event, at=self.now)
            if isinstance(event, ANSWERS):
                assert step(self.snapshot, again) == (self.snapshot, ()), event
            elif isinstance(event, MemorySampled):
                self.check_that_it_counts_once(again)

    def check_that_it_counts_once(self, again: Event) -> None:
        """It may cost a repetition, yet it is no further proof."""
        snapshot, commands = step(self.snapshot, again)
        before, after = self.snapshot.switch, snapshot.switch
        assert commands == ()
        assert (after and after.gate.samples) == (before and before.gate.samples)
        assert (after and after.gate.question) == (before and before.gate.question)

    def wake(self) -> None:
        wakeup = next_wakeup(self.snapshot)
        assert wakeup is not None
        self.now = max(self.now, wakeup)
        self.tell(TimePassed)

    def switch(self, switch_id: str, target: Target | None) -> None:
        self.tell(SwitchRequested, switch_id=switch_id, target=target, requested_by="ops")
        if target is not None:
            self.tell(
                TargetAccepted,
                switch_id=switch_id,
                need=TargetNeed(footprint=taking(100, target.device)),
                readings=(),
            )

    def confirm(self, switch_id: str, device: str) -> None:
        for _ in range(3):
            if SampleMemory(switch_id=switch_id, device=device) not in self.last_commands:
                self.wake()
            sample = reading(device, self.now)
            self.tell(MemorySampled, switch_id=switch_id, sample=sample)

    def make_live(self, switch_id: str, target: Target, epoch: int) -> None:
        self.switch(switch_id, target)
        self.confirm(switch_id, target.device)
        self.tell(BackendSpawned, epoch=epoch, pid=100 + epoch, address="a.sock")
        self.tell(BackendReady, epoch=epoch, memory=None)


def test_answers_told_again_at_any_later_moment_change_nothing() -> None:
    history = History(is_repeating=True)
    history.make_live("s1", CHAT, epoch=1)
    history.make_live("s2", EMBED, epoch=2)
    history.tell(RequestArrived, request_id="r1", target=CHAT)
    history.switch("s3", replace(CHAT, profile="chat-long"))
    history.tell(RequestArrived, request_id="r2", target=CHAT)
    history.tell(RequestEnded, request_id="r1")
    history.tell(BackendExited, epoch=1, exit_code=0)
    history.confirm("s3", "gpu0")
    history.tell(BackendSpawned, epoch=3, pid=103, address="a.sock")
    history.tell(BackendReady, epoch=3, memory=None)
    history.tell(RequestEnded, request_id="r2")
    history.tell(BackendExited, epoch=2, exit_code=None, signal=9)
    history.make_live("s4", EMBED, epoch=4)
    history.switch("s5", None)
    history.tell(BackendExited, epoch=3, exit_code=0)
    history.tell(BackendExited, epoch=4, exit_code=0)
    history.confirm("s5", "gpu0")
    history.confirm("s5", "gpu1")

    assert history.snapshot.backends == ()
    (finish,) = history.last_commands
    assert isinstance(finish, FinishSwitch)
    assert finish.report.refusal is None


@pytest.fixture
def draining() -> History:
    """The switch s2 waits until the request r1 gives `chat` back."""
    history = History()
    history.make_live("s1", CHAT, epoch=1)
    history.tell(RequestArrived, request_id="r1", target=CHAT)
    history.switch("s2", replace(CHAT, profile="chat-long"))
    return history


@pytest.fixture
def confirming(draining: History) -> History:
    """The switch s2 waits for the first reading since `chat` was reaped."""
    draining.tell(RequestEnded, request_id="r1")
    draining.tell(BackendExited, epoch=1, exit_code=0)
    return draining


def test_target_that_was_accepted_cannot_be_rejected_later(draining: History) -> None:
    rejected = draining.tell(TargetRejected, switch_id="s2", message="changed its mind")

    assert rejected == ()
    assert draining.snapshot.switch is not None
    assert draining.snapshot.switch.phase is Phase.DRAINING


def test_answers_to_a_switch_that_never_was_change_nothing(draining: History) -> None:
    before = draining.snapshot

    assert (
        draining.tell(
            TargetAccepted, switch_id="s9", need=TargetNeed(footprint=taking(1)), readings=()
        )
        == ()
    )
    assert draining.tell(TargetRejected, switch_id="s9", message="who?") == ()
    assert draining.tell(MemorySampled, switch_id="s9", sample=reading("gpu0", 1.0)) == ()
    assert draining.tell(MemoryUnreadable, switch_id="s9", reason="who?") == ()
    assert draining.snapshot is before


def test_events_of_an_epoch_that_never_was_change_nothing(draining: History) -> None:
    before = draining.snapshot

    assert draining.tell(BackendSpawned, epoch=9, pid=5, address="a.sock") == ()
    assert draining.tell(BackendReady, epoch=9, memory=None) == ()
    assert draining.tell(BackendExited, epoch=9, exit_code=1) == ()
    assert draining.snapshot is before


def refused_after(
    history: History, device: str = "gpu0", *, taken_at: Callable[[], float]
) -> tuple[Refusal, float]:
    """Answer every question with such a reading; return why the gate refused, and after how long.

    Nothing is started by then; what was stopped is brought back.
    """
    began_s = history.now
    for _ in range(100):
        sample = reading(device, taken_at())
        commands = history.tell(MemorySampled, switch_id="s2", sample=sample)
        switch = history.snapshot.switch
        assert switch is not None
        if switch.rollback.failure is not None:
            assert (switch.phase, history.snapshot.backends) == (Phase.ROLLING_BACK, ())
            return switch.rollback.failure, history.now - began_s
        assert commands == ()
        history.wake()
    raise AssertionError("the gate never decides")


def test_reading_from_before_the_backend_was_reaped_proves_nothing(confirming: History) -> None:
    reaped_at = confirming.now
    before = count(reaped_at - 0.5, 0.001)
    refusal, waited_s = refused_after(confirming, taken_at=lambda: next(before))

    assert refusal.code == "memory_not_released"
    assert waited_s == pytest.approx(CHAT.memory.release_timeout_s, abs=0.3)


def test_reading_of_another_device_proves_nothing(confirming: History) -> None:
    refusal, _ = refused_after(confirming, "gpu1", taken_at=lambda: confirming.now)

    assert refusal.code == "memory_not_released"
    assert "gpu0" in refusal.message


def test_one_reading_told_again_and_again_proves_nothing(confirming: History) -> None:
    """A sampler that hangs repeats its last reading: that is no stable release."""
    reaped_at = confirming.now
    refusal, _ = refused_after(confirming, taken_at=lambda: reaped_at)

    assert refusal.code == "memory_not_released"


def test_readings_that_nobody_asked_for_prove_nothing(confirming: History) -> None:
    """Three within a millisecond would be no stable release."""
    for _ in range(5):
        fresh = reading("gpu0", confirming.now)
        assert confirming.tell(MemorySampled, switch_id="s2", sample=fresh) == ()
    assert confirming.snapshot.switch is not None
    assert confirming.snapshot.switch.phase is Phase.CONFIRMING


def test_last_answer_about_one_device_is_not_taken_for_the_next() -> None:
    history = History()
    history.make_live("s1", CHAT, epoch=1)
    history.make_live("s2", EMBED, epoch=2)
    history.switch("s3", None)
    history.tell(BackendExited, epoch=1, exit_code=0)
    history.tell(BackendExited, epoch=2, exit_code=0)
    history.confirm("s3", "gpu0")

    for _ in range(3):
        late = reading("gpu0", history.now + 0.0005)
        assert history.tell(MemorySampled, switch_id="s3", sample=late) == ()
        history.wake()
    assert history.snapshot.switch is not None
    assert history.snapshot.switch.gate.devices == ("gpu1",)
