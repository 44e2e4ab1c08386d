"""Idle models are unloaded, and the idle model comes back, each at its time and once."""

from typing import Any

from msgspec.structs import replace

from supervisor.core.machine.commands import CheckTarget, ReleaseMemory
from supervisor.core.machine.deadlines import next_wakeup
from supervisor.core.machine.events import RequestArrived, ScheduleRead, SwitchRequested
from supervisor.core.machine.rules import DrainPolicy, ModelRules, SwitchRules
from supervisor.core.machine.switch import IDLENESS
from supervisor.core.machine.values import Recovery, Target
from tests.core.machine.story import CHAT, CHAT_LONG, EMBED, GIB, RERANK, SHARED, Story, report_in
from tests.core.machine.surroundings import period

UNLOADING = SwitchRules(warms=False, models={"chat": ModelRules(idle_unload_s=600.0)})
RETURNING = SwitchRules(warms=False, idle_target=CHAT, idle_after_s=900.0)


def unload(story: Story) -> None:
    """Let what is being stopped be gone, and its memory be free."""
    for backend in story.snapshot.backends:
        if story.snapshot.switch and backend.epoch in story.snapshot.switch.leaving.epochs:
            story.reap(backend.epoch)
    story.confirm()


def test_model_without_work_is_stopped_after_its_time_and_not_before() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    since = story.now
    (stop,) = story.wake()
    assert isinstance(stop, ReleaseMemory)
    assert story.now == since + 600.0
    unload(story)
    assert story.snapshot.backends == ()
    assert next_wakeup(story.snapshot) is None


def test_work_puts_the_unload_off_until_its_time_after_the_last_answer() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    story.now += 500.0
    story.arrive("r1")
    assert next_wakeup(story.snapshot) is None
    story.now += 5000.0
    story.end("r1")
    assert next_wakeup(story.snapshot) == story.now + 600.0


def test_only_the_idle_model_goes_and_the_reason_is_told() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    story.make_live(EMBED, used_bytes=8 * GIB)
    story.wake()
    story.reap(story.snapshot.backends[0].epoch)
    commands = story.confirm(8 * GIB)
    report = report_in(commands)
    assert (report.requested_by, report.refusal) == (IDLENESS, None)
    assert report.reason == "'chat' has had nothing to do for 600 s (idle_unload_s)"
    assert story.snapshot.live_models() == ("embed",)


def test_next_request_brings_it_back_as_any_request_would() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    story.wake()
    unload(story)
    (check,) = story.tell(RequestArrived, request_id="r1", target=CHAT, may_switch=True)
    assert isinstance(check, CheckTarget)
    story.accept()
    story.start()
    assert story.snapshot.requests.leases["r1"] == story.epoch_of("chat")


def test_request_that_comes_while_it_is_stopped_waits_and_brings_it_back() -> None:
    story = Story(SHARED, rules=UNLOADING)
    epoch = story.make_live(CHAT)
    story.wake()
    story.tell(RequestArrived, request_id="r1", target=CHAT, may_switch=True)
    story.reap(epoch)
    assert any(isinstance(c, CheckTarget) for c in story.confirm())


def read(story: Story, **facts: Any) -> None:
    """Read a schedule whose baseline makes `chat` live, and that has a night for `embed`."""
    periods = (period(900.0, CHAT), period(6000.0, EMBED))
    story.tell(ScheduleRead, periods=periods, read_again_at=None, lead_s=10.0, **facts)


def test_schedule_does_not_load_again_what_was_unloaded_in_its_period() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    read(story)
    story.wake()
    unload(story)
    assert story.snapshot.live_models() == ()
    read(story)  # as it is each minute
    assert story.snapshot.switch is None
    (check,) = story.wake()  # the night begins
    assert isinstance(check, CheckTarget)
    assert check.target == EMBED


def test_schedule_loads_what_was_unloaded_once_its_period_comes_again() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    read(story)
    story.wake()
    unload(story)
    story.now += 10_000.0
    story.tell(ScheduleRead, periods=(period(story.now - 1.0, CHAT),), read_again_at=None)
    assert story.snapshot.switch is not None
    assert story.snapshot.switch.target == CHAT


def live_embed() -> Story:
    story = Story(replace(SHARED, budget_bytes=10 * GIB), rules=RETURNING)
    story.make_live(EMBED)
    return story


def test_idle_model_comes_back_once_nothing_has_come_for_a_while() -> None:
    story = live_embed()
    since = story.now
    (check,) = story.wake()
    assert isinstance(check, CheckTarget)
    assert (check.target, story.now) == (CHAT, since + 900.0)
    (stop,) = story.accept()
    story.reap(stop.epoch) if isinstance(stop, ReleaseMemory) else None
    story.start()
    assert story.snapshot.live_models() == ("chat",)
    assert next_wakeup(story.snapshot) is None


def test_work_puts_the_idle_model_off() -> None:
    story = live_embed()
    story.arrive("r1", "embed")
    assert next_wakeup(story.snapshot) is None
    story.now += 100.0
    story.end("r1")
    assert next_wakeup(story.snapshot) == story.now + 900.0


def test_work_that_outlives_the_order_to_stop_its_server_puts_the_idle_model_off() -> None:
    story = Story(SHARED, rules=replace(RETURNING, idle_target=EMBED, replaces=True))
    first = story.make_live(CHAT)
    story.arrive("r1")
    story.ask_for(CHAT_LONG, DrainPolicy.CANCEL)
    story.accept(used_bytes=8 * GIB)
    story.start(8 * GIB)
    (stop,) = story.wake()
    assert isinstance(stop, ReleaseMemory)
    story.now += 4.0
    story.end("r1")
    ended_at = story.now
    story.reap(first)
    story.wake()
    assert story.now == ended_at + 900.0


def test_idle_model_comes_back_after_the_other_was_unloaded() -> None:
    story = Story(
        SHARED, rules=replace(RETURNING, models={"embed": ModelRules(idle_unload_s=60.0)})
    )
    story.make_live(EMBED)
    since = story.now
    story.wake()
    unload(story)
    (check,) = story.wake()
    assert isinstance(check, CheckTarget)
    assert (check.target, story.now) == (CHAT, since + 900.0)


def test_idle_model_leaves_a_hands_unload_alone_until_something_is_asked_for() -> None:
    story = live_embed()
    story.ask_for(None)
    unload(story)
    assert next_wakeup(story.snapshot) is None
    story.make_live(EMBED)
    assert next_wakeup(story.snapshot) == story.now + 900.0


def test_idle_model_that_cannot_be_loaded_is_tried_again_after_pauses_that_grow() -> None:
    story = live_embed()
    tries = []
    for _ in range(3):
        story.wake()
        tries.append(story.now)
        story.accept(need_bytes=99 * GIB)
        assert story.snapshot.live_models() == ("embed",)
    first, second = tries[1] - tries[0], tries[2] - tries[1]
    assert second == 2 * first


def test_idle_model_that_the_schedule_does_not_serve_stays_away() -> None:
    story = live_embed()
    story.tell(ScheduleRead, periods=(period(story.now - 1.0, EMBED),), read_again_at=None)
    assert next_wakeup(story.snapshot) is None


def test_idle_model_waits_until_a_hands_choice_holds_no_more() -> None:
    story = Story(SHARED, rules=replace(RETURNING, manual_hold_s=5000.0))
    story.make_live(EMBED)
    assert next_wakeup(story.snapshot) == story.now + 5000.0
    (check,) = story.wake()
    assert isinstance(check, CheckTarget)
    assert check.target == CHAT


def test_idle_model_comes_back_though_another_stays_down_after_its_deaths() -> None:
    story = live_embed()
    down = Recovery(target=RERANK, attempt=5, reason="it died", is_open=True, may_hold=False)
    story.snapshot = replace(story.snapshot, recoveries=(down,))
    (check,) = story.wake()
    assert isinstance(check, CheckTarget)
    assert check.target == CHAT


def test_idle_model_that_stays_down_after_its_deaths_is_left_to_its_operator() -> None:
    story = live_embed()
    down = Recovery(target=CHAT, attempt=5, reason="it died", is_open=True, may_hold=False)
    story.snapshot = replace(story.snapshot, recoveries=(down,))
    assert next_wakeup(story.snapshot) is None


def by_hand(story: Story, target: Target | None, unloads: str | None = None) -> None:
    story.tell(
        SwitchRequested, switch_id="hand", target=target, requested_by="ops", unloads=unloads
    )


def test_hand_that_comes_at_the_moment_of_an_unload_waits_for_its_end() -> None:
    story = Story(SHARED, rules=UNLOADING)
    story.make_live(CHAT)
    story.wake()
    by_hand(story, EMBED)
    assert story.snapshot.scheduling.pending is not None
    unload(story)
    assert story.snapshot.switch is not None
    assert story.snapshot.switch.target == EMBED
