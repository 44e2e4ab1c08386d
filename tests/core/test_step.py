"""How switches move, told as stories: what happened, what is ordered next."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from immutables import Map

from supervisor.core.commands import (
    CheckTarget,
    Command,
    FinishSwitch,
    GrantLease,
    JoinSwitch,
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
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
)
from supervisor.core.memory import MIB, MemorySample
from supervisor.core.step import next_wakeup, step
from supervisor.core.values import (
    Device,
    Mode,
    Outcome,
    Phase,
    Snapshot,
    SwitchReport,
    Target,
)

GIB = 1024 * MIB
TOTAL_BYTES = 24 * GIB

CHAT = Target(model="chat", mode=Mode.GENERATION, profile="chat", device="gpu0")
CHAT_LONG = replace(CHAT, profile="chat-long")
EMBED = Target(model="embed", mode=Mode.EMBEDDING, profile="embed", device="gpu0")
RERANK = Target(model="rerank", mode=Mode.EMBEDDING, profile="rerank", device="gpu0")
EMBED_1 = replace(EMBED, device="gpu1")

EXCLUSIVE = Device(name="gpu0", budget_bytes=TOTAL_BYTES, is_exclusive=True)
SHARED = replace(EXCLUSIVE, is_exclusive=False)


class Story:
    """Feeds events to `step()`, each at `now`, which only the test moves."""

    def __init__(self, *devices: Device) -> None:
        self.now = 1000.0
        self.switches = 0
        self.snapshot = Snapshot(devices=Map({d.name: d for d in devices or (EXCLUSIVE,)}))

    def tell(self, fact: type[Event], **facts: Any) -> tuple[Command, ...]:
        self.snapshot, commands = step(self.snapshot, fact(at=self.now, **facts))
        return commands

    def ask_for(self, target: Target | None) -> tuple[Command, ...]:
        """Request a switch; the ids are s1, s2, and so on."""
        self.switches += 1
        return self.tell(
            SwitchRequested, switch_id=f"s{self.switches}", target=target, requested_by="ops"
        )

    def accept(self, need_bytes: int = 8 * GIB) -> tuple[Command, ...]:
        return self.tell(TargetAccepted, switch_id=self.running, need_bytes=need_bytes, memory=None)

    def show(self, used_bytes: int, device: str = "gpu0") -> tuple[Command, ...]:
        """Give one reading of the device to the running switch."""
        reading = MemorySample(
            device=device,
            taken_at=self.now,
            total_bytes=TOTAL_BYTES,
            used_bytes=used_bytes,
            free_bytes=TOTAL_BYTES - used_bytes,
            source="test",
        )
        return self.tell(MemorySampled, switch_id=self.running, sample=reading)

    def confirm(self, used_bytes: int = 0, device: str = "gpu0") -> tuple[Command, ...]:
        """Give the three readings that the gate asks for, at the times it asks for them."""
        for _ in range(2):
            assert self.show(used_bytes, device) == ()
            assert self.wake() == (SampleMemory(switch_id=self.running, device=device),)
        return self.show(used_bytes, device)

    def answer_until_the_gate_decides(
        self, answer: Callable[[], tuple[Command, ...]]
    ) -> tuple[Command, ...]:
        """Answer each reading that is ordered, and return what the last answer leads to."""
        for _ in range(100):
            commands = answer()
            if self.phase is not Phase.CONFIRMING:
                return commands
            assert commands == ()
            assert self.wake() == (SampleMemory(switch_id=self.running, device="gpu0"),)
        raise AssertionError("the gate never decides")

    def wake(self) -> tuple[Command, ...]:
        """Let the time pass until the moment that the core waits for."""
        wakeup = next_wakeup(self.snapshot)
        assert wakeup is not None
        self.now = wakeup
        return self.tell(TimePassed)

    def make_live(self, target: Target, need_bytes: int = 8 * GIB, used_bytes: int = 0) -> int:
        """Go through the whole switch when nothing has to give way. Returns the epoch."""
        self.ask_for(target)
        self.accept(need_bytes)
        (start,) = self.confirm(used_bytes, target.device)
        assert isinstance(start, StartBackend)
        self.tell(BackendReady, epoch=start.epoch, memory=None)
        return start.epoch

    def arrive(self, request_id: str, model: str | None = "chat") -> tuple[Command, ...]:
        return self.tell(RequestArrived, request_id=request_id, model=model)

    @property
    def running(self) -> str:
        assert self.snapshot.switch is not None
        return self.snapshot.switch.switch_id

    @property
    def phase(self) -> Phase | None:
        return self.snapshot.switch.phase if self.snapshot.switch else None


def report_in(commands: tuple[Command, ...]) -> SwitchReport:
    (report,) = [c.report for c in commands if isinstance(c, FinishSwitch)]
    return report


def failure_in(commands: tuple[Command, ...]) -> tuple[str, str]:
    """Code and message of the switch that failed."""
    report = report_in(commands)
    assert report.outcome is Outcome.FAILED
    assert report.refusal is not None
    return report.refusal.code, report.refusal.message


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def chat_live() -> Story:
    """Epoch 1 serves `chat` on an exclusive device."""
    story = Story()
    story.make_live(CHAT)
    return story


def test_first_switch_checks_the_target_confirms_memory_and_starts_it(story: Story) -> None:
    assert story.ask_for(CHAT) == (CheckTarget(switch_id="s1", target=CHAT),)
    assert story.accept() == (SampleMemory(switch_id="s1", device="gpu0"),)
    assert story.confirm() == (StartBackend(epoch=1, target=CHAT),)
    assert story.tell(BackendSpawned, epoch=1, pid=77, address="a.sock") == ()
    report = report_in(story.tell(BackendReady, epoch=1, memory=None))

    assert (report.outcome, report.switch_id, report.epoch) == (Outcome.SWITCHED, "s1", 1)
    assert story.snapshot.live_models() == ("chat",)
    assert story.snapshot.backends[0].pid == 77


def test_report_has_the_seconds_of_each_phase(chat_live: Story) -> None:
    chat_live.arrive("r1")
    chat_live.ask_for(EMBED)
    chat_live.now += 1
    chat_live.accept()
    chat_live.now += 2
    chat_live.tell(RequestEnded, request_id="r1")
    chat_live.now += 4
    chat_live.tell(BackendExited, epoch=1, exit_code=0)
    chat_live.confirm()
    chat_live.now += 8
    report = report_in(chat_live.tell(BackendReady, epoch=2, memory=None))

    expected = {"preflight": 1, "draining": 2, "stopping": 4, "confirming": 0.01, "starting": 8}
    assert {str(k): v for k, v in report.phase_seconds} == pytest.approx(expected)
    assert report.total_s == pytest.approx(15.01)


def test_switch_waits_for_leases_then_stops_then_confirms_then_starts(chat_live: Story) -> None:
    chat_live.arrive("r1")
    chat_live.arrive("r2")
    chat_live.ask_for(EMBED)

    assert chat_live.accept() == ()
    assert chat_live.tell(RequestEnded, request_id="r1") == ()
    stop = chat_live.tell(RequestEnded, request_id="r2")
    assert stop == (StopBackend(epoch=1, grace_s=CHAT.stop_grace_s),)
    reaped = chat_live.tell(BackendExited, epoch=1, exit_code=0)
    assert reaped == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert chat_live.confirm() == (StartBackend(epoch=2, target=EMBED),)


def test_idle_backend_is_stopped_at_once(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)

    assert chat_live.accept() == (StopBackend(epoch=1, grace_s=CHAT.stop_grace_s),)


def test_drain_deadline_stops_a_backend_that_still_serves(chat_live: Story) -> None:
    chat_live.arrive("r1")
    chat_live.ask_for(EMBED)
    chat_live.accept()

    assert next_wakeup(chat_live.snapshot) == chat_live.now + CHAT.drain_timeout_s
    assert chat_live.wake() == (StopBackend(epoch=1, grace_s=CHAT.stop_grace_s),)
    assert chat_live.tell(RequestEnded, request_id="r1") == ()


def test_leaving_backend_that_crashes_while_it_drains_leads_to_the_gate(chat_live: Story) -> None:
    chat_live.arrive("r1")
    chat_live.ask_for(EMBED)
    chat_live.accept()

    died = chat_live.tell(BackendExited, epoch=1, exit_code=None, signal=11)
    assert died == (SampleMemory(switch_id="s2", device="gpu0"),)


def test_switch_to_what_is_live_changes_nothing(chat_live: Story) -> None:
    before = chat_live.snapshot
    report = report_in(chat_live.ask_for(CHAT))

    assert (report.outcome, report.epoch, report.total_s) == (Outcome.UNCHANGED, 1, 0.0)
    assert chat_live.snapshot is before


def test_unload_of_nothing_changes_nothing(story: Story) -> None:
    assert report_in(story.ask_for(None)).outcome is Outcome.UNCHANGED
    assert story.phase is None


def test_second_caller_of_the_running_switch_joins_it(story: Story) -> None:
    story.ask_for(CHAT)

    assert story.ask_for(CHAT) == (JoinSwitch(switch_id="s2", running_id="s1"),)


def test_second_caller_of_a_running_unload_joins_it(chat_live: Story) -> None:
    chat_live.ask_for(None)

    assert chat_live.ask_for(None) == (JoinSwitch(switch_id="s3", running_id="s2"),)


@pytest.mark.parametrize("other", [EMBED, CHAT_LONG, None])
def test_other_target_is_refused_while_a_switch_runs(story: Story, other: Target | None) -> None:
    story.ask_for(CHAT)
    (refused,) = story.ask_for(other)

    assert isinstance(refused, RefuseSwitch)
    assert (refused.switch_id, refused.refusal.code) == ("s2", "switch_in_progress")
    facts = {"switch_id": "s1", "target": "chat", "phase": "preflight"}
    assert dict(refused.refusal.details) == facts
    assert story.running == "s1"


def test_rejected_target_leaves_the_live_backend_serving(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)
    rejected = chat_live.tell(TargetRejected, switch_id="s2", message="embed.gguf: no such file")

    assert failure_in(rejected) == ("target_cannot_start", "embed.gguf: no such file")
    assert chat_live.arrive("r1") == (GrantLease(request_id="r1", epoch=1),)


def test_target_that_no_device_budget_carries_leaves_the_live_backend_serving(
    chat_live: Story,
) -> None:
    chat_live.ask_for(EMBED)
    code, message = failure_in(chat_live.accept(need_bytes=TOTAL_BYTES + GIB))

    assert code == "target_does_not_fit"
    assert "25.0 GiB" in message
    assert "24.0 GiB" in message
    assert chat_live.arrive("r1") == (GrantLease(request_id="r1", epoch=1),)


def test_live_backend_serves_until_the_target_is_accepted(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)

    assert chat_live.arrive("r1") == (GrantLease(request_id="r1", epoch=1),)
    chat_live.accept()
    assert chat_live.arrive("r2", model="embed") == ()


def test_backend_that_dies_before_it_is_ready_fails_the_switch(story: Story) -> None:
    story.ask_for(CHAT)
    story.accept()
    story.confirm()
    died = story.tell(BackendExited, epoch=1, exit_code=1, last_lines=("out of memory",))

    code, message = failure_in(died)
    assert code == "backend_died"
    assert "exit code 1" in message
    refusal = report_in(died).refusal
    assert refusal is not None
    assert dict(refusal.details)["last_lines"] == ("out of memory",)
    assert (story.phase, story.snapshot.backends) == (None, ())


def test_backend_that_is_not_ready_in_time_is_stopped_and_reaped_before_the_switch_fails(
    story: Story,
) -> None:
    story.ask_for(CHAT)
    story.accept()
    story.confirm()

    assert next_wakeup(story.snapshot) == story.now + CHAT.start_timeout_s
    assert story.wake() == (StopBackend(epoch=1, grace_s=CHAT.stop_grace_s),)
    assert story.tell(BackendReady, epoch=1, memory=None) == ()
    code, _ = failure_in(story.tell(BackendExited, epoch=1, exit_code=0))
    assert code == "backend_start_timeout"


def test_memory_that_is_not_released_fails_the_switch_and_starts_nothing(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)
    chat_live.accept()
    chat_live.tell(BackendExited, epoch=1, exit_code=0)
    asked_at = chat_live.now
    held = chat_live.answer_until_the_gate_decides(lambda: chat_live.show(20 * GIB))

    code, message = failure_in(held)
    assert code == "memory_not_released"
    assert "4.0 GiB free, 8.0 GiB needed" in message
    assert chat_live.now - asked_at == pytest.approx(EMBED.memory.release_timeout_s, abs=0.25)
    assert chat_live.snapshot.backends == ()


def test_memory_that_cannot_be_read_fails_the_switch_in_time(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)
    chat_live.accept()
    chat_live.tell(BackendExited, epoch=1, exit_code=0)
    asked_at = chat_live.now
    unread = chat_live.answer_until_the_gate_decides(
        lambda: chat_live.tell(MemoryUnreadable, switch_id="s2", reason="driver not loaded")
    )

    code, message = failure_in(unread)
    assert code == "memory_not_released"
    assert "driver not loaded" in message
    assert chat_live.now - asked_at == pytest.approx(EMBED.memory.release_timeout_s, abs=0.25)


def test_reading_that_failed_once_is_repeated(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)
    chat_live.accept()
    chat_live.tell(BackendExited, epoch=1, exit_code=0)

    assert chat_live.tell(MemoryUnreadable, switch_id="s2", reason="busy") == ()
    assert chat_live.wake() == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert chat_live.confirm() == (StartBackend(epoch=2, target=EMBED),)


def test_unload_frees_one_device_after_the_other() -> None:
    story = Story(EXCLUSIVE, replace(EXCLUSIVE, name="gpu1"))
    story.make_live(CHAT)
    story.make_live(EMBED_1)

    stops = story.ask_for(None)
    assert {c.epoch for c in stops if isinstance(c, StopBackend)} == {1, 2}
    assert story.tell(BackendExited, epoch=2, exit_code=0) == ()
    asked = story.tell(BackendExited, epoch=1, exit_code=0)
    assert asked == (SampleMemory(switch_id="s3", device="gpu0"),)
    assert story.confirm(device="gpu0") == (SampleMemory(switch_id="s3", device="gpu1"),)
    report = report_in(story.confirm(device="gpu1"))
    assert (report.outcome, report.model) == (Outcome.SWITCHED, None)


def test_unload_that_frees_nothing_fails(chat_live: Story) -> None:
    chat_live.ask_for(None)
    chat_live.tell(BackendExited, epoch=1, exit_code=0)
    held = chat_live.answer_until_the_gate_decides(lambda: chat_live.show(8 * GIB))

    assert failure_in(held)[0] == "memory_not_released"


def test_crashed_backend_can_be_started_again(chat_live: Story) -> None:
    chat_live.tell(BackendExited, epoch=1, exit_code=None, signal=9)

    assert chat_live.make_live(CHAT) == 2
    assert chat_live.arrive("r1") == (GrantLease(request_id="r1", epoch=2),)
