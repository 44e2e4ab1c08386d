"""Room that turns out too small once the target was to start: who stayed until then may leave."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import Command, ReleaseMemory, SampleMemory, StartBackend
from supervisor.core.machine.events import MemoryUnreadable, RulesChanged, SwitchRequested
from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.rules import DrainPolicy, Limits, ModelRules, SwitchRules
from supervisor.core.machine.switch import SCHEDULER
from supervisor.core.machine.values import Phase
from tests.core.machine.story import (
    CHAT,
    EMBED,
    GIB,
    RERANK,
    SHARED,
    Story,
    WatchedStory,
    failure_in,
)

CHAT_ID, EMBED_ID = 1, 2


@pytest.fixture
def story() -> Story:
    """A shared device of 24 GiB with chat and embed live on a third of it each."""
    made = Story(SHARED)
    made.make_live(CHAT)
    made.make_live(EMBED, used_bytes=8 * GIB)
    return made


def until_decided(story: Story, used_gib: int) -> tuple[Command, ...]:
    """Show the device that full until the gate gives up."""
    return story.answer_until_the_gate_decides(lambda: story.show(used_gib * GIB))


def stopped_in(commands: tuple[Command, ...]) -> list[int]:
    return [c.epoch for c in commands if isinstance(c, ReleaseMemory)]


def test_who_stays_leaves_when_another_tenant_has_come_meanwhile(story: Story) -> None:
    story.ask_for(RERANK)
    story.accept(6 * GIB, used_bytes=16 * GIB)
    assert story.phase is Phase.CONFIRMING

    assert stopped_in(until_decided(story, used_gib=22)) == [CHAT_ID]

    story.reap(CHAT_ID)
    story.start(used_bytes=14 * GIB)
    assert set(story.snapshot.live_models()) == {"embed", "rerank"}


def test_who_stays_leaves_when_what_was_known_was_old(story: Story) -> None:
    """Right after a death nobody knows what others hold: it was planned with the budget."""
    story.crash(CHAT_ID)
    story.ask_for(RERANK)
    story.accept(14 * GIB, used_bytes=16 * GIB)
    assert story.phase is Phase.CONFIRMING

    assert stopped_in(until_decided(story, used_gib=14)) == [EMBED_ID]


def both_leave(story: Story) -> tuple[Command, ...]:
    """Chat leaves, and embed holds more than it is accounted for."""
    story.ask_for(RERANK)
    story.accept(8 * GIB, used_bytes=23 * GIB)
    assert story.phase is Phase.STOPPING
    story.reap(CHAT_ID)
    assert stopped_in(until_decided(story, used_gib=18)) == [EMBED_ID]
    return story.reap(EMBED_ID)


def test_who_stays_leaves_when_it_holds_more_than_it_is_accounted_for(story: Story) -> None:
    both_leave(story)
    story.start()
    assert story.snapshot.live_models() == ("rerank",)


def test_all_who_have_left_come_back_when_the_target_fails(story: Story) -> None:
    both_leave(story)
    (start,) = story.confirm()
    assert isinstance(start, StartBackend)
    story.reap(start.epoch, exit_code=1)

    story.start()
    story.start(used_bytes=8 * GIB)

    code, _ = failure_in(story.last)
    assert code == "backend_died"
    assert set(story.snapshot.live_models()) == {"chat", "embed"}


def test_memory_of_the_first_that_is_still_held_is_not_taken_for_that_of_the_next(
    story: Story,
) -> None:
    """Once embed leaves too, the device is to be as empty as before both."""
    both_leave(story)
    assert story.snapshot.switch is not None
    (expected,) = story.snapshot.switch.gate.baselines
    assert expected.used_bytes == 0


def test_nobody_leaves_for_a_model_that_is_brought_back(story: Story) -> None:
    story.crash(CHAT_ID)
    story.retry()
    story.accept(used_bytes=8 * GIB)
    code, _ = failure_in(until_decided(story, used_gib=20))
    assert code == "memory_not_released"
    assert story.snapshot.live_models() == ("embed",)


def test_who_is_pinned_stays_all_the_same(story: Story) -> None:
    pinned = {model: ModelRules(is_pinned=True) for model in ("chat", "embed")}
    rules = SwitchRules(warms=False, models=pinned)
    story.tell(RulesChanged, limits=Limits(), rules=rules)
    story.ask_for(RERANK)
    story.accept(6 * GIB, used_bytes=16 * GIB)
    code, _ = failure_in(until_decided(story, used_gib=22))
    assert code == "memory_not_released"


@pytest.mark.parametrize(("others_gib", "who_leaves"), [(10, [CHAT_ID]), (14, [])])
def test_nobody_leaves_where_that_would_not_be_enough(
    others_gib: int, who_leaves: list[int]
) -> None:
    story = WatchedStory(SHARED)
    story.make_live(CHAT)
    story.ask_for(RERANK)
    story.accept(12 * GIB, used_bytes=8 * GIB)
    story.others_bytes = others_gib * GIB
    assert stopped_in(until_decided(story, used_gib=8 + others_gib)) == who_leaves


def unread(story: Story) -> tuple[Command, ...]:
    return story.tell(MemoryUnreadable, switch_id=story.running, reason="driver")


def test_nobody_leaves_for_a_device_that_cannot_be_read(story: Story) -> None:
    story.ask_for(RERANK)
    story.accept(6 * GIB, used_bytes=16 * GIB)
    commands = story.answer_until_the_gate_decides(lambda: unread(story))
    assert failure_in(commands)[0] == "memory_not_released"
    assert set(story.snapshot.live_models()) == {"chat", "embed"}


@pytest.mark.parametrize("choice", [OnUnconfirmed.WAIT, OnUnconfirmed.PROCEED])
def test_room_is_made_before_it_is_as_the_operator_said(
    story: Story, choice: OnUnconfirmed
) -> None:
    memory = replace(RERANK.memory, on_unconfirmed=choice)
    story.ask_for(replace(RERANK, memory=memory))
    story.accept(6 * GIB, used_bytes=16 * GIB)
    assert stopped_in(until_decided(story, used_gib=22)) == [CHAT_ID]


def test_it_is_as_the_operator_said_where_nobody_can_make_room(story: Story) -> None:
    memory = replace(RERANK.memory, on_unconfirmed=OnUnconfirmed.PROCEED)
    story.ask_for(replace(RERANK, memory=memory))
    story.accept(6 * GIB, used_bytes=16 * GIB)

    asked_again = story.answer_until_the_gate_decides(lambda: unread(story))
    assert asked_again == (SampleMemory(switch_id=story.running, device="gpu0"),)
    until_decided(story, used_gib=20)

    assert story.phase is Phase.STARTING
    assert set(story.snapshot.live_models()) == {"chat", "embed"}


@pytest.mark.parametrize("is_busy", [False, True])
def test_scheduler_has_only_those_leave_whom_nobody_needs(story: Story, *, is_busy: bool) -> None:
    """It weighed those that it knew would leave, and the others' turns are not over."""
    if is_busy:
        for model in ("chat", "embed"):
            story.arrive(f"work for {model}", model)
    story.now += story.snapshot.rules.manual_hold_s
    story.tell(SwitchRequested, switch_id="s3", target=RERANK, requested_by=SCHEDULER)
    story.accept(6 * GIB, used_bytes=16 * GIB)
    assert stopped_in(until_decided(story, used_gib=22)) == ([] if is_busy else [CHAT_ID])


def test_what_has_left_is_brought_back_when_the_next_one_may_not_be_cut(story: Story) -> None:
    story.arrive("stream", "embed")
    story.ask_for(RERANK, DrainPolicy.REFUSE)
    story.accept(8 * GIB, used_bytes=23 * GIB)
    story.reap(CHAT_ID)
    while story.phase is Phase.CONFIRMING:
        story.show(18 * GIB)
        drained = story.wake()

    assert failure_in(drained)[0] == "drain_refused"
    assert story.snapshot.live_models() == ("embed",)
    story.recover("chat")
    assert set(story.snapshot.live_models()) == {"chat", "embed"}
