"""Devices that cannot be read, and room that is not there: refused, gone around, or risked."""

import pytest
from msgspec.structs import replace

from supervisor.core.machine.commands import CheckTarget, StartBackend
from supervisor.core.machine.events import DeviceFound, MemoryUnreadable
from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.values import Device, Mode, Outcome, Phase, Target
from tests.core.machine.story import (
    CHAT,
    EMBED,
    EXCLUSIVE,
    GIB,
    TOTAL_BYTES,
    Story,
    accept_unread,
    failure_in,
    report_in,
)
from tests.core.machine.surroundings import used_before

HOST = Device(name="host", budget_bytes=TOTAL_BYTES)
ON_CPU = Target(model="embed", mode=Mode.EMBEDDING, profile="embed-cpu", device="host")
WITH_FALLBACK = replace(EMBED, fallback=ON_CPU)


def risky(target: Target, choice: OnUnconfirmed) -> Target:
    return replace(target, memory=replace(target.memory, on_unconfirmed=choice))


def test_nothing_is_stopped_for_a_target_whose_device_cannot_be_read() -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(EMBED)
    code, message = failure_in(accept_unread(story))
    assert code == "telemetry_lost"
    assert "gpu0 cannot be read: the driver hangs" in message
    assert story.snapshot.live_models() == ("chat",)


@pytest.mark.parametrize("choice", [OnUnconfirmed.WAIT, OnUnconfirmed.PROCEED])
def test_operator_may_want_to_go_on_without_telemetry(choice: OnUnconfirmed) -> None:
    story = Story()
    story.make_live(CHAT)
    story.ask_for(risky(EMBED, choice))
    accept_unread(story)
    assert story.phase is Phase.STOPPING


def test_start_without_telemetry_comes_after_the_timeout_where_the_operator_proceeds() -> None:
    story = Story()
    story.ask_for(risky(EMBED, OnUnconfirmed.PROCEED))
    accept_unread(story)
    asked_at = story.now
    (start,) = story.answer_until_the_gate_decides(
        lambda: story.tell(MemoryUnreadable, switch_id=story.running, reason="the driver hangs")
    )
    assert isinstance(start, StartBackend)
    assert story.now - asked_at >= EMBED.memory.release_timeout_s
    assert used_before(story.snapshot.backends[0]) is None


def test_target_without_room_falls_back_to_the_other_profile() -> None:
    story = Story(EXCLUSIVE, HOST)
    story.make_live(CHAT, used_bytes=12 * GIB)
    story.ask_for(WITH_FALLBACK)
    assert story.accept(need_bytes=20 * GIB, used_bytes=22 * GIB) == (
        CheckTarget(switch_id="s2", target=ON_CPU),
    )
    assert story.phase is Phase.PREFLIGHT
    story.accept(need_bytes=GIB, used_bytes=0)
    story.start(device="host")
    report = report_in(story.last)
    assert (report.profile, report.outcome) == ("embed-cpu", Outcome.SWITCHED)
    assert "needs about 20.0 GiB" in str(report.notes.fell_back)
    assert set(story.snapshot.live_models()) == {"chat", "embed"}


def test_fallback_that_is_live_already_is_all_that_is_needed() -> None:
    story = Story(EXCLUSIVE, HOST)
    story.make_live(ON_CPU)
    story.ask_for(WITH_FALLBACK)
    commands = story.accept(need_bytes=30 * GIB, used_bytes=0)
    assert report_in(commands).outcome is Outcome.UNCHANGED
    assert story.phase is None


def test_fallback_without_room_is_refused_with_its_own_reason() -> None:
    story = Story(EXCLUSIVE, HOST)
    story.ask_for(WITH_FALLBACK)
    story.accept(need_bytes=30 * GIB, used_bytes=0)
    code, message = failure_in(story.accept(need_bytes=40 * GIB, used_bytes=0))
    assert code == "target_does_not_fit"
    assert "'embed-cpu' needs about 40.0 GiB" in message


def test_device_that_is_found_later_can_be_used() -> None:
    story = Story(HOST)
    story.tell(DeviceFound, device=EXCLUSIVE)
    story.make_live(CHAT)
    assert story.snapshot.live_models() == ("chat",)


def test_devices_that_share_one_memory_have_one_budget() -> None:
    unified = Device(name="gpu0", budget_bytes=TOTAL_BYTES, pool="host")
    story = Story(unified, HOST)
    story.make_live(replace(ON_CPU, model="rerank"), need_bytes=16 * GIB)
    story.ask_for(CHAT)
    story.accept(need_bytes=16 * GIB)
    assert story.snapshot.switch is not None
    assert story.snapshot.switch.leaving.epochs == (1,)
