"""So many requests use a model at once as its operator says; the rest wait in order."""

from typing import Any

import pytest

from supervisor.core.machine.commands import Command, RefuseRequest
from supervisor.core.machine.events import RequestArrived, RulesChanged, TimePassed
from supervisor.core.machine.rules import Limits, ModelRules, SwitchRules
from supervisor.core.scheduling.values import Priority
from tests.core.machine.story import CHAT, SHARED, Story, granted_in


def at_most(count: int) -> SwitchRules:
    return SwitchRules(warms=False, models={"chat": ModelRules(max_concurrency=count)})


@pytest.fixture
def story() -> Story:
    made = Story(SHARED, rules=at_most(2))
    made.make_live(CHAT)
    return made


def arrive(story: Story, request_id: str, **facts: Any) -> tuple[Command, ...]:
    asked = {"target": CHAT, "may_switch": True} | facts
    return story.tell(RequestArrived, request_id=request_id, **asked)


def test_rest_waits_though_nobody_else_wants_the_device_and_goes_in_order(story: Story) -> None:
    for name in ("r1", "r2"):
        assert granted_in(arrive(story, name)) == [(name, 1)]
    for name in ("r3", "r4"):
        assert arrive(story, name) == ()
    assert story.snapshot.requests.position_of("r4") == 2
    assert granted_in(story.end("r1")) == [("r3", 1)]
    assert granted_in(story.end("r3")) == [("r4", 1)]
    assert story.snapshot.backends[0].in_flight == 2


def test_request_that_may_not_wait_gets_no_lease_and_leaves_no_trace(story: Story) -> None:
    arrive(story, "r1")
    arrive(story, "r2")
    before = story.snapshot
    assert arrive(story, "r3", may_wait=False, may_switch=False) == ()
    assert story.snapshot == before


@pytest.mark.parametrize("target", [CHAT, None])
def test_question_that_causes_no_switch_counts_and_goes_before_others(
    story: Story, target: object
) -> None:
    arrive(story, "r1")
    arrive(story, "r2")
    arrive(story, "r3")
    assert arrive(story, "question", may_switch=False, target=target) == ()
    assert granted_in(story.end("r1")) == [("question", 1)]
    assert granted_in(story.end("question")) == [("r3", 1)]


def test_urgent_request_goes_before_batch_work(story: Story) -> None:
    arrive(story, "r1")
    arrive(story, "r2")
    arrive(story, "batch", priority=Priority.BATCH)
    arrive(story, "urgent")
    assert granted_in(story.end("r1")) == [("urgent", 1)]


def test_those_who_waited_for_the_switch_are_let_in_as_far_as_there_are_places() -> None:
    story = Story(SHARED, rules=at_most(2))
    for name in ("r1", "r2", "r3"):
        arrive(story, name)
    story.tell(RequestArrived, request_id="any", target=None)
    story.accept()
    story.start()
    assert [name for name, _ in granted_in(story.last)] == ["r1", "any"]
    assert granted_in(story.end("any")) == [("r2", 1)]


def test_more_places_let_those_in_who_wait(story: Story) -> None:
    for name in ("r1", "r2", "r3"):
        arrive(story, name)
    changed = story.tell(RulesChanged, limits=Limits(), rules=at_most(3))
    assert granted_in(changed) == [("r3", 1)]


def test_one_that_waits_in_vain_for_a_place_is_not_told_that_the_model_did_not_come(
    story: Story,
) -> None:
    for name in ("r1", "r2", "r3"):
        arrive(story, name)
    story.now += story.snapshot.limits.hold_timeout_s
    (refused,) = story.tell(TimePassed)
    assert isinstance(refused, RefuseRequest)
    assert refused.request_id == "r3"
    assert "no place at 'chat' came free (max_concurrency" in refused.refusal.message


def test_who_named_no_model_and_came_first_goes_first_once_one_is_live() -> None:
    """Also for the bound of its wait, which is looked for at the heads of lines."""
    story = Story(SHARED, rules=at_most(1))
    story.ask_for(CHAT)
    arrive(story, "nameless", target=None, may_switch=False)
    arrive(story, "named", may_switch=False)
    story.accept()
    story.start()

    assert granted_in(story.last) == [("nameless", 1)]
    assert granted_in(story.end("nameless")) == [("named", 1)]
