"""A backend that dies while it serves is restarted, unless its place is taken by then."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import (
    CheckTarget,
    CompleteShutdown,
    FinishSwitch,
    GrantLease,
    JoinSwitch,
    RefuseRequest,
    SampleMemory,
    StartBackend,
)
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import (
    ShutdownRequested,
    TargetAccepted,
    TargetRejected,
    TimePassed,
)
from supervisor.core.machine.memory import Holder, HolderRole
from supervisor.core.machine.rules import DrainPolicy, Limits
from supervisor.core.machine.values import Outcome, Phase, TargetNeed
from tests.core.machine.story import (
    CHAT,
    CHAT_LONG,
    EMBED,
    EMBED_1,
    EXCLUSIVE,
    GIB,
    RERANK,
    SHARED,
    Story,
    failure_in,
    granted_in,
    refused_in,
    report_in,
)
from tests.core.machine.surroundings import taking

HOLD_TIMEOUT_S = Limits().hold_timeout_s


@pytest.fixture
def died() -> Story:
    """`chat` served alone as epoch 1, and died."""
    story = Story()
    story.make_live(CHAT)
    assert story.crash(1) == ()
    assert story.attempts() == [("chat", 1)]
    return story


@pytest.fixture
def beside() -> Story:
    """`chat` (epoch 1) and `embed` (2) share a device."""
    story = Story(SHARED)
    story.make_live(CHAT)
    story.make_live(EMBED)
    return story


def test_restart_checks_confirms_and_starts_like_any_switch(died: Story) -> None:
    (check,) = died.retry()
    assert isinstance(check, CheckTarget)
    assert check.target == CHAT
    assert died.accept() == (SampleMemory(switch_id=check.switch_id, device="gpu0"),)
    assert died.confirm() == (StartBackend(epoch=2, target=CHAT),)


def test_restart_is_reported_as_a_switch_that_the_recovery_asked_for(died: Story) -> None:
    died.recover()

    report = report_in(died.last)
    assert (report.outcome, report.requested_by) == (Outcome.SWITCHED, "recovery")
    assert (report.model, report.epoch) == ("chat", 2)
    assert died.snapshot.recoveries == ()


def test_requests_for_what_died_are_held_and_served_after_the_restart(died: Story) -> None:
    assert died.arrive("r1", "chat") == ()
    assert died.arrive("r2", None) == ()
    died.retry()
    assert died.arrive("r3", "chat") == ()
    died.accept()
    died.start()

    assert granted_in(died.last) == [("r1", 2), ("r2", 2), ("r3", 2)]


def test_requests_for_other_models_are_not_held_for_a_restart(died: Story) -> None:
    (refused,) = died.arrive("r1", "embed")

    assert isinstance(refused, RefuseRequest)
    assert refused.refusal.code == "backend_down"
    assert "retry_after_s" in dict(refused.refusal.details)  # it comes back by itself


def test_death_says_how_the_process_ended(died: Story) -> None:
    last_exit = died.snapshot.endings.exit
    assert last_exit is not None
    assert (last_exit.signal, last_exit.was_wanted) == (9, False)
    recovery = died.snapshot.recovery("chat")
    assert recovery is not None
    assert recovery.reason == "the server of 'chat' died while serving (signal 9)"


def test_backend_that_stays_serves_while_the_other_one_is_restarted(beside: Story) -> None:
    beside.crash(1)
    assert beside.arrive("r1", "embed") == (GrantLease(request_id="r1", epoch=2),)
    assert beside.arrive("r2", "chat") == ()
    assert beside.recover() == 3

    assert granted_in(beside.last) == [("r2", 3)]
    assert beside.snapshot.live_models() == ("chat", "embed")


def test_waiters_for_what_died_wait_on_when_another_switch_ends(beside: Story) -> None:
    beside.ask_for(RERANK)
    beside.accept(need_bytes=GIB)
    beside.crash(1)
    beside.arrive("r1", "chat")
    beside.arrive("r2", "rerank")
    beside.arrive("r3", "chat")
    beside.start()

    assert granted_in(beside.last) == [("r2", 3)]
    assert refused_in(beside.last) == []
    assert next_wakeup(beside.snapshot) == beside.retry_at()
    beside.end("r1")
    beside.recover()
    assert granted_in(beside.last) == [("r3", 4)]


def test_waiters_for_what_died_wait_on_when_another_switch_fails(beside: Story) -> None:
    beside.ask_for(RERANK)
    beside.crash(1)
    beside.arrive("r1", "chat")
    beside.arrive("r2", "rerank")
    failed = beside.tell(TargetRejected, switch_id="s3", message="no such file")

    assert refused_in(failed) == [("r2", "switch_failed")]
    beside.recover()
    assert granted_in(beside.last) == [("r1", 3)]


def test_waiter_for_a_restart_is_refused_when_the_hold_time_is_over(died: Story) -> None:
    died.arrive("r1")
    died.now += HOLD_TIMEOUT_S
    assert refused_in(died.tell(TimePassed)) == [("r1", "hold_timeout")]


def test_restart_that_fails_is_tried_again_and_its_waiters_are_refused(died: Story) -> None:
    died.arrive("r1")
    died.retry()
    died.accept()
    died.confirm()
    failed = died.reap(2, exit_code=1)

    assert died.attempts() == [("chat", 2)]
    assert failure_in(failed)[0] == "backend_died"
    assert refused_in(failed) == [("r1", "switch_failed")]
    (refused,) = died.arrive("r2")
    assert isinstance(refused, RefuseRequest)
    assert refused.refusal.code == "backend_down"
    assert "exit code 1" in refused.refusal.message


def test_restart_whose_target_is_rejected_is_tried_again(died: Story) -> None:
    (check,) = died.retry()
    assert isinstance(check, CheckTarget)
    rejected = died.tell(TargetRejected, switch_id=check.switch_id, message="file is gone")

    assert failure_in(rejected)[0] == "target_cannot_start"
    assert died.attempts() == [("chat", 2)]
    assert died.recover() == 2


def test_caller_who_wants_what_is_being_restarted_joins(died: Story) -> None:
    (check,) = died.retry()
    assert isinstance(check, CheckTarget)

    assert died.ask_for(CHAT) == (JoinSwitch(switch_id="s2", running_id=check.switch_id),)


def test_attempt_that_is_due_while_a_switch_runs_is_made_behind_it(died: Story) -> None:
    died.ask_for(EMBED)
    assert died.retry() == ()
    died.tell(TargetRejected, switch_id="s2", message="no such file")
    assert next_wakeup(died.snapshot) == died.retry_at()

    assert died.recover() == 2


def test_pauses_double_up_to_a_minute(died: Story) -> None:
    pauses_s = []
    for _ in range(11):
        retry_at = died.retry_at()
        assert retry_at is not None
        pauses_s.append(retry_at - died.now)
        (check,) = died.retry()
        assert isinstance(check, CheckTarget)
        died.tell(TargetRejected, switch_id=check.switch_id, message="file is gone")
    assert pauses_s == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60, 60])


def test_attempt_is_made_once(died: Story) -> None:
    died.retry()
    assert died.tell(TimePassed) == ()
    died.accept()
    died.start()

    assert died.attempts() == []


def test_switch_to_another_model_takes_the_place_on_an_exclusive_device(died: Story) -> None:
    died.arrive("r1", "chat")
    died.ask_for(EMBED)
    died.accept()
    died.start()

    assert died.snapshot.live_models() == ("embed",)
    assert refused_in(died.last) == [("r1", "model_not_live")]
    assert died.attempts() == []


def test_switch_on_another_device_takes_no_place() -> None:
    story = Story(EXCLUSIVE, replace(EXCLUSIVE, name="gpu1"))
    story.make_live(CHAT)
    story.crash(1)
    story.make_live(EMBED_1)

    story.recover()
    assert story.snapshot.live_models() == ("chat", "embed")


def test_recovery_stops_nobody_to_make_room(beside: Story) -> None:
    beside.crash(1)
    beside.ask_for(RERANK)
    beside.accept(need_bytes=15 * GIB)
    beside.start()
    beside.arrive("r1", "chat")
    beside.retry()
    gives_way = beside.accept()

    assert failure_in(gives_way) == (
        "place_is_taken",
        "'chat' is not brought back: 'embed' took its place",
    )
    assert refused_in(gives_way) == [("r1", "switch_failed")]
    assert beside.snapshot.live_models() == ("rerank", "embed")
    assert beside.snapshot.recoveries == ()
    assert refused_in(beside.arrive("r2", "chat")) == [("r2", "model_not_live")]


def test_other_profile_of_what_died_takes_its_place(died: Story) -> None:
    died.ask_for(CHAT_LONG)
    died.accept()
    died.start()

    assert died.attempts() == []
    assert died.snapshot.live_models() == ("chat",)


def test_failed_switch_leaves_the_recovery_as_it_was(died: Story) -> None:
    died.ask_for(EMBED)
    died.accept()
    died.confirm()
    died.reap(2, exit_code=1)

    assert died.recover() == 3


def test_unload_forgets_what_died(beside: Story) -> None:
    beside.crash(1)
    beside.arrive("r1", "chat")
    beside.ask_for(None)
    beside.reap(2)
    finished = beside.confirm()

    assert report_in(finished).outcome is Outcome.SWITCHED
    assert refused_in(finished) == [("r1", "no_model_loaded")]
    assert beside.attempts() == []


def test_unload_with_nothing_live_forgets_what_died(died: Story) -> None:
    died.arrive("r1")
    finished = died.ask_for(None)

    assert report_in(finished).outcome is Outcome.UNCHANGED
    assert refused_in(finished) == [("r1", "no_model_loaded")]
    assert died.attempts() == []


def test_unload_that_is_given_up_forgets_nothing(beside: Story) -> None:
    beside.crash(1)
    beside.arrive("r1", "embed")
    beside.ask_for(None, DrainPolicy.REFUSE)
    given_up = beside.wake()
    assert failure_in(given_up)[0] == "drain_refused"

    assert isinstance(given_up[-1], CheckTarget)  # its pause is over by now
    beside.accept()
    assert beside.start() == 3


def test_shutdown_refuses_those_who_wait_for_a_restart(died: Story) -> None:
    died.arrive("r1")
    commands = died.tell(ShutdownRequested, drain_timeout_s=30.0)

    assert refused_in(commands) == [("r1", "shutting_down")]
    assert commands[-1] == CompleteShutdown()
    assert died.attempts() == []


def test_shutdown_ends_a_restart_that_runs(died: Story) -> None:
    died.retry()
    died.accept()
    assert died.phase is Phase.CONFIRMING
    finish, complete = died.tell(ShutdownRequested, drain_timeout_s=30.0)

    assert isinstance(finish, FinishSwitch)
    assert finish.report.outcome is Outcome.FAILED
    assert complete == CompleteShutdown()


def test_what_dies_during_the_shutdown_is_not_restarted(beside: Story) -> None:
    beside.arrive("r1", "chat")
    beside.tell(ShutdownRequested, drain_timeout_s=30.0)

    assert beside.crash(1) == ()
    assert beside.crash(2) == (CompleteShutdown(),)


def test_recovery_goes_on_where_a_stranger_took_the_room_beside_a_neighbour_of_before() -> None:
    story = Story(SHARED)
    story.make_live(EMBED)
    chat = story.make_live(CHAT, 10 * GIB, used_bytes=8 * GIB)
    story.crash(chat)
    story.retry()
    stranger = Holder(pid=99, used_bytes=8 * GIB, role=HolderRole.FOREIGN, name="train.py")
    own = Holder(pid=1, used_bytes=8 * GIB, role=HolderRole.CHILD)
    given_up = story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=TargetNeed(footprint=taking(10 * GIB)),
        readings=(replace(story.reading(16 * GIB), holders=(own, stranger)),),
    )

    assert failure_in(given_up)[0] == "target_does_not_fit"
    assert story.attempts() == [("chat", 2)]
    story.retry()
    story.accept(10 * GIB, used_bytes=8 * GIB)
    story.start(8 * GIB)
    assert story.snapshot.live_models() == ("chat", "embed")
