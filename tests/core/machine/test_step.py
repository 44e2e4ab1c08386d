"""How switches move, told as stories: what happened, what is ordered next."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    GrantLease,
    JoinSwitch,
    RefuseSwitch,
    ReleaseMemory,
    SampleMemory,
    StartBackend,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.ending import KEPT_DURATIONS
from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    BackendSpawned,
    MemoryUnreadable,
    RequestEnded,
    TargetRejected,
)
from supervisor.core.machine.values import Outcome, Phase, Stop, Target
from tests.core.machine.story import (
    CHAT,
    CHAT_LONG,
    EMBED,
    EMBED_1,
    EXCLUSIVE,
    GIB,
    TOTAL_BYTES,
    Story,
    failure_in,
    report_in,
)

STOP_CHAT = ReleaseMemory(epoch=1, how=Stop(grace_s=CHAT.patience.stop_grace_s, keeps_prompts=True))


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
    assert stop == (STOP_CHAT,)
    reaped = chat_live.tell(BackendExited, epoch=1, exit_code=0)
    assert reaped == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert chat_live.confirm() == (StartBackend(epoch=2, target=EMBED),)


def test_idle_backend_is_stopped_at_once(chat_live: Story) -> None:
    chat_live.ask_for(EMBED)

    assert chat_live.accept() == (STOP_CHAT,)


def test_drain_deadline_stops_a_backend_that_still_serves(chat_live: Story) -> None:
    chat_live.arrive("r1")
    chat_live.ask_for(EMBED)
    chat_live.accept()

    assert next_wakeup(chat_live.snapshot) == chat_live.now + CHAT.patience.drain_timeout_s
    assert chat_live.wake() == (STOP_CHAT,)
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
    assert chat_live.snapshot == before


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

    assert next_wakeup(story.snapshot) == story.now + CHAT.patience.start_timeout_s
    assert story.wake() == (ReleaseMemory(epoch=1, how=Stop(grace_s=CHAT.patience.stop_grace_s)),)
    assert story.tell(BackendReady, epoch=1, memory=None) == ()
    code, _ = failure_in(story.tell(BackendExited, epoch=1, exit_code=0))
    assert code == "backend_start_timeout"


@pytest.fixture
def waiting_for_release(chat_live: Story) -> Story:
    """The switch s2 has stopped `chat`, and waits for its memory."""
    chat_live.ask_for(EMBED)
    chat_live.accept()
    chat_live.reap(1)
    return chat_live


def test_memory_that_is_not_released_starts_nothing_and_brings_back_what_was_stopped(
    waiting_for_release: Story,
) -> None:
    story = waiting_for_release
    asked_at = story.now
    held = story.answer_until_the_gate_decides(lambda: story.show(20 * GIB))

    assert held == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert (story.phase, story.snapshot.backends) == (Phase.ROLLING_BACK, ())
    assert story.now - asked_at == pytest.approx(EMBED.memory.release_timeout_s, abs=0.25)
    story.start()
    code, message = failure_in(story.last)
    assert code == "memory_not_released"
    assert "4.0 GiB free, 8.0 GiB needed" in message


def test_memory_that_cannot_be_read_fails_in_time_and_brings_back_what_was_stopped(
    waiting_for_release: Story,
) -> None:
    story = waiting_for_release
    asked_at = story.now
    unread = story.answer_until_the_gate_decides(
        lambda: story.tell(MemoryUnreadable, switch_id="s2", reason="driver not loaded")
    )

    assert unread == (SampleMemory(switch_id="s2", device="gpu0"),)
    assert (story.phase, story.snapshot.backends) == (Phase.ROLLING_BACK, ())
    assert story.now - asked_at == pytest.approx(EMBED.memory.release_timeout_s, abs=0.25)
    story.start()
    code, message = failure_in(story.last)
    assert code == "memory_not_released"
    assert "driver not loaded" in message


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
    assert {c.epoch for c in stops if isinstance(c, ReleaseMemory)} == {1, 2}
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


def test_successful_switches_are_measured_and_failed_ones_are_not(story: Story) -> None:
    story.ask_for(CHAT)
    story.accept()
    story.confirm()
    story.reap(1, exit_code=1)
    assert story.snapshot.switch_durations_s == ()

    story.make_live(CHAT)
    assert story.snapshot.switch_durations_s == pytest.approx((0.01,))


def test_only_the_last_switches_count_for_how_long_the_next_will_take(story: Story) -> None:
    snapshot = replace(story.snapshot, switch_durations_s=tuple(map(float, range(KEPT_DURATIONS))))
    story.snapshot = snapshot
    story.make_live(CHAT)
    first, *_, last = story.snapshot.switch_durations_s
    assert len(story.snapshot.switch_durations_s) == KEPT_DURATIONS
    assert (first, last) == pytest.approx((1.0, 0.01))
