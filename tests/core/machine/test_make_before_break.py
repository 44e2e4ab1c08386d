"""A target that starts beside what it replaces: nobody waits, and the old one retires behind it."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import ReleaseMemory, SampleMemory, StartBackend
from supervisor.core.machine.events import BackendReady
from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.rules import DrainPolicy, SwitchRules
from supervisor.core.machine.values import BackendState, Phase, Stop
from tests.core.machine.story import (
    CHAT,
    CHAT_LONG,
    EMBED,
    EMBED_1,
    EXCLUSIVE,
    GIB,
    SHARED,
    Story,
    failure_in,
    granted_in,
    report_in,
)

REPLACING = SwitchRules(warms=False, replaces=True)


def beside(
    story: Story, used_bytes: int = 8 * GIB, policy: DrainPolicy = DrainPolicy.CANCEL
) -> int:
    """Ask for chat's other profile, and let it start beside the live one. Returns its epoch."""
    story.ask_for(CHAT_LONG, policy)
    assert story.accept(used_bytes=used_bytes) == (
        SampleMemory(switch_id=story.running, device="gpu0"),
    )
    (start,) = story.confirm(used_bytes)
    assert isinstance(start, StartBackend)
    return start.epoch


@pytest.fixture
def story() -> Story:
    """A shared device with chat live on a third of it, and a request in flight."""
    made = Story(SHARED)
    made.make_live(CHAT)
    made.arrive("stream")
    return made


def test_old_profile_serves_until_the_new_one_is_ready(story: Story) -> None:
    new = beside(story)
    assert granted_in(story.arrive("meanwhile")) == [("meanwhile", 1)]
    assert story.phase is Phase.STARTING

    story.tell(BackendReady, epoch=new, memory=None)

    assert granted_in(story.arrive("after")) == [("after", new)]
    assert story.phase is None


def test_old_one_stops_behind_its_last_request(story: Story) -> None:
    new = beside(story)
    commands = story.tell(BackendReady, epoch=new, memory=None)
    assert report_in(commands).epoch == new
    assert not any(isinstance(c, ReleaseMemory) for c in commands)

    (stop,) = story.end("stream")

    assert stop == ReleaseMemory(
        epoch=1, how=Stop(grace_s=CHAT.patience.stop_grace_s, keeps_prompts=True)
    )
    assert story.reap(1) == ()
    assert story.snapshot.recoveries == ()
    assert [b.epoch for b in story.snapshot.backends] == [new]


@pytest.mark.parametrize("policy", [DrainPolicy.WAIT, DrainPolicy.REFUSE])
def test_deadline_ends_the_requests_of_the_old_one_only_where_that_is_the_policy(
    story: Story, policy: DrainPolicy
) -> None:
    new = beside(story, policy=policy)
    story.tell(BackendReady, epoch=new, memory=None)
    (old,) = [b for b in story.snapshot.backends if b.departure.is_retiring]
    assert old.departure.deadline is None


def test_old_one_is_stopped_at_its_deadline(story: Story) -> None:
    new = beside(story)
    story.tell(BackendReady, epoch=new, memory=None)
    due_at = story.now + CHAT.patience.drain_timeout_s

    (stop,) = story.wake()

    assert story.now == due_at
    assert isinstance(stop, ReleaseMemory)
    assert stop.epoch == 1


def test_target_that_dies_leaves_the_old_one_untouched(story: Story) -> None:
    new = beside(story)

    code, _ = failure_in(story.reap(new, exit_code=1))

    assert code == "backend_died"
    assert granted_in(story.arrive("after")) == [("after", 1)]


def test_old_one_that_dies_while_it_retires_is_not_brought_back(story: Story) -> None:
    new = beside(story)
    story.tell(BackendReady, epoch=new, memory=None)

    assert story.crash(1) == ()

    assert story.snapshot.recoveries == ()
    assert story.snapshot.endings.exit is not None
    assert story.snapshot.endings.exit.was_wanted


@pytest.mark.parametrize("used_gib", [16, 24])
def test_old_one_stops_first_where_telemetry_shows_too_little_room_for_both(
    story: Story, used_gib: int
) -> None:
    story.ask_for(CHAT_LONG)
    story.accept(used_bytes=used_gib * GIB)
    assert story.phase is Phase.DRAINING


def test_old_one_stops_first_on_an_exclusive_device() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT)
    story.ask_for(CHAT_LONG)
    story.accept(used_bytes=0)
    assert story.phase is Phase.STOPPING


def test_old_one_stops_first_where_the_budget_does_not_hold_both() -> None:
    story = Story(replace(SHARED, budget_bytes=15 * GIB))
    story.make_live(CHAT)
    story.ask_for(CHAT_LONG)
    story.accept(used_bytes=0)
    assert story.phase is Phase.STOPPING


def test_room_that_cannot_be_confirmed_after_all_is_made_by_stopping_the_old_one(
    story: Story,
) -> None:
    story.end("stream")
    story.ask_for(CHAT_LONG)
    story.accept(used_bytes=8 * GIB)

    (stop,) = story.answer_until_the_gate_decides(lambda: story.show(20 * GIB))

    assert isinstance(stop, ReleaseMemory)
    assert stop.epoch == 1
    assert story.phase is Phase.STOPPING
    story.reap(1)
    assert story.start(used_bytes=0) == 2
    assert report_in(story.last).refusal is None


@pytest.mark.parametrize("choice", [OnUnconfirmed.WAIT, OnUnconfirmed.PROCEED])
def test_room_is_made_rather_than_gone_without_whatever_the_operator_chose(
    choice: OnUnconfirmed,
) -> None:
    story = Story(SHARED)
    story.make_live(CHAT)
    memory = replace(CHAT_LONG.memory, on_unconfirmed=choice)
    story.ask_for(replace(CHAT_LONG, memory=memory))
    story.accept(used_bytes=8 * GIB)
    (stop,) = story.answer_until_the_gate_decides(lambda: story.show(20 * GIB))
    assert isinstance(stop, ReleaseMemory)


def test_room_made_by_stopping_the_old_one_is_given_back_when_the_target_fails(
    story: Story,
) -> None:
    story.end("stream")
    story.ask_for(CHAT_LONG)
    story.accept(used_bytes=8 * GIB)
    story.answer_until_the_gate_decides(lambda: story.show(20 * GIB))
    story.reap(1)
    (start,) = story.confirm(used_bytes=0)
    assert isinstance(start, StartBackend)
    story.reap(start.epoch, exit_code=1)
    assert story.phase is Phase.ROLLING_BACK
    assert story.start() == 3
    assert story.snapshot.live_models() == ("chat",)


def test_what_fits_beside_stays_by_default(story: Story) -> None:
    story.ask_for(EMBED)
    story.accept(used_bytes=8 * GIB)
    story.start(used_bytes=8 * GIB)
    assert story.snapshot.server_mode() == "mixed"


def test_operator_may_want_the_target_alone_and_nobody_waits() -> None:
    story = Story(SHARED, rules=REPLACING)
    story.make_live(CHAT)
    story.ask_for(EMBED)
    story.accept(used_bytes=8 * GIB)
    assert granted_in(story.arrive("meanwhile")) == [("meanwhile", 1)]
    story.start(used_bytes=8 * GIB)
    assert story.snapshot.live_models() == ("embed",)
    (stop,) = story.end("meanwhile")
    assert isinstance(stop, ReleaseMemory)


def test_operator_who_wants_the_target_alone_gets_room_for_it_first_where_both_do_not_fit() -> None:
    story = Story(SHARED, rules=REPLACING)
    story.make_live(CHAT, need_bytes=20 * GIB)
    story.ask_for(EMBED)
    story.accept(used_bytes=20 * GIB)
    assert story.phase is Phase.STOPPING


def test_same_model_on_another_device_serves_until_the_target_is_ready() -> None:
    story = Story(SHARED, replace(SHARED, name="gpu1"))
    story.make_live(EMBED)
    story.ask_for(replace(EMBED_1, profile="embed-long"))
    story.accept(used_bytes=0)
    assert granted_in(story.arrive("meanwhile", "embed")) == [("meanwhile", 1)]
    new = story.start(device="gpu1")
    assert granted_in(story.arrive("after", "embed")) == [("after", new)]
    assert story.snapshot.backend(1) is not None


def test_next_switch_waits_for_what_still_retires_where_it_needs_the_room(story: Story) -> None:
    new = beside(story)
    story.tell(BackendReady, epoch=new, memory=None)

    story.ask_for(EMBED)
    story.accept(need_bytes=15 * GIB, used_bytes=16 * GIB)

    assert story.snapshot.switch is not None
    assert story.snapshot.switch.leaving.epochs == (1,)
    assert [p.target for p in story.snapshot.switch.rollback.to_restore] == []
    (stop,) = story.end("stream")
    assert isinstance(stop, ReleaseMemory)
    story.reap(1)
    story.start(used_bytes=8 * GIB)
    assert set(story.snapshot.live_models()) == {"chat", "embed"}


def test_shutdown_waits_for_what_retires(story: Story) -> None:
    new = beside(story)
    story.tell(BackendReady, epoch=new, memory=None)
    assert {b.epoch: b.state for b in story.snapshot.backends} == {
        1: BackendState.DRAINING,
        new: BackendState.READY,
    }
