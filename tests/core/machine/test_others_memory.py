"""What others take of a device, or give back, while a model is live there is not taken for ours."""

import pytest

from supervisor.core.machine.values import Outcome
from tests.core.machine.story import CHAT, EMBED, GIB, SHARED, WatchedStory, failure_in, report_in


@pytest.fixture
def story() -> WatchedStory:
    """Chat was live alone; others took 2 GiB, and the gate is to open for embed in its place."""
    story = WatchedStory()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    story.accept()
    story.reap(1)
    story.others_bytes = 2 * GIB
    return story


def test_what_others_took_before_a_start_is_not_waited_for_behind_it(story: WatchedStory) -> None:
    story.start(used_bytes=2 * GIB)

    story.ask_for(None)
    story.reap(2)
    assert report_in(story.confirm(used_bytes=2 * GIB)).outcome is Outcome.SWITCHED


def test_what_others_took_does_not_hide_what_is_held_still(story: WatchedStory) -> None:
    """Embed starts beside 4 GiB that the driver has not given back yet."""
    story.start(used_bytes=6 * GIB)

    story.ask_for(None)
    story.reap(2)
    held = story.answer_until_the_gate_decides(lambda: story.show(6 * GIB))
    assert "6.0 GiB used, 2.0 GiB expected" in failure_in(held)[1]


def test_what_others_gave_back_does_not_hide_what_is_held_still() -> None:
    story = WatchedStory(SHARED)
    story.others_bytes = 6 * GIB
    story.make_live(CHAT, used_bytes=6 * GIB)
    story.ask_for(EMBED)
    story.others_bytes = 0
    story.accept(4 * GIB, used_bytes=14 * GIB)  # six are in use that nobody accounts for
    story.start(used_bytes=14 * GIB)

    story.unload("embed")
    story.reap(2)
    held = story.answer_until_the_gate_decides(lambda: story.show(14 * GIB))
    assert "14.0 GiB used, 8.0 GiB expected" in failure_in(held)[1]


def test_what_others_gave_back_may_be_more_than_was_in_use_without_ours() -> None:
    """The figures of a driver do not always add up."""
    story = WatchedStory()
    story.others_bytes = 2 * GIB
    story.make_live(CHAT, used_bytes=GIB)
    story.others_bytes = 0

    story.ask_for(None)
    story.reap(1)
    assert report_in(story.confirm(used_bytes=0)).outcome is Outcome.SWITCHED
