"""The target's file is read ahead while its predecessor drains, and no longer than that."""

import pytest

from supervisor.core.machine.commands import StartBackend, StopWarming, WarmFile
from supervisor.core.machine.events import TargetAccepted, TargetRejected, WarmingBegun
from supervisor.core.machine.rules import SwitchRules
from supervisor.core.machine.values import Phase, TargetNeed
from tests.core.machine.story import CHAT, EMBED, GIB, TOTAL_BYTES, Story
from tests.core.machine.surroundings import taking


@pytest.fixture
def story() -> Story:
    """Chat is live with a request in flight; a switch to embed is checked and accepted."""
    made = Story(rules=SwitchRules(warms=True))
    made.make_live(CHAT)
    made.arrive("stream")
    made.ask_for(EMBED)
    return made


def accept(story: Story) -> tuple[object, ...]:
    need = TargetNeed(footprint=taking(GIB))
    return story.tell(TargetAccepted, switch_id=story.running, need=need, readings=())


def test_reading_begins_before_anything_drains(story: Story) -> None:
    assert accept(story) == (WarmFile(switch_id="s2", target=EMBED),)
    assert story.phase is Phase.WARMING
    assert story.snapshot.live_models() == ("chat",)

    assert story.tell(WarmingBegun, switch_id="s2") == ()
    assert str(story.phase) == "draining"


def test_reading_stops_when_the_server_itself_reads(story: Story) -> None:
    accept(story)
    story.tell(WarmingBegun, switch_id="s2")
    story.end("stream")
    story.reap(1)
    stop, start = story.confirm()
    assert stop == StopWarming(switch_id="s2")
    assert isinstance(start, StartBackend)


def test_reading_stops_when_the_switch_ends_before_the_start(story: Story) -> None:
    accept(story)
    story.tell(WarmingBegun, switch_id="s2")
    story.end("stream")
    story.reap(1)
    story.answer_until_the_gate_decides(lambda: story.show(TOTAL_BYTES))
    assert story.phase is Phase.ROLLING_BACK
    commands = story.answer_until_the_gate_decides(lambda: story.show(TOTAL_BYTES))
    assert StopWarming(switch_id="s2") in commands


def test_rejected_target_is_not_read(story: Story) -> None:
    commands = story.tell(TargetRejected, switch_id="s2", message="no such file")
    assert not any(isinstance(c, WarmFile | StopWarming) for c in commands)


def test_report_has_the_seconds_of_warming(story: Story) -> None:
    accept(story)
    story.now += 2.0
    story.tell(WarmingBegun, switch_id="s2")
    assert story.snapshot.switch is not None
    assert dict(story.snapshot.switch.phase_seconds)[Phase.WARMING] == 2.0


def test_operator_may_want_nothing_read() -> None:
    story = Story(rules=SwitchRules(warms=False))
    story.ask_for(CHAT)
    assert not any(isinstance(c, WarmFile) for c in accept(story))
    assert story.phase is Phase.CONFIRMING
