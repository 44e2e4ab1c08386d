"""Servers in which nothing moves: reported, and replaced where the operator wants it."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import ReleaseMemory
from supervisor.core.machine.events import BackendMoved, BackendStalled, RequestArrived
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.values import BackendState, Patience, Stop
from tests.core.machine.story import CHAT, EMBED, Story, failure_in, granted_in, refused_in

PATIENT = replace(CHAT, patience=Patience(restart_on_stall=False))
IMPATIENT = replace(CHAT, patience=Patience(restart_on_stall=True))


@pytest.fixture
def story() -> Story:
    """Chat is live, and is to be replaced when it stalls; a request is in flight."""
    made = Story()
    made.make_live(IMPATIENT)
    made.arrive("r1")
    return made


def stall(story: Story, epoch: int = 1) -> tuple[object, ...]:
    return story.tell(BackendStalled, epoch=epoch, stalled_s=60.0)


def test_stall_is_told_until_something_moves_again() -> None:
    story = Story()
    story.make_live(PATIENT)
    assert stall(story) == ()
    assert story.snapshot.backends[0].stalled_s == 60.0
    assert granted_in(story.arrive("r2")) == [("r2", 1)]
    story.tell(BackendMoved, epoch=1)
    assert story.snapshot.backends[0].stalled_s is None


def test_stalled_server_is_stopped_as_one_that_will_be_followed(story: Story) -> None:
    stop = ReleaseMemory(epoch=1, how=Stop(grace_s=CHAT.patience.stop_grace_s, is_replaced=True))
    assert stall(story) == (stop,)


def test_requests_wait_for_the_successor(story: Story) -> None:
    stall(story)
    story.end("r1")
    assert story.arrive("r1 again") == ()
    assert story.attempts() == []
    story.reap(1, exit_code=None, signal=9)
    assert story.attempts() == [("chat", 1)]
    assert story.recover() == 2
    assert granted_in(story.last) == [("r1 again", 2)]


def test_stalls_count_as_deaths(story: Story) -> None:
    for epoch in range(1, 5):
        stall(story, epoch)
        story.crash(epoch)
        story.recover()
    stall(story, 5)
    story.crash(5)
    (recovery,) = story.snapshot.recoveries
    assert recovery.is_open
    assert "nothing had moved in it for 60 s" in recovery.reason
    assert refused_in(story.arrive("late")) == [("late", "backend_down")]


def test_stalled_server_that_leaves_for_a_switch_just_leaves(story: Story) -> None:
    story.ask_for(EMBED)
    story.accept()
    assert stall(story) == ()
    assert story.snapshot.backends[0].state is BackendState.DRAINING
    story.wake()
    story.reap(1)
    story.start()
    assert story.snapshot.live_models() == ("embed",)
    assert story.snapshot.recoveries == ()


def test_switch_that_finds_a_stalled_server_stopping_waits_for_its_end(story: Story) -> None:
    stall(story)
    story.ask_for(EMBED)
    story.accept()
    story.end("r1")
    story.crash(1)
    story.start()
    assert story.snapshot.live_models() == ("embed",)


def test_stalled_server_comes_back_when_the_switch_that_met_it_fails(story: Story) -> None:
    stall(story)
    story.ask_for(EMBED)
    story.accept()
    story.end("r1")
    story.crash(1)
    story.confirm()
    failure_in(story.reap(2, exit_code=1))
    assert story.recover() == 3


def drains_for_the_scheduler(story: Story) -> None:
    """The scheduler takes chat away, whose request does not end, until its time is over."""
    story.now += 100.0
    story.tell(RequestArrived, request_id="e1", target=EMBED, may_switch=True)
    while story.snapshot.switch is None:
        story.wake()
    story.accept()


def test_hung_server_does_not_hold_a_drain_that_nothing_bounds(story: Story) -> None:
    drains_for_the_scheduler(story)
    assert stall(story) == ()
    (stop,) = story.wake()
    assert isinstance(stop, ReleaseMemory)
    story.reap(1)
    story.start()
    assert granted_in(story.last) == [("e1", 2)]


def test_server_that_hangs_later_in_such_a_drain_is_stopped_at_once(story: Story) -> None:
    drains_for_the_scheduler(story)
    assert story.wake() == ()
    (stop,) = stall(story)
    assert isinstance(stop, ReleaseMemory)


def test_hung_server_that_is_to_stay_after_all_is_replaced(story: Story) -> None:
    story.ask_for(EMBED, DrainPolicy.REFUSE)
    story.accept()
    stall(story)
    commands = story.wake()
    assert failure_in(commands)[0] == "drain_refused"
    assert any(isinstance(c, ReleaseMemory) and c.epoch == 1 for c in commands)
    story.reap(1)
    assert story.recover() == 2
