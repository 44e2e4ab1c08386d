"""A pinned model stays, whoever wants its room; a hand unloads it by its name."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import ReleaseMemory
from supervisor.core.machine.events import RequestArrived, RulesChanged
from supervisor.core.machine.rules import Limits, ModelRules, SwitchRules
from supervisor.core.machine.values import BackendState, Outcome
from tests.core.machine.story import (
    CHAT,
    CHAT_LONG,
    EMBED,
    EXCLUSIVE,
    GIB,
    RERANK,
    SHARED,
    Story,
    facts_in,
    failure_in,
    refused_in,
    report_in,
)

PINNED = SwitchRules(warms=False, models={"embed": ModelRules(is_pinned=True)})


@pytest.fixture
def story() -> Story:
    """`embed` is pinned and live, and `chat` beside it, 8 of 24 GiB each."""
    made = Story(SHARED, rules=PINNED)
    made.make_live(EMBED)
    made.make_live(CHAT, used_bytes=8 * GIB)
    made.now += made.snapshot.rules.manual_hold_s
    return made


def test_switch_by_hand_that_needs_its_room_is_refused_with_its_name(story: Story) -> None:
    story.ask_for(RERANK)
    refused = story.accept(need_bytes=16 * GIB)
    code, message = failure_in(refused)
    assert code == "pinned_in_the_way"
    assert (
        "needs about 16.0 GiB of gpu0, where 'embed' stays (pinned) and leaves 15.8 GiB" in message
    )
    assert facts_in(refused)["pinned"] == ("embed",)
    assert story.snapshot.live_models() == ("chat", "embed")


def test_what_is_not_pinned_makes_room_beside_it(story: Story) -> None:
    story.ask_for(RERANK)
    (stop,) = story.accept(need_bytes=15 * GIB)
    assert isinstance(stop, ReleaseMemory)
    assert stop.epoch == story.snapshot.backends[1].epoch


def test_nobody_else_has_an_exclusive_device_while_it_is_live() -> None:
    story = Story(EXCLUSIVE, rules=PINNED)
    story.make_live(EMBED)
    story.ask_for(CHAT)
    code, message = failure_in(story.accept(need_bytes=GIB))
    assert code == "pinned_in_the_way"
    assert "leaves 0 B" in message


def test_what_would_not_fit_without_it_either_is_refused_for_that(story: Story) -> None:
    story.ask_for(RERANK)
    assert failure_in(story.accept(need_bytes=25 * GIB))[0] == "target_does_not_fit"


def test_request_that_would_need_its_room_is_told_so_and_stops_nobody(story: Story) -> None:
    story.tell(RequestArrived, request_id="r1", target=RERANK, may_switch=True)
    commands = story.accept(need_bytes=16 * GIB)
    assert refused_in(commands) == [("r1", "switch_failed")]
    again = story.tell(RequestArrived, request_id="r2", target=RERANK, may_switch=True)
    assert refused_in(again) == [("r2", "switch_failed")]
    assert story.snapshot.live_models() == ("chat", "embed")


def test_request_that_was_refused_for_it_is_served_once_it_was_unloaded(story: Story) -> None:
    story.tell(RequestArrived, request_id="r1", target=RERANK, may_switch=True)
    story.accept(need_bytes=16 * GIB)
    story.unload("embed")
    story.reap(story.snapshot.backends[0].epoch)
    story.confirm(8 * GIB)
    story.now += story.snapshot.rules.manual_hold_s
    story.tell(RequestArrived, request_id="r2", target=RERANK, may_switch=True)
    assert story.snapshot.switch is not None
    assert story.snapshot.switch.target == RERANK


def test_hand_unloads_it_by_its_name_and_the_others_stay(story: Story) -> None:
    (stop,) = story.unload("embed")
    assert isinstance(stop, ReleaseMemory)
    story.reap(stop.epoch)
    story.confirm(8 * GIB)
    assert story.snapshot.live_models() == ("chat",)


def test_unload_of_all_leaves_it_live_and_says_so(story: Story) -> None:
    (stop,) = story.unload(None)
    assert isinstance(stop, ReleaseMemory)
    story.reap(stop.epoch)
    report = report_in(story.confirm(8 * GIB))
    assert report.reason == "'embed' stays: what is pinned is unloaded by its name only"
    assert story.snapshot.live_models() == ("embed",)
    again = report_in(story.unload(None))
    assert again.outcome is Outcome.UNCHANGED


def test_unload_of_a_model_that_is_not_live_changes_nothing(story: Story) -> None:
    assert report_in(story.unload("rerank")).outcome is Outcome.UNCHANGED


def test_it_gives_way_to_itself_with_another_profile() -> None:
    rules = SwitchRules(warms=False, models={"chat": ModelRules(is_pinned=True)})
    story = Story(EXCLUSIVE, rules=rules)
    story.make_live(CHAT)
    story.ask_for(CHAT_LONG)
    (stop,) = story.accept()
    assert isinstance(stop, ReleaseMemory)


def test_it_comes_back_after_its_death_though_others_took_its_place() -> None:
    story = Story(replace(SHARED, budget_bytes=10 * GIB), rules=PINNED)
    epoch = story.make_live(EMBED)
    story.crash(epoch)
    story.make_live(CHAT)
    story.retry("embed")
    (stop,) = story.accept()
    assert isinstance(stop, ReleaseMemory)
    story.reap(stop.epoch)
    story.start()
    assert story.snapshot.live_models() == ("embed",)


def test_pin_that_is_taken_away_counts_at_once(story: Story) -> None:
    story.tell(RulesChanged, limits=Limits(), rules=SwitchRules(warms=False))
    story.ask_for(RERANK)
    story.accept(need_bytes=20 * GIB)
    assert {b.state for b in story.snapshot.backends} == {BackendState.STOPPING}
