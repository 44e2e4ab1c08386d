"""A switch that fails after it stopped something brings that back, and says what happened."""

import pytest

from supervisor.core.machine.commands import (
    FinishSwitch,
    GrantLease,
    RefuseRequest,
    ReleaseMemory,
    SampleMemory,
    StartBackend,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import BackendReady, RestartRequested, ShutdownRequested
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.values import Phase, Stop
from tests.core.machine.story import (
    CHAT,
    CHAT_LONG,
    EMBED,
    GIB,
    RERANK,
    SHARED,
    TOTAL_BYTES,
    Story,
    facts_in,
    failure_in,
    granted_in,
    refused_in,
    report_in,
)
from tests.core.machine.surroundings import used_before

ASKS_GPU0 = (SampleMemory(switch_id="s2", device="gpu0"),)


@pytest.fixture
def stopped() -> Story:
    """`chat` was live as epoch 1 and is reaped; the switch s2 to `embed` asks for its memory."""
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    story.accept()
    story.reap(1)
    return story


@pytest.fixture
def starting(stopped: Story) -> Story:
    """`chat` is gone, and `embed` starts as epoch 2."""
    assert stopped.confirm() == (StartBackend(epoch=2, target=EMBED),)
    return stopped


@pytest.fixture
def rolling_back(starting: Story) -> Story:
    """`embed` died, and memory is asked for, for `chat`."""
    assert starting.reap(2, exit_code=1, last_lines=("cannot load",)) == ASKS_GPU0
    return starting


def test_target_that_dies_before_it_is_ready_is_replaced_by_what_was_stopped(
    rolling_back: Story,
) -> None:
    assert rolling_back.phase is Phase.ROLLING_BACK
    assert rolling_back.confirm() == (StartBackend(epoch=3, target=CHAT),)
    finish = rolling_back.tell(BackendReady, epoch=3, memory=None)

    code, message = failure_in(finish)
    assert code == "backend_died"
    assert message == "the server of 'embed' ended (exit code 1) before it was ready"
    assert facts_in(finish) == {
        "exit_code": 1,
        "signal": None,
        "last_lines": ("cannot load",),
        "rolled_back": True,
    }
    assert rolling_back.arrive("r1") == (GrantLease(request_id="r1", epoch=3),)
    assert rolling_back.snapshot.recoveries == ()


def test_report_of_a_rollback_has_its_seconds_and_the_memory_after_it(starting: Story) -> None:
    starting.now += 3
    starting.reap(2, exit_code=1)
    starting.confirm()
    starting.now += 7
    after = MemorySample(
        device="gpu0", taken_at=1.0, total_bytes=9, used_bytes=4, free_bytes=5, source="test"
    )
    report = report_in(starting.tell(BackendReady, epoch=3, memory=after))

    seconds = {str(phase): s for phase, s in report.phase_seconds}
    assert seconds["starting"] == pytest.approx(3)
    assert seconds["rolling_back"] == pytest.approx(7.01)
    assert (report.model, report.epoch, report.memory.after) == ("embed", None, after)


def test_only_the_last_30_lines_of_what_died_are_kept(starting: Story) -> None:
    starting.reap(2, exit_code=1, last_lines=tuple(f"line {n}" for n in range(40)))
    starting.start()

    assert facts_in(starting.last)["last_lines"] == tuple(f"line {n}" for n in range(10, 40))


def test_target_that_is_not_ready_in_time_is_reaped_before_the_rollback_begins(
    starting: Story,
) -> None:
    assert starting.wake() == (
        ReleaseMemory(epoch=2, how=Stop(grace_s=EMBED.patience.stop_grace_s)),
    )
    assert starting.phase is Phase.STARTING
    assert starting.reap(2, signal=9, exit_code=None, last_lines=("loading",)) == ASKS_GPU0
    starting.start()

    assert failure_in(starting.last)[0] == "backend_start_timeout"
    assert facts_in(starting.last)["last_lines"] == ("loading",)
    assert facts_in(starting.last)["rolled_back"] is True


def test_memory_that_the_target_was_not_given_may_be_enough_for_what_was_stopped() -> None:
    story = Story()
    story.make_live(CHAT, need_bytes=8 * GIB)
    story.ask_for(EMBED)
    story.accept(need_bytes=16 * GIB)
    story.reap(1)
    story.answer_until_the_gate_decides(lambda: story.show(12 * GIB))
    assert story.phase is Phase.ROLLING_BACK

    assert story.start(used_bytes=12 * GIB) == 2
    code, message = failure_in(story.last)
    assert code == "memory_not_released"
    assert "12.0 GiB free, 16.0 GiB needed" in message
    assert facts_in(story.last) == {"rolled_back": True}
    assert story.snapshot.live_models() == ("chat",)


def test_rollback_starts_nothing_before_its_own_three_readings(rolling_back: Story) -> None:
    for _ in range(2):
        assert rolling_back.show(0) == ()
        assert rolling_back.wake() == ASKS_GPU0
    assert rolling_back.snapshot.backends == ()
    assert rolling_back.show(0) == (StartBackend(epoch=3, target=CHAT),)


def test_profile_that_fails_is_replaced_by_the_one_before() -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(CHAT_LONG)
    story.accept()
    story.reap(1)
    story.confirm()
    story.reap(2, exit_code=1)

    assert story.confirm() == (StartBackend(epoch=3, target=CHAT),)


def test_backend_that_crashed_while_it_drained_is_brought_back_too() -> None:
    story = Story()
    story.make_live(CHAT)
    story.arrive("r1")
    story.ask_for(EMBED)
    story.accept()
    story.crash(1)
    story.confirm()
    story.reap(2, exit_code=1)

    assert story.confirm() == (StartBackend(epoch=3, target=CHAT),)


def test_failure_with_nothing_stopped_rolls_nothing_back() -> None:
    story = Story()
    story.ask_for(CHAT)
    story.accept()
    story.confirm()
    died = story.reap(1, exit_code=1)

    assert failure_in(died)[0] == "backend_died"
    assert "rolled_back" not in facts_in(died)
    assert story.snapshot.recoveries == ()


def test_unload_that_fails_brings_nothing_back() -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(None)
    story.reap(1)
    held = story.answer_until_the_gate_decides(lambda: story.show(8 * GIB))

    assert failure_in(held)[0] == "memory_not_released"
    assert (story.phase, story.snapshot.recoveries) == (None, ())


def test_waiters_of_what_was_stopped_are_served_and_those_of_the_target_refused(
    rolling_back: Story,
) -> None:
    for request_id, model in (("r1", "embed"), ("r2", "chat"), ("r3", None)):
        assert rolling_back.arrive(request_id, model) == ()
    rolling_back.start()

    assert granted_in(rolling_back.last) == [("r2", 3), ("r3", 3)]
    (refused,) = [c for c in rolling_back.last if isinstance(c, RefuseRequest)]
    assert (refused.request_id, refused.refusal.code) == ("r1", "switch_failed")
    assert "'embed' ended (exit code 1)" in refused.refusal.message


@pytest.fixture
def two_stopped() -> Story:
    """`chat` and `embed` shared the device and gave way to `rerank`, which died as epoch 3."""
    story = Story(SHARED)
    story.make_live(CHAT)
    story.make_live(EMBED, used_bytes=8 * GIB)
    story.ask_for(RERANK)
    story.accept(need_bytes=20 * GIB)
    story.reap(1)
    story.reap(2)
    story.confirm()
    story.reap(3, exit_code=1)
    return story


def test_several_that_were_stopped_are_brought_back_one_after_the_other(two_stopped: Story) -> None:
    assert two_stopped.start() == 4
    assert two_stopped.last == (SampleMemory(switch_id="s3", device="gpu0"),)
    assert (two_stopped.phase, two_stopped.snapshot.live_models()) == (
        Phase.ROLLING_BACK,
        ("chat",),
    )
    assert two_stopped.start(used_bytes=8 * GIB) == 5

    assert failure_in(two_stopped.last)[0] == "backend_died"
    assert facts_in(two_stopped.last)["rolled_back"] is True
    assert two_stopped.snapshot.live_models() == ("embed", "chat")


def test_first_that_is_back_serves_while_the_next_one_starts(two_stopped: Story) -> None:
    two_stopped.start()

    assert two_stopped.arrive("r1", "chat") == (GrantLease(request_id="r1", epoch=4),)
    assert two_stopped.arrive("r2", "embed") == ()


def test_second_that_is_back_remembers_the_use_that_the_first_one_makes(two_stopped: Story) -> None:
    two_stopped.start()
    two_stopped.start(used_bytes=8 * GIB)

    baselines = {b.target.model: used_before(b) for b in two_stopped.snapshot.backends}
    assert baselines == {"chat": 0, "embed": 8 * GIB}


def test_second_is_not_started_where_others_have_taken_what_it_had() -> None:
    """Use is back at what it was before the first one, and the second one never ran beside that."""
    story = Story(SHARED)
    story.make_live(CHAT, need_bytes=4 * GIB, used_bytes=12 * GIB)  # others hold 12 GiB, and leave
    story.make_live(EMBED, need_bytes=12 * GIB, used_bytes=4 * GIB)
    story.ask_for(RERANK)
    story.accept(need_bytes=20 * GIB, used_bytes=16 * GIB)
    story.reap(1)
    story.reap(2)
    story.answer_until_the_gate_decides(lambda: story.show(12 * GIB))  # they are back
    story.start(used_bytes=12 * GIB)

    failed = story.answer_until_the_gate_decides(lambda: story.show(16 * GIB))
    assert facts_in(failed)["rolled_back"] is False
    assert "8.0 GiB free, 12.0 GiB needed" in failure_in(failed)[1]
    assert story.snapshot.live_models() == ("chat",)


def test_what_is_back_already_stays_when_the_next_one_fails(two_stopped: Story) -> None:
    two_stopped.start()
    two_stopped.confirm(used_bytes=8 * GIB)
    failed = two_stopped.reap(5, exit_code=2)

    assert facts_in(failed)["rolled_back"] is False
    assert two_stopped.snapshot.live_models() == ("chat",)
    assert [r.target for r in two_stopped.snapshot.recoveries] == [EMBED]


def test_first_that_cannot_be_brought_back_leaves_both_to_be_retried(two_stopped: Story) -> None:
    two_stopped.confirm()
    two_stopped.reap(4, exit_code=2)

    assert two_stopped.attempts() == [("chat", 1), ("embed", 1)]


def test_what_crashes_again_while_the_next_one_is_brought_back_is_restarted(
    two_stopped: Story,
) -> None:
    two_stopped.start()
    assert two_stopped.crash(4) == ()
    assert two_stopped.attempts() == [("chat", 1)]
    two_stopped.start()

    assert facts_in(two_stopped.last)["rolled_back"] is True
    assert [r.target for r in two_stopped.snapshot.recoveries] == [CHAT]


@pytest.fixture
def failed(rolling_back: Story) -> Story:
    """Neither `embed` nor, after it, `chat` could be started."""
    rolling_back.arrive("r1", "chat")
    rolling_back.confirm()
    rolling_back.last = rolling_back.reap(3, exit_code=2, last_lines=("also not",))
    return rolling_back


def test_rollback_that_fails_reports_both_reasons_and_the_first_exit(failed: Story) -> None:
    code, message = failure_in(failed.last)

    assert code == "backend_died"
    assert message == (
        "the server of 'embed' ended (exit code 1) before it was ready; and the rollback failed: "
        "the server of 'chat' ended (exit code 2) before it was ready"
    )
    assert facts_in(failed.last) == {
        "exit_code": 1,
        "signal": None,
        "last_lines": ("cannot load",),
        "rolled_back": False,
    }
    assert refused_in(failed.last) == [("r1", "backend_down")]
    assert failed.attempts() == [("chat", 1)]


def test_requests_are_refused_with_the_reason_until_a_retry_succeeds(failed: Story) -> None:
    for request_id, model in (("r2", "chat"), ("r3", None)):
        (refused,) = failed.arrive(request_id, model)
        assert isinstance(refused, RefuseRequest)
        assert refused.refusal.code == "backend_down"
        assert "'chat' ended (exit code 2)" in refused.refusal.message

    failed.retry()
    failed.accept()
    failed.start()
    assert failed.arrive("r4", "chat") == (GrantLease(request_id="r4", epoch=4),)
    assert failed.snapshot.recoveries == ()


def test_retries_go_on_with_growing_attempts(failed: Story) -> None:
    for attempt in range(1, 12):
        failed.retry()
        failed.accept()
        failed.confirm()
        epoch = failed.snapshot.backends[0].epoch
        (finish,) = failed.reap(epoch, exit_code=1)
        assert isinstance(finish, FinishSwitch)
        assert failed.attempts() == [("chat", attempt + 1)]


def test_restart_tries_what_could_not_be_brought_back_at_once(failed: Story) -> None:
    failed.tell(RestartRequested, switch_id="manual")
    failed.accept()
    failed.start()

    assert report_in(failed.last).switch_id == "manual"
    assert failed.snapshot.live_models() == ("chat",)


def test_rollback_that_is_not_ready_in_time_is_reaped_and_retried(rolling_back: Story) -> None:
    rolling_back.confirm()

    assert next_wakeup(rolling_back.snapshot) == rolling_back.now + CHAT.patience.start_timeout_s
    assert rolling_back.wake() == (
        ReleaseMemory(epoch=3, how=Stop(grace_s=CHAT.patience.stop_grace_s)),
    )
    failed = rolling_back.reap(3, exit_code=None, signal=9)
    assert "'chat' was not ready 120 s after its start" in failure_in(failed)[1]
    assert rolling_back.snapshot.recovery("chat") is not None


def test_rollback_whose_memory_stays_held_ends_in_time_and_is_retried(stopped: Story) -> None:
    stopped.answer_until_the_gate_decides(lambda: stopped.show(TOTAL_BYTES))
    asked_at = stopped.now
    failed = stopped.answer_until_the_gate_decides(lambda: stopped.show(TOTAL_BYTES))

    assert stopped.now - asked_at == pytest.approx(CHAT.memory.release_timeout_s, abs=0.25)
    assert failure_in(failed)[0] == "memory_not_released"
    assert facts_in(failed) == {"rolled_back": False}
    assert stopped.snapshot.backends == ()
    assert stopped.attempts() == [("chat", 1)]


def test_shutdown_ends_a_rollback(rolling_back: Story) -> None:
    rolling_back.confirm()
    finish, stop = rolling_back.tell(ShutdownRequested, drain_timeout_s=30.0)

    assert failure_in((finish,))[0] == "shutting_down"
    assert stop == ReleaseMemory(epoch=3, how=Stop(grace_s=CHAT.patience.stop_grace_s))


def test_drain_that_is_refused_restarts_what_crashed_meanwhile() -> None:
    """Of two that drained, one crashed; the other serves on, so the switch is given up."""
    story = Story(SHARED)
    story.make_live(CHAT)
    story.make_live(EMBED)
    story.arrive("r1", "chat")
    story.arrive("r2", "embed")
    story.ask_for(RERANK, DrainPolicy.REFUSE)
    story.accept(need_bytes=20 * GIB)
    assert story.crash(1) == ()
    given_up = story.wake()

    assert failure_in(given_up)[0] == "drain_refused"
    assert story.attempts() == [("chat", 1)]
    assert story.snapshot.live_models() == ("embed",)
