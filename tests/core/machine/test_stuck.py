"""What never answers: a check that hangs, a server that SIGKILL does not end."""

from supervisor.core.machine.commands import ReleaseMemory
from supervisor.core.machine.events import ReleaseBegun, TimePassed
from supervisor.core.machine.leaving import REAP_TIMEOUT_S
from supervisor.core.machine.saving import time_for_prompts_s
from supervisor.core.machine.switching import CHECK_TIMEOUT_S
from supervisor.core.machine.values import Phase
from tests.core.machine.story import CHAT, EMBED, GIB, Story, failure_in
from tests.core.machine.surroundings import used_before


def test_check_that_hangs_ends_the_switch_and_leaves_the_live_model() -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    began_at = story.now
    code, message = failure_in(story.wake())
    assert story.now == began_at + CHECK_TIMEOUT_S
    assert code == "target_cannot_start"
    assert "does its file system answer?" in message
    assert story.snapshot.live_models() == ("chat",)


def stuck() -> Story:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    (stop,) = story.accept()
    assert isinstance(stop, ReleaseMemory)
    return story


def test_server_that_cannot_be_reaped_ends_the_switch_and_names_its_process() -> None:
    story = stuck()
    story.tell(ReleaseBegun, epoch=1)
    began_at = story.now
    code, message = failure_in(story.wake())
    assert story.now == began_at + CHAT.patience.stop_grace_s + REAP_TIMEOUT_S
    assert code == "backend_not_reaped"
    assert "the kernel holds it" in message


def test_nothing_starts_while_it_is_there_and_its_model_comes_back_once_it_is_gone() -> None:
    story = stuck()
    story.wake()
    story.retry()
    story.accept()
    assert story.phase is Phase.STOPPING
    story.reap(1, exit_code=None, signal=9)
    assert story.start() == 2
    assert story.snapshot.live_models() == ("chat",)


def test_restart_after_a_death_is_held_against_the_use_from_before_it() -> None:
    story = Story()
    story.make_live(CHAT, used_bytes=1 * GIB)
    story.crash(1)
    story.retry()
    story.accept(need_bytes=8 * GIB)
    story.start(used_bytes=10 * GIB)  # what the dead one held is not back yet, but enough is free
    (backend,) = story.snapshot.backends
    assert used_before(backend) == 1 * GIB


def test_release_that_comes_late_is_confirmed_ten_milliseconds_after_it_is_seen() -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    story.accept(need_bytes=20 * GIB)
    story.reap(1)
    for _ in range(12):  # the pauses have grown to 250 ms
        assert story.show(20 * GIB) == ()
        story.wake()
    seen_at = story.now
    story.confirm(used_bytes=0)
    assert story.phase is Phase.STARTING
    assert story.now - seen_at < 0.011


def test_a_slow_save_of_prompts_leaves_the_server_all_its_time_to_end() -> None:
    story = stuck()
    story.now += CHAT.patience.stop_grace_s + REAP_TIMEOUT_S + 1
    assert story.tell(TimePassed) == ()
    story.tell(ReleaseBegun, epoch=1)
    began_at = story.now
    code, _ = failure_in(story.wake())
    assert story.now == began_at + CHAT.patience.stop_grace_s + REAP_TIMEOUT_S
    assert code == "backend_not_reaped"


def test_a_save_of_which_nothing_is_heard_ends_the_switch_too() -> None:
    story = stuck()
    began_at = story.now
    (chat,) = story.snapshot.backends
    saving_s = time_for_prompts_s(chat.footprint.total_bytes)
    code, _ = failure_in(story.wake())
    assert story.now == began_at + saving_s + CHAT.patience.stop_grace_s + REAP_TIMEOUT_S
    assert code == "backend_not_reaped"
