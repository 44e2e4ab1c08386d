"""What the end of the drain deadline does to requests that are still in flight."""

import pytest

from supervisor.core.machine.commands import GrantLease, ReleaseMemory
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.values import Outcome, Phase, Stop, Target
from tests.core.machine.story import (
    CHAT,
    EMBED,
    GIB,
    RERANK,
    SHARED,
    Story,
    facts_in,
    failure_in,
    granted_in,
    refused_in,
    report_in,
)

STOP_CHAT = ReleaseMemory(epoch=1, how=Stop(grace_s=CHAT.patience.stop_grace_s, keeps_prompts=True))


def drain(policy: DrainPolicy, target: Target | None = EMBED) -> Story:
    """`chat` serves r1 and r2, and shall leave."""
    story = Story()
    story.make_live(CHAT)
    story.arrive("r1")
    story.arrive("r2")
    story.ask_for(target, policy)
    if target is not None:
        story.accept()
    return story


@pytest.mark.parametrize("policy", DrainPolicy)
def test_before_the_deadline_every_policy_waits_and_stops_after_the_last_request(
    policy: DrainPolicy,
) -> None:
    story = drain(policy)

    assert next_wakeup(story.snapshot) == story.now + CHAT.patience.drain_timeout_s
    assert story.end("r1") == ()
    assert story.end("r2") == (STOP_CHAT,)


@pytest.mark.parametrize("policy", DrainPolicy)
def test_idle_backend_is_stopped_at_once_whatever_the_policy(policy: DrainPolicy) -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED, policy)

    assert story.accept() == (STOP_CHAT,)


def test_cancel_stops_what_still_serves() -> None:
    assert drain(DrainPolicy.CANCEL).wake() == (STOP_CHAT,)


def test_wait_goes_on_without_a_deadline() -> None:
    story = drain(DrainPolicy.WAIT)

    assert story.wake() == ()
    assert (story.phase, next_wakeup(story.snapshot)) == (Phase.DRAINING, None)
    story.now += 24 * 3600
    assert story.end("r1") == ()
    assert story.end("r2") == (STOP_CHAT,)


def test_wait_ends_when_the_backend_dies() -> None:
    story = drain(DrainPolicy.WAIT)
    story.wake()
    story.crash(1)

    assert story.phase is Phase.CONFIRMING


def test_refuse_gives_the_switch_up_with_the_count_of_requests_in_flight() -> None:
    story = drain(DrainPolicy.REFUSE)
    given_up = story.wake()

    code, message = failure_in(given_up)
    assert code == "drain_refused"
    assert message.startswith("2 requests were still in flight when the drain deadline passed")
    assert facts_in(given_up) == {"in_flight": 2}
    assert (story.phase, story.snapshot.backends[0].in_flight) == (None, 2)


def test_refuse_lets_what_should_have_left_serve_on() -> None:
    story = drain(DrainPolicy.REFUSE)
    assert story.arrive("r3", "chat") == ()
    assert story.arrive("r4", "embed") == ()
    given_up = story.wake()

    assert granted_in(given_up) == [("r3", 1)]
    assert refused_in(given_up) == [("r4", "switch_failed")]
    assert story.arrive("r5") == (GrantLease(request_id="r5", epoch=1),)


def test_switch_that_was_given_up_can_be_asked_for_again() -> None:
    story = drain(DrainPolicy.REFUSE)
    story.wake()
    story.end("r1")
    story.end("r2")
    story.ask_for(EMBED, DrainPolicy.REFUSE)

    assert story.accept() == (STOP_CHAT,)
    story.reap(1)
    story.start()
    assert report_in(story.last).outcome is Outcome.SWITCHED


def test_refuse_counts_only_those_that_shall_leave() -> None:
    story = Story(SHARED)
    story.make_live(CHAT)
    story.make_live(EMBED)
    story.arrive("r1", "chat")
    story.arrive("r2", "embed")
    story.ask_for(RERANK, DrainPolicy.REFUSE)
    story.accept(need_bytes=15 * GIB)

    assert facts_in(story.wake()) == {"in_flight": 1}


def test_unload_obeys_the_policy_too() -> None:
    story = drain(DrainPolicy.REFUSE, target=None)

    assert failure_in(story.wake())[0] == "drain_refused"
    assert story.snapshot.live_models() == ("chat",)
