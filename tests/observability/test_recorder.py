"""What the recorder makes of the arbiter's events: log events, and the history of switches."""

from collections.abc import Iterator
from typing import Any

import pytest
from immutables import Map
from msgspec.structs import replace
from structlog.testing import capture_logs

from supervisor.core.machine.events import (
    BackendExited,
    BackendReady,
    BackendSpawned,
    Event,
    MemorySampled,
    RequestArrived,
    RequestEnded,
    SwitchRequested,
    TargetAccepted,
    TargetRejected,
    WarmingBegun,
)
from supervisor.core.machine.memory import MemoryPolicy, MemorySample
from supervisor.core.machine.reports import report_of
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.step import step
from supervisor.core.machine.switch import Order, Switch
from supervisor.core.machine.values import Device, Mode, Phase, Target, TargetNeed
from supervisor.observability.descriptions import describe_report, describe_running
from supervisor.observability.history import SwitchHistory
from supervisor.observability.recorder import Recorder
from tests.core.machine.surroundings import taking

CHAT = Target(
    model="chat",
    mode=Mode.GENERATION,
    profile="p",
    device="gpu0",
    memory=MemoryPolicy(stable_samples=1, margin_bytes=0),
)
EMPTY = Snapshot(devices=Map({"gpu0": Device(name="gpu0", budget_bytes=1000)}))
FREE = MemorySample(
    device="gpu0",
    taken_at=2.0,
    total_bytes=1000,
    used_bytes=0,
    free_bytes=1000,
    source="test",
    children_bytes=0,
)

TO_CHAT: tuple[Event, ...] = (
    SwitchRequested(at=0.0, switch_id="s1", target=CHAT, requested_by="manual"),
    TargetAccepted(
        at=1.0, switch_id="s1", need=TargetNeed(footprint=taking(100)), readings=(FREE,)
    ),
    WarmingBegun(at=1.0, switch_id="s1"),
    MemorySampled(at=2.0, switch_id="s1", sample=FREE),
    BackendSpawned(at=3.0, epoch=1, pid=4711, address="/run/backend-1.sock"),
    BackendReady(at=4.5, epoch=1, memory=FREE),
)


@pytest.fixture
def history() -> Iterator[SwitchHistory]:
    history = SwitchHistory(None, 3)
    yield history
    history.close()


@pytest.fixture
def recorder(history: SwitchHistory) -> Recorder:
    return Recorder(history, wall_clock=lambda: 1_700_000_000.0)


def play(recorder: Recorder, snapshot: Snapshot, *events: Event) -> tuple[Snapshot, list[Any]]:
    """Take the events through the core under the recorder's eyes; returns what it logged."""
    with capture_logs() as lines:
        for event in events:
            before = snapshot
            snapshot, commands = step(before, event)
            recorder.observe(event, before, snapshot, commands)
    return snapshot, lines


def names(lines: list[Any]) -> list[str]:
    return [line["event"] for line in lines]


def test_a_switch_is_told_phase_by_phase(recorder: Recorder) -> None:
    _, lines = play(recorder, EMPTY, *TO_CHAT)
    phases = [line for line in lines if line["event"] == "switch.phase"]
    assert [line["phase"] for line in phases] == [
        "preflight",
        "warming",
        "confirming",
        "starting",
    ]
    assert {(line["switch_id"], line["model"]) for line in phases} == {("s1", "chat")}
    assert names(lines)[-2:] == ["backend.ready", "switch.finished"]


def test_a_finished_switch_is_told_with_who_asked_and_how_long_it_took(recorder: Recorder) -> None:
    _, lines = play(recorder, EMPTY, *TO_CHAT)
    [finished] = [line for line in lines if line["event"] == "switch.finished"]
    assert finished == {
        "event": "switch.finished",
        "log_level": "info",
        "switch_id": "s1",
        "requested_by": "manual",
        "outcome": "switched",
        "model": "chat",
        "took_s": 4.5,
        "released": "gpu0: 1000 B free, 100 B needed",
    }


def test_a_failed_switch_is_a_warning_with_the_reason(recorder: Recorder) -> None:
    rejected = TargetRejected(at=1.0, switch_id="s1", message="no such file")
    _, lines = play(recorder, EMPTY, TO_CHAT[0], rejected)
    assert lines[-1]["event"] == "switch.failed"
    assert (lines[-1]["log_level"], lines[-1]["reason"]) == ("warning", "no such file")


def test_backends_are_told_from_their_spawn_to_their_end(recorder: Recorder) -> None:
    unload = SwitchRequested(at=5.0, switch_id="s2", target=None, requested_by="manual")
    gone = BackendExited(at=6.0, epoch=1, exit_code=0)
    _, lines = play(recorder, EMPTY, *TO_CHAT, unload, gone)
    told = [line for line in lines if line["event"].startswith("backend.")]
    assert names(told) == ["backend.spawned", "backend.ready", "backend.exited"]
    assert told[0]["pid"] == 4711
    assert {line["epoch"] for line in told} == {1}
    assert (told[2]["model"], told[2]["exit_code"], told[2]["signal"]) == ("chat", 0, None)


def test_a_death_that_nobody_ordered_is_a_warning_with_the_last_words(recorder: Recorder) -> None:
    words = tuple(f"line {n}" for n in range(30))
    died = BackendExited(at=6.0, epoch=1, exit_code=None, signal=11, last_lines=words)
    _, lines = play(recorder, EMPTY, *TO_CHAT, died)
    death, retry = lines[-2:]
    assert death["event"] == "backend.died"
    assert (death["log_level"], death["signal"]) == ("warning", 11)
    assert death["last_lines"] == words[-10:]
    assert (retry["event"], retry["model"]) == ("backend.retry_scheduled", "chat")
    assert (retry["attempt"], retry["pause_s"]) == (1, 0.2)


def test_the_end_of_an_unknown_backend_is_not_told_again(recorder: Recorder) -> None:
    died = BackendExited(at=6.0, epoch=1, exit_code=1)
    snapshot, _ = play(recorder, EMPTY, *TO_CHAT, died)
    _, lines = play(recorder, snapshot, replace(died, at=7.0, epoch=99))
    assert lines == []


def test_requests_are_left_to_the_gateways_log(recorder: Recorder) -> None:
    live, _ = play(recorder, EMPTY, *TO_CHAT)
    arrived = RequestArrived(at=5.0, request_id="r1", target=CHAT)
    _, lines = play(recorder, live, arrived, RequestEnded(at=6.0, request_id="r1"))
    assert lines == []


def test_each_switch_goes_into_the_history_with_the_time_of_day(
    recorder: Recorder, history: SwitchHistory
) -> None:
    rejected = TargetRejected(at=1.0, switch_id="s0", message="no such file")
    asked = SwitchRequested(at=0.0, switch_id="s0", target=CHAT, requested_by="startup")
    play(recorder, EMPTY, asked, rejected, *TO_CHAT)

    done, failed = history.newest_first()

    assert (failed["switch_id"], failed["outcome"]) == ("s0", "failed")
    assert failed["requested_by"] == "startup"
    assert failed["error"]["message"] == "no such file"
    assert (done["switch_id"], done["outcome"]) == ("s1", "switched")
    assert done["ended_at"] == 1_700_000_000.0
    assert done["seconds"]["total"] == 4.5


def test_memory_samples_alone_are_not_logged(recorder: Recorder) -> None:
    snapshot, _ = play(recorder, EMPTY, *TO_CHAT[:2])
    held = replace(FREE, free_bytes=0, used_bytes=1000, children_bytes=1000)
    _, lines = play(recorder, snapshot, MemorySampled(at=2.0, switch_id="s1", sample=held))
    assert lines == []


def test_a_switch_that_changes_nothing_is_told_and_takes_no_place_in_the_history(
    recorder: Recorder, history: SwitchHistory
) -> None:
    again = SwitchRequested(at=5.0, switch_id="s2", target=CHAT, requested_by="manual")
    _, lines = play(recorder, EMPTY, *TO_CHAT, again)

    assert lines[-1]["outcome"] == "unchanged"
    assert [kept["switch_id"] for kept in history.newest_first()] == ["s1"]
    assert (history.get("s2") or {})["outcome"] == "unchanged"


@pytest.mark.parametrize(
    ("so_far", "last"),
    [
        pytest.param(TO_CHAT[:-1], TO_CHAT[-1], id="it succeeds"),
        pytest.param(
            TO_CHAT[:1],
            TargetRejected(at=1.0, switch_id="s1", message="no file"),
            id="it fails in the phase in which the next one begins",
        ),
    ],
)
def test_a_switch_that_begins_where_another_ends_is_told_after_it(
    recorder: Recorder, so_far: tuple[Event, ...], last: Event
) -> None:
    before, _ = play(recorder, EMPTY, *so_far)
    ended, finish = step(before, last)
    following = SwitchRequested(
        at=last.at, switch_id="s2", target=replace(CHAT, model="embed"), requested_by="manual"
    )
    after, _ = step(ended, following)

    with capture_logs() as lines:
        recorder.observe(last, before, after, finish)

    told = [(line["event"], line["switch_id"]) for line in lines if "switch_id" in line]
    assert [switch_id for _, switch_id in told] == ["s1", "s2"]
    assert told[-1] == ("switch.phase", "s2")


def test_a_rollback_is_shown_as_one_phase_though_it_has_two(recorder: Recorder) -> None:
    embed = replace(CHAT, model="embed")
    sample = replace(FREE, taken_at=8.0)
    to_embed: tuple[Event, ...] = (
        SwitchRequested(at=5.0, switch_id="s2", target=embed, requested_by="manual"),
        TargetAccepted(
            at=6.0, switch_id="s2", need=TargetNeed(footprint=taking(100)), readings=(FREE,)
        ),
        WarmingBegun(at=6.0, switch_id="s2"),
        BackendExited(at=7.0, epoch=1, exit_code=0),
        MemorySampled(at=8.0, switch_id="s2", sample=sample),
        BackendExited(at=9.0, epoch=2, exit_code=1),
        MemorySampled(at=10.0, switch_id="s2", sample=replace(sample, taken_at=10.0)),
    )
    exclusive = Device(name="gpu0", budget_bytes=1000, is_exclusive=True)
    alone = replace(EMPTY, devices=Map({"gpu0": exclusive}))
    snapshot, lines = play(recorder, alone, *TO_CHAT, *to_embed)
    assert snapshot.switch is not None
    assert snapshot.switch.phase is Phase.RESTORING
    assert describe_running(snapshot.switch)["phase"] == "rolling_back"
    phases = [line["phase"] for line in lines if line["event"] == "switch.phase"]
    assert phases[-2:] == ["starting", "rolling_back"]
    report = report_of(snapshot.switch, 12.0, refusal=None)
    assert report.last_phase is Phase.ROLLING_BACK
    assert describe_report(report)["seconds"]["rolling_back"] == 3.0


def test_seconds_of_a_phase_that_came_twice_are_summed_up() -> None:
    order = Order(switch_id="s1", target=CHAT, requested_by="manual", started_at=0.0)
    taken = ((Phase.CONFIRMING, 1.0), (Phase.DRAINING, 2.0), (Phase.CONFIRMING, 3.0))
    switch = Switch(order=order, phase=Phase.STARTING, phase_started_at=6.0, phase_seconds=taken)
    assert describe_running(switch)["seconds"] == {"confirming": 4.0, "draining": 2.0}
