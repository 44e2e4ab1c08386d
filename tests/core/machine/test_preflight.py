"""Targets that cannot fit are refused before anything is touched, with the arithmetic."""

from msgspec.structs import replace

from supervisor.core.machine.events import TargetAccepted
from supervisor.core.machine.memory import Holder, HolderRole, MemoryPolicy, OnUnconfirmed
from supervisor.core.machine.preflight import refuse_what_cannot_fit
from supervisor.core.machine.residency import plan_residency
from supervisor.core.machine.values import BackendState, Refusal, TargetNeed
from supervisor.core.sizing.fitting import Alternative
from tests.core.machine.story import (
    CHAT,
    EMBED,
    EXCLUSIVE,
    GIB,
    SHARED,
    TOTAL_BYTES,
    Story,
    facts_in,
    failure_in,
)
from tests.core.machine.surroundings import taking

SMALLER = (
    Alternative(setting="cache_type_k: q8_0", need_bytes=19 * GIB),
    Alternative(setting="ctx_size: 8192", need_bytes=18 * GIB),
    Alternative(setting="ctx_size: 4096", need_bytes=9 * GIB),
    Alternative(setting="ctx_size: 2048", need_bytes=5 * GIB),
    Alternative(setting="parallel: 1", need_bytes=10 * GIB),
)


def judge(story: Story, need: TargetNeed, used_bytes: int) -> Refusal | None:
    readings = (story.reading(used_bytes),)
    plan = plan_residency(story.snapshot, EMBED, need.footprint, readings, 1e3)
    return refuse_what_cannot_fit(story.snapshot, EMBED, need, plan, readings)


def test_target_that_others_leave_no_room_for_touches_nothing() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT, used_bytes=12 * GIB)  # others' memory, from before
    story.ask_for(EMBED)
    story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=TargetNeed(footprint=taking(14 * GIB), alternatives=SMALLER),
        readings=(story.reading(20 * GIB),),
    )
    assert story.snapshot.switch is None
    assert story.snapshot.backends[0].state is BackendState.READY
    assert story.snapshot.endings.failure is not None
    assert story.snapshot.endings.failure.code == "target_does_not_fit"


def test_refusal_has_the_arithmetic_and_the_mildest_settings_that_fit() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT, used_bytes=12 * GIB)
    story.ask_for(EMBED)
    commands = story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=TargetNeed(footprint=taking(20 * GIB), explanation="weights", alternatives=SMALLER),
        readings=(story.reading(20 * GIB),),
    )
    _, message = failure_in(commands)
    assert "needs about 20.0 GiB (weights)" in message
    assert "gpu0 has 4.0 GiB free, and 12.0 GiB once 'chat' has stopped" in message
    facts = facts_in(commands)
    assert facts["fits_with"] == ("ctx_size: 4096", "parallel: 1")
    assert (facts["need_bytes"], facts["available_bytes"]) == (20 * GIB, 12 * GIB)


def test_what_others_took_since_the_start_is_no_room_for_what_follows() -> None:
    """Others held 2 GiB when `chat` started and hold 8 now; 16 of 24 will be free after it."""
    story = Story(EXCLUSIVE)
    story.make_live(CHAT, need_bytes=4 * GIB, used_bytes=2 * GIB)
    [backend] = story.snapshot.backends
    (baseline,) = backend.baselines
    known = replace(backend, baselines=(replace(baseline, foreign_bytes=2 * GIB),))
    story.snapshot = replace(story.snapshot, backends=(known,))
    others = Holder(pid=7, used_bytes=8 * GIB, role=HolderRole.FOREIGN, name="python")
    memory = replace(story.reading(18 * GIB), holders=(others,))

    def is_refused(need_bytes: int) -> bool:
        need = TargetNeed(footprint=taking(need_bytes))
        plan = plan_residency(story.snapshot, EMBED, need.footprint, (memory,), 1e3)
        return refuse_what_cannot_fit(story.snapshot, EMBED, need, plan, (memory,)) is not None

    assert not is_refused(16 * GIB)
    assert is_refused(16 * GIB + 1)


def test_memory_that_a_killed_controllers_servers_may_hold_still_refuses_nothing() -> None:
    story = Story(EXCLUSIVE)
    need = TargetNeed(footprint=taking(20 * GIB))
    assert judge(story, need, used_bytes=14 * GIB) is not None
    ended = replace(story.snapshot.endings, orphans_at=story.now)
    story.snapshot = replace(story.snapshot, endings=ended)
    assert judge(story, need, used_bytes=14 * GIB) is None
    story.now += EMBED.memory.release_timeout_s
    assert judge(story, need, used_bytes=14 * GIB) is not None


def test_what_gives_way_is_counted_as_free() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT, need_bytes=16 * GIB)
    assert judge(story, TargetNeed(footprint=taking(23 * GIB)), used_bytes=17 * GIB) is None


def test_use_from_before_counts_where_the_need_was_estimated_too_low() -> None:
    story = Story(EXCLUSIVE)
    story.make_live(CHAT, need_bytes=1 * GIB)
    assert judge(story, TargetNeed(footprint=taking(20 * GIB)), used_bytes=16 * GIB) is None


def test_what_others_hold_is_not_counted_as_free() -> None:
    story = Story(SHARED)
    story.make_live(CHAT, need_bytes=4 * GIB, used_bytes=12 * GIB)
    refusal = judge(story, TargetNeed(footprint=taking(13 * GIB)), used_bytes=16 * GIB)
    assert refusal is not None
    assert "gpu0 has 8.0 GiB free, and 12.0 GiB once 'chat' has stopped;" in refusal.message
    assert "no smaller setting makes it fit" in refusal.message


def test_operators_budget_is_named_with_what_would_raise_it() -> None:
    story = Story(replace(SHARED, budget_bytes=8 * GIB))
    refusal = judge(story, TargetNeed(footprint=taking(8 * GIB + 1)), used_bytes=0)
    assert refusal is not None
    assert "devices.gpu0.budget_bytes" in refusal.message
    assert dict(refusal.details)["available_bytes"] == 8 * GIB


def test_unread_memory_is_left_to_the_gate() -> None:
    story = Story(EXCLUSIVE)
    need = TargetNeed(footprint=taking(20 * GIB))
    plan = plan_residency(story.snapshot, EMBED, need.footprint, (), 1e3)
    assert refuse_what_cannot_fit(story.snapshot, EMBED, need, plan, ()) is None


def test_memory_of_one_that_died_just_now_may_still_come_back() -> None:
    story = Story(EXCLUSIVE)
    epoch = story.make_live(CHAT)
    story.crash(epoch)
    need = TargetNeed(footprint=taking(20 * GIB))
    assert judge(story, need, used_bytes=TOTAL_BYTES) is None
    story.now += EMBED.memory.release_timeout_s
    assert judge(story, need, used_bytes=TOTAL_BYTES) is not None


def test_target_on_a_device_that_is_not_here_is_refused_whatever_is_done_unconfirmed() -> None:
    story = Story()
    policy = MemoryPolicy(on_unconfirmed=OnUnconfirmed.PROCEED)
    story.ask_for(replace(CHAT, device="gpu7", memory=policy))
    need = TargetNeed(footprint=taking(GIB, "gpu7"))
    commands = story.tell(
        TargetAccepted,
        switch_id=story.running,
        need=need,
        readings=(),
        memory_problem="no driver answers",
    )
    code, message = failure_in(commands)
    assert code == "target_cannot_start"
    assert "'gpu7'" in message
    assert story.snapshot.switch is None
