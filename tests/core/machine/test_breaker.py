"""A model that dies too often stays down until an operator asks for a restart."""

import pytest

from supervisor.core.machine.commands import CheckTarget, JoinSwitch, RefuseRequest, RefuseSwitch
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import RestartRequested, ShutdownRequested
from tests.core.machine.story import (
    CHAT,
    EMBED,
    GIB,
    RERANK,
    SHARED,
    Story,
    granted_in,
    refused_in,
    report_in,
)


def open_breaker(story: Story) -> None:
    """Let `chat` die until its breaker opens; it is brought back each time before that."""
    for attempt in range(1, 5):
        assert story.crash(story.epoch_of("chat")) == ()
        assert story.attempts() == [("chat", attempt)]
        story.recover()
        story.now += 20
    story.last = story.crash(story.epoch_of("chat"))


@pytest.fixture
def died() -> Story:
    """`chat` served alone as epoch 1, and died."""
    story = Story()
    story.make_live(CHAT)
    story.crash(1)
    return story


@pytest.fixture
def beside() -> Story:
    """`chat` (epoch 1) and `embed` (2) share a device."""
    story = Story(SHARED)
    story.make_live(CHAT)
    story.make_live(EMBED)
    return story


@pytest.fixture
def broken() -> Story:
    """`chat` died five times within 80 s, and stays down."""
    story = Story()
    story.make_live(CHAT)
    open_breaker(story)
    return story


def test_fifth_death_in_two_minutes_opens_the_breaker(broken: Story) -> None:
    assert broken.last == ()
    (refused,) = broken.arrive("r1")
    assert isinstance(refused, RefuseRequest)
    assert refused.refusal.code == "backend_down"
    assert "died while serving (signal 9), 5 times in 120 s" in refused.refusal.message
    assert "POST /backend/restart" in refused.refusal.message
    assert "retry_after_s" not in dict(refused.refusal.details)  # waiting alone does not help


def test_open_breaker_has_no_attempt_to_come(broken: Story) -> None:
    assert broken.attempts() == []
    assert next_wakeup(broken.snapshot) is None


@pytest.mark.parametrize(("pause_s", "is_open"), [(29.9, True), (30.1, False)])
def test_breaker_counts_the_deaths_of_the_last_two_minutes_only(
    pause_s: float, *, is_open: bool
) -> None:
    story = Story()
    story.make_live(CHAT)
    for number in range(1, 6):
        died_at = story.now
        story.crash(number)
        recovery = story.snapshot.recovery("chat")
        assert recovery is not None
        assert recovery.is_open is (is_open and number == 5)
        if not recovery.is_open:
            story.recover()
        story.now = died_at + pause_s


def test_breaker_that_opens_while_a_switch_runs_refuses_its_requests_at_the_end(
    beside: Story,
) -> None:
    for _ in range(4):
        beside.crash(beside.epoch_of("chat"))
        beside.recover()
    beside.ask_for(RERANK)
    beside.accept(need_bytes=GIB)
    assert beside.crash(beside.epoch_of("chat")) == ()
    assert beside.arrive("r1", "chat") == ()
    beside.start()
    assert refused_in(beside.last) == [("r1", "backend_down")]
    assert beside.snapshot.live_models() == ("rerank", "embed")


def test_breakers_of_two_models_count_apart(beside: Story) -> None:
    open_breaker(beside)

    beside.crash(beside.epoch_of("embed"))
    assert beside.attempts() == [("embed", 1)]


def test_manual_switch_to_what_is_broken_brings_it_back(broken: Story) -> None:
    broken.ask_for(CHAT)
    assert broken.arrive("r1") == ()
    broken.accept()
    broken.start()

    assert broken.snapshot.recoveries == ()
    assert granted_in(broken.last) == [("r1", 6)]


def test_restart_closes_the_breaker_and_forgets_the_deaths(broken: Story) -> None:
    assert broken.tell(RestartRequested, switch_id="manual") == (
        CheckTarget(switch_id="manual", target=CHAT),
    )
    assert broken.arrive("r1") == ()
    broken.accept()
    broken.start()
    assert report_in(broken.last).switch_id == "manual"
    assert granted_in(broken.last) == [("r1", 6)]

    broken.crash(6)
    assert broken.attempts() == [("chat", 1)]


def test_restart_that_fails_is_retried_from_the_first_pause_on(broken: Story) -> None:
    broken.tell(RestartRequested, switch_id="manual")
    broken.accept()
    broken.confirm()

    broken.reap(6, exit_code=1)
    assert broken.attempts() == [("chat", 2)]


def test_restart_of_two_begins_with_one_and_schedules_the_other(beside: Story) -> None:
    open_breaker(beside)
    beside.crash(2)
    commands = beside.tell(RestartRequested, switch_id="manual")

    assert commands == (CheckTarget(switch_id="manual", target=CHAT),)
    assert ("embed", 1) in beside.attempts()
    assert beside.arrive("r1", "embed") == ()
    beside.accept()
    beside.start()
    beside.recover("embed")
    assert beside.snapshot.live_models() == ("embed", "chat")


def test_restart_is_refused_while_nothing_is_down(beside: Story) -> None:
    (refused,) = beside.tell(RestartRequested, switch_id="manual")

    assert isinstance(refused, RefuseSwitch)
    assert (refused.switch_id, refused.refusal.code) == ("manual", "nothing_is_down")


def test_restart_is_refused_while_a_switch_runs(died: Story) -> None:
    died.ask_for(EMBED)
    (refused,) = died.tell(RestartRequested, switch_id="manual")

    assert isinstance(refused, RefuseSwitch)
    assert refused.refusal.code == "switch_in_progress"


def test_restart_is_refused_after_the_shutdown(died: Story) -> None:
    died.tell(ShutdownRequested, drain_timeout_s=30.0)
    (refused,) = died.tell(RestartRequested, switch_id="manual")

    assert isinstance(refused, RefuseSwitch)
    assert refused.refusal.code == "shutting_down"


def test_restart_behind_the_recovery_of_another_brings_back_what_is_broken_too(
    beside: Story,
) -> None:
    open_breaker(beside)
    beside.crash(beside.epoch_of("embed"))
    beside.retry("embed")
    beside.tell(RestartRequested, switch_id="manual")
    beside.accept()
    beside.start()
    beside.recover("chat")
    assert set(beside.snapshot.live_models()) == {"chat", "embed"}


def test_restart_of_what_comes_back_anyway_is_a_hands_from_there_on(died: Story) -> None:
    """Another hand's wish does not come behind it unasked, as behind the controller's own."""
    died.retry("chat")
    (joined,) = died.tell(RestartRequested, switch_id="manual")
    assert isinstance(joined, JoinSwitch)

    (refused,) = died.ask_for(EMBED)

    assert isinstance(refused, RefuseSwitch)
    assert refused.refusal.code == "switch_in_progress"
