"""The chaos run finds each kind of loss, chooses by its seed, and leaves nothing behind."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from lab.chaos import balance, batches, facts, faults, heads, history, judging, operators
from lab.chaos.clients import INFERENCE_REFUSALS, crowd
from lab.chaos.disk import Disk
from lab.chaos.exchange import Answer, Exchanger, Request, Temper
from lab.chaos.judging import Scene, Verdict
from lab.chaos.known import Known, vector_difference
from lab.chaos.layout import Layout
from lab.chaos.ledger import End, Entry, Fault, Ledger, Order, Seen, Weapon
from lab.chaos.machine import Machine, refused_for_nothing
from lab.chaos.setting import BODY_LIMIT_BYTES, MODELS, Setting
from lab.drivers.gpu_server import write_gpu_server

from tests.patience import PATIENCE_S

SCRIPTS = Path(__file__).parents[2] / "scripts"

STATUSES = {"model_not_live": 409, "hold_timeout": 503, "internal_error": 500}
PROMPT = "Tell me of memory."
KNOWN = Known(
    texts={"demo-chat": {PROMPT: "Hello. I am"}, "bench-chat": {PROMPT: " uses mismea"}},
    vectors={"a": (1.0, 0.0)},
)

# One controller from second 0 to 100, whose server of epoch 1 had pid 501; a switch drained it from
# second 20 to 22 and stopped it.
LogEvent = tuple[str, float, dict[str, Any]]

LOG: list[LogEvent] = [
    ("backend.spawned", 1, {"epoch": 1, "pid": 501}),
    ("switch.phase", 20, {"switch_id": "s1", "phase": "draining"}),
    ("switch.phase", 22, {"switch_id": "s1", "phase": "stopping"}),
    ("switch.finished", 23, {"switch_id": "s1", "outcome": "switched"}),
    ("request.done", 22, {"request_id": "q1", "epoch": 1}),
]


def log_lines(events: list[LogEvent]) -> list[str]:
    return [
        json.dumps({"event": name, "timestamp": f"1970-01-01T00:00:{at:09.6f}Z", **fields}) + "\n"
        for name, at, fields in events
    ]


def facts_of(events: list[LogEvent]) -> facts.Facts:
    found = facts.Facts(began_at=0, ended_at=100)
    facts.add_lines(found, log_lines(events))
    return found


def scene(**changes: Any) -> Scene:
    given = Scene(
        facts=[facts_of(LOG)],
        faults=[],
        outages=[],
        policies={},
        statuses=STATUSES,
        drain_timeout_s=2.0,
    )
    return replace(given, **changes)


def entry(
    end: End = End.WHOLE, *, started_at: float = 10, ended_at: float = 22.1, **seen: Any
) -> Entry:
    return Entry(
        request_id="q1",
        kind="chat",
        model="demo-chat",
        started_at=started_at,
        ended_at=ended_at,
        seen=Seen(end=end, **seen),
        may_refuse=INFERENCE_REFUSALS,
    )


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        pytest.param(entry(status=200), Verdict.ANSWERED, id="answered"),
        pytest.param(
            entry(status=503, code="hold_timeout", should_retry="true", retry_after="1"),
            Verdict.REFUSED,
            id="refused",
        ),
        pytest.param(
            entry(status=503, code="hold_timeout", retry_after="3", should_retry="true"),
            Verdict.REFUSED,
            id="held",
        ),
        pytest.param(
            entry(status=503, code="hold_timeout", should_retry="false"),
            Verdict.REFUSED,
            id="waiting is no use",
        ),
        pytest.param(
            entry(status=503, code="hold_timeout", should_retry="true"),
            Verdict.LOST,
            id="again, but when?",
        ),
        pytest.param(entry(status=503, code="hold_timeout"), Verdict.LOST, id="no Retry-After"),
        pytest.param(entry(status=500, code="internal_error"), Verdict.LOST, id="a bug"),
        pytest.param(entry(status=409, code="so_what"), Verdict.LOST, id="undocumented code"),
        pytest.param(entry(status=400, code="model_not_live"), Verdict.LOST, id="other status"),
        pytest.param(entry(status=502), Verdict.LOST, id="no code"),
        pytest.param(entry(End.LEFT), Verdict.CANCELLED, id="client left"),
        pytest.param(entry(End.TIMED_OUT), Verdict.LOST, id="no answer"),
        pytest.param(entry(End.TRUNCATED, status=200), Verdict.LOST, id="clean end of a part"),
        pytest.param(
            replace(entry(status=200), wrong="by another model"), Verdict.WRONG, id="wrong answer"
        ),
    ],
)
def test_each_end_of_a_request_has_its_verdict(given: Entry, verdict: Verdict) -> None:
    assert judging.judge(given, scene())[0] is verdict


@pytest.mark.parametrize("end", [End.BROKEN, End.ERROR_EVENT, End.NO_CONNECTION])
def test_a_break_is_lost_unless_a_fault_of_the_run_explains_it(end: End) -> None:
    early = entry(end, status=200, ended_at=15)
    kill = Fault(at=14.9, weapon=Weapon.KILL, pid=501, aimed_at="serving")
    assert judging.judge(early, scene())[0] is Verdict.LOST
    assert judging.judge(early, scene(faults=[kill]))[0] is Verdict.SERVER
    assert judging.judge(early, scene(outages=[(14.9, 16.0)]))[0] is Verdict.CONTROLLER


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            Fault(at=14.9, weapon=Weapon.KILL, pid=502, aimed_at="serving"), id="another server"
        ),
        pytest.param(
            Fault(at=14.9, weapon=Weapon.STOP, pid=501, aimed_at="serving"), id="it only stopped"
        ),
        pytest.param(
            Fault(at=19.0, weapon=Weapon.KILL, pid=501, aimed_at="serving"), id="only afterwards"
        ),
    ],
)
def test_a_fault_that_cannot_have_broken_a_request_does_not_excuse_it(fault: Fault) -> None:
    broken = entry(End.BROKEN, status=200, ended_at=15)
    assert judging.judge(broken, scene(faults=[fault]))[0] is Verdict.LOST


def test_an_outage_before_or_after_a_request_does_not_excuse_its_break() -> None:
    broken = entry(End.BROKEN, started_at=10, ended_at=15)
    for outage in ((5.0, 9.0), (16.0, 18.0)):
        assert judging.judge(broken, scene(outages=[outage]))[0] is Verdict.LOST


def test_a_drain_deadline_excuses_a_break_only_where_the_policy_is_to_cancel() -> None:
    cut = entry(End.ERROR_EVENT, status=200, code="backend_unreachable")
    assert judging.judge(cut, scene())[0] is Verdict.DRAIN
    assert judging.judge(cut, scene(policies={"s1": "wait"}))[0] is Verdict.LOST
    assert judging.judge(cut, scene(drain_timeout_s=3.0))[0] is Verdict.LOST  # it was not due yet
    assert judging.judge(replace(cut, ended_at=21.0), scene())[0] is Verdict.LOST  # cut before it


def test_a_server_that_was_replaced_beside_its_successor_may_be_cut_when_it_is_due() -> None:
    replaced: list[LogEvent] = [
        LOG[0],
        ("switch.finished", 19, {"switch_id": "s1", "outcome": "switched"}),
        ("backend.retiring", 19, {"epoch": 1, "in_flight": 1}),
        LOG[4],
    ]
    cut = entry(End.BROKEN, status=200)
    assert judging.judge(cut, scene(facts=[facts_of(replaced)]))[0] is Verdict.DRAIN
    for others in (
        {"facts": [facts_of([*replaced[:2], LOG[4]])]},  # nobody replaced it
        {"facts": [facts_of(replaced)], "drain_timeout_s": 4.0},
        {"facts": [facts_of(replaced)], "policies": {"s1": "wait"}},
    ):
        assert judging.judge(cut, scene(**others))[0] is Verdict.LOST


def test_a_switch_keeps_the_policy_of_the_order_that_began_it() -> None:
    ledger = Ledger()
    ledger.orders.append(Order(switch_id="s1", policy="wait", sent_at=19))
    ledger.orders.append(Order(switch_id="s1", policy="cancel", sent_at=21))  # it only joined
    assert balance.policies_of(ledger, [facts_of(LOG)]) == {"s1": "wait"}


def test_a_stream_is_whole_only_with_its_end_mark() -> None:
    token = b'data: {"model":"demo-chat","choices":[{"delta":{"content":"Hello."}}]}\n\n'
    assert asyncio.run(ends_of([token, b"data: [DONE]\n\n"])) is End.WHOLE
    assert asyncio.run(ends_of([token])) is End.TRUNCATED
    assert asyncio.run(ends_of([token, token], leave_after_events=1)) is End.LEFT
    error = b'data: {"error":{"code":"backend_unreachable","message":"it died"}}\n\n'
    assert asyncio.run(ends_of([token, error], is_cut=True)) is End.ERROR_EVENT
    assert asyncio.run(ends_of([token], is_cut=True)) is End.BROKEN


async def ends_of(events: list[bytes], *, is_cut: bool = False, **temper: Any) -> End:
    """Stream events to the run's client from a server that ends cleanly, or is cut."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
        for event in events:
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        writer.write(b"" if is_cut else b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    ledger = Ledger()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        exchanger = Exchanger(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", ledger)
        found, _ = await exchanger.exchange(Request(kind="stream", path="/"), Temper(**temper))
    assert ledger.entries == [found]
    return found.seen.end


def chat_answer(model: str, text: str) -> Answer:
    return Answer(status=200, content={"model": model, "text": text})


def test_an_answer_by_another_model_or_with_another_text_is_found() -> None:
    assert KNOWN.chat_fault("demo-chat", PROMPT, chat_answer("demo-chat", "Hello. I am a")) is None
    assert KNOWN.chat_fault("demo-chat", PROMPT, chat_answer("demo-chat", "Hel")) is None  # a part
    assert KNOWN.chat_fault(None, PROMPT, chat_answer("bench-chat", " uses mismea")) is None
    for model, named, text in (
        ("demo-chat", "bench-chat", " uses mismea"),
        ("demo-chat", "demo-chat", " uses mismea"),
        (None, "minilm", "Hello. I am"),
        (None, "bench-chat", "Hello. I am"),
    ):
        assert KNOWN.chat_fault(model, PROMPT, chat_answer(named, text)), (model, named, text)


@pytest.mark.parametrize("vector", [(0.9, 0.1), (1.0, 0.0, 0.0), (float("nan"), 0.0)])
def test_another_vector_is_found(vector: tuple[float, ...]) -> None:
    assert vector_difference((1.0, 0.0), (0.9999, 0.0001)) is None
    assert vector_difference((1.0, 0.0), vector)


def test_a_switch_to_another_model_or_profile_than_asked_for_is_found() -> None:
    report = {"outcome": "switched", "model": "minilm", "profile": "few"}
    for target, is_right in (
        ({"model_name": "minilm"}, True),
        ({"model_name": "minilm", "profile": "few"}, True),
        ({"model_name": "minilm", "profile": "embedding"}, False),
        ({"model_name": "demo-chat"}, False),
    ):
        fault = operators.order_fault(target, Answer(status=200, content=report))
        assert (fault is None) is is_right


def waited(
    request_id: str,
    arrived_at: float,
    let_in_at: float,
    *,
    by: str = "demo-chat",
    batch: bool = False,
) -> tuple[LogEvent, Entry]:
    """A request for a model that was let in at a moment, and answered half a second later."""
    over_at = let_in_at + 0.5
    waited_s, took_s = let_in_at - arrived_at, over_at - arrived_at
    told = {"request_id": request_id, "epoch": 1, "waited_s": waited_s, "took_s": took_s}
    seen = entry(status=200, started_at=arrived_at, ended_at=over_at)
    asked = replace(seen, request_id=request_id, model=by, is_batch=batch)
    return ("request.done", over_at, told), asked


def switched(number: int, model: str, began_at: float, **fields: Any) -> list[LogEvent]:
    """A switch of the scheduler to a model, which takes a second."""
    told = {"switch_id": f"t{number}", "model": model}
    ended = {"outcome": "switched", "requested_by": "scheduler", **fields}
    name = "switch.failed" if ended["outcome"] == "failed" else "switch.finished"
    return [
        ("switch.phase", began_at, {**told, "phase": "preflight"}),
        (name, began_at + 1, {**told, **ended}),
    ]


PASSED_OVER = [
    *switched(1, "bench-chat", 10),
    *switched(2, "minilm", 14),
    *switched(3, "bench-chat", 18),
    *switched(4, "demo-chat", 22),
]


def promise_to(
    *waits: tuple[LogEvent, Entry], log: list[LogEvent] = PASSED_OVER, **changes: Any
) -> heads.Promise:
    found = facts_of([*log, *(told for told, _ in waits)])
    given: dict[str, Any] = {"faults": [], "bounds": []} | changes
    return heads.judge_heads([asked for _, asked in waits], found, **given)


def test_head_that_is_passed_over_twice_by_one_model_is_found() -> None:
    passed_over = promise_to(waited("q1", 10.5, 23))
    [broken] = passed_over.violations
    assert "'bench-chat' came 2 times" in broken.what
    assert promise_to(waited("q1", 11.5, 23)).violations == ()  # the first stay had begun before
    assert promise_to(waited("q1", 10.5, 23, batch=True)) == heads.Promise()
    assert promise_to(waited("q1", 10.5, 10.51)) == heads.Promise()  # it was let in at once


def test_only_the_first_of_a_queue_is_promised_anything() -> None:
    behind = promise_to(waited("q1", 10.2, 20), waited("q2", 10.5, 23))
    assert behind.heads == 2
    assert all("q1" in broken.what for broken in behind.violations)


def test_head_that_waits_while_others_are_served_for_longer_than_its_bound_is_found() -> None:
    once = PASSED_OVER[2:]  # minilm is served from 15 to 18, bench-chat from 19 to 22
    wait = waited("q1", 14.5, 23)
    assert promise_to(wait, log=once, bounds=[(16.0, {"demo-chat": 6.0})]).violations == ()
    [broken] = promise_to(wait, log=once, bounds=[(16.0, {"demo-chat": 5.0})]).violations
    assert "others were served for 6.00 s" in broken.what
    assert promise_to(wait, log=once, bounds=[(2.0, {"demo-chat": 5.0})]).violations == ()  # old


def test_head_that_a_fault_or_a_hand_held_up_is_counted_and_not_judged() -> None:
    wait = waited("q1", 10.5, 23)
    shot = Fault(at=20, weapon=Weapon.STOP, pid=501, aimed_at="serving")
    by_hand = [*PASSED_OVER[:4], *switched(3, "bench-chat", 18, requested_by="manual")]
    failed = [*PASSED_OVER, *switched(5, "minilm", 19.5, outcome="failed")]
    for changes in ({"faults": [shot]}, {"log": [*by_hand, *PASSED_OVER[6:]]}, {"log": failed}):
        held = promise_to(wait, **changes)
        assert (held.heads, held.held, held.violations) == (1, 1, ())


def test_stream_that_is_refused_before_it_begins_is_told_why_and_one_that_has_begun_is_lost() -> (
    None
):
    refused = entry(End.ERROR_EVENT, status=200, code="hold_timeout", has_begun=False)
    assert judging.judge(refused, scene()) == (Verdict.REFUSED, "hold_timeout")
    begun = replace(refused, ended_at=15, seen=replace(refused.seen, has_begun=True))
    assert judging.judge(begun, scene())[0] is Verdict.LOST
    unknown = entry(End.ERROR_EVENT, status=200, code="so_what", has_begun=False)
    assert judging.judge(unknown, scene())[0] is Verdict.LOST


def test_that_another_model_is_live_is_no_reason_to_refuse_what_computes() -> None:
    assert judging.judge(entry(status=409, code="model_not_live"), scene())[0] is Verdict.LOST


def test_two_switches_at_once_are_found_in_the_log() -> None:
    assert not facts.interleaved(facts_of(LOG))
    second: LogEvent = ("switch.phase", 21, {"switch_id": "s2", "phase": "preflight"})
    [(at, _)] = facts.interleaved(facts_of([*LOG[:2], second]))
    assert at == 21


def test_a_server_that_nobody_ended_is_found_when_it_dies() -> None:
    died = facts_of([*LOG, ("backend.died", 30, {"epoch": 1, "model": "minilm"})])
    assert facts.unexpected_deaths(died, frozenset({501}), "swapped") == []
    assert facts.unexpected_deaths(died, frozenset({502}), "minilm") == []
    assert len(facts.unexpected_deaths(died, frozenset({502}), "swapped")) == 1


def test_errors_and_tracebacks_in_the_log_are_troubles_but_not_half_a_last_line() -> None:
    lines = log_lines([*LOG, ("request.failed", 40, {"level": "error"})])
    found = facts.Facts(began_at=0, ended_at=100)
    facts.add_lines(found, [*lines, "Traceback:\n", "  in x\n", *log_lines(LOG), '{"event": "ba'])
    assert [at for at, _ in found.troubles] == [40, 40]
    assert found.troubles[1][1] == "Traceback:\n  in x"


def test_hits_are_counted_in_the_phase_that_the_log_tells() -> None:
    shots = [
        Fault(at=at, weapon=Weapon.KILL, pid=501, aimed_at="starting") for at in (10, 21, 22.5, 30)
    ]
    drawn = balance.draw_balance(Ledger(), scene(faults=shots), {})
    assert drawn.hits[Weapon.KILL] == {"serving": 2, "draining": 1, "stopping": 1}


def record(switch_id: str, ended_at: float, **changes: Any) -> dict[str, Any]:
    return {
        "switch_id": switch_id,
        "outcome": "switched",
        "ended_at": ended_at,
        "seconds": {"total": 1.0},
        "error": None,
    } | changes


def test_a_history_that_contradicts_itself_is_found() -> None:
    good = [record("s3", 30), record("s2", 20), record("s1", 10)]
    assert history.problems_of([{"switch_id": "s4", "outcome": "running"}, *good]) == []
    for bad in (
        [good[1], good[0]],
        [record("s4", 30.5), *good],
        [good[0], *good],
        [record("s4", 40, outcome="running"), record("s5", 39, outcome="running")],
        [record("s4", 40, outcome="failed")],
        [record("s4", 40, error={"code": "backend_died"})],
    ):
        assert history.problems_of(bad), bad


def test_a_switch_that_a_restart_forgot_or_changed_is_found() -> None:
    before = [record("s3", 30), record("s2", 20)]
    assert history.forgotten(before, [before[1]], killed_at=30.5) == []  # too late for the disk
    assert history.forgotten(before, before, killed_at=40) == []
    assert len(history.forgotten(before, [before[1]], killed_at=40)) == 1
    changed = [before[0], before[1] | {"outcome": "failed"}]
    assert len(history.forgotten(before, changed, killed_at=40)) == 1


def test_a_switch_in_the_log_that_the_history_lacks_is_found() -> None:
    assert history.unlisted([facts_of(LOG)], [record("s1", 23)]) == []
    assert len(history.unlisted([facts_of(LOG)], [])) == 1


def test_the_balance_adds_up_and_names_what_nobody_answered_for() -> None:
    ledger = Ledger()
    ledger.entries += [entry(status=200), entry(End.TIMED_OUT)]
    ledger.pending["q2"] = 50.0
    ledger.violate("orphan", "pid 7 outlived its controller")
    drawn = balance.draw_balance(ledger, scene(), {"resident_mb": 80})
    assert drawn.sent == 3
    assert drawn.counts == {"chat": {Verdict.ANSWERED: 1, Verdict.LOST: 1}}
    assert sorted(each.rule for each in drawn.violations) == ["lost", "lost", "orphan"]
    assert not drawn.is_clean
    assert "lost 1" in balance.tables(drawn, ("draining",))
    assert balance.as_json(drawn, {"seed": 7})["totals"][Verdict.LOST] == 1


def test_choices_depend_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    def chosen(seed: int) -> list[Any]:
        setting = Setting(
            seed=seed, seconds=1, models=tmp_path, work_dir=tmp_path, llama_server=tmp_path
        )
        clients = {
            name: [(s.request.body, s.temper, s.pause_s) for s in islice(steps, 5)]
            for name, steps in crowd(KNOWN, setting).items()
        }
        shots = list(islice(faults.draw_shots(setting.choices("marksman")), 5))
        source = setting.choices("operator")
        return [clients, shots, [operators.draw_wish(source) for _ in range(5)]]

    assert chosen(1) == chosen(1)
    assert all(a != b for a, b in zip(chosen(1), chosen(2), strict=True))


def test_only_chosen_faults_are_made(tmp_path: Path) -> None:
    swept = list(islice(faults.draw_shots(random.Random(3), [Weapon.SWEEP]), 20))
    assert {shot.weapon for shot in swept} == {Weapon.SWEEP}
    assert list(faults.draw_shots(random.Random(3), [])) == []
    setting = setting_of(tmp_path, faults=frozenset({"half-close"}))
    names = crowd(KNOWN, setting).keys()
    assert "half-closer" in names
    assert not {"uploader", "non-reader 0"} & names


def setting_of(folder: Path, **changes: Any) -> Setting:
    given = Setting(seed=1, seconds=1, models=folder, work_dir=folder, llama_server=folder)
    return replace(given, **changes)


def test_uploads_are_of_the_largest_size_that_is_taken_or_of_one_byte_more(tmp_path: Path) -> None:
    steps = crowd(KNOWN, setting_of(tmp_path))["uploader"]
    requests = [step.request for step in islice(steps, 30)]
    wanted = {(len(r.body or b"") - BODY_LIMIT_BYTES, *r.right_statuses) for r in requests}
    assert wanted == {(0, 200), (1, 413)}
    assert json.loads(requests[0].body or b"")["model"] == requests[0].model


@pytest.mark.parametrize("fast_lane", [None, True, False])
def test_fast_lane_is_written_only_when_it_is_given(tmp_path: Path, fast_lane: bool | None) -> None:
    for name in MODELS:
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF" + bytes(2000))
    work_dir = tmp_path / "work"
    work_dir.mkdir()
    layout = Layout(replace(setting_of(tmp_path), work_dir=work_dir, fast_lane=fast_lane))
    try:
        layout.write(is_exclusive=True)
        written = yaml.safe_load((layout.profiles / "supervisor.yaml").read_text())["server"]
        assert written.get("fast_lane", None) is fast_lane
        assert ("fast_lane" in written) is (fast_lane is not None)
    finally:
        layout.disk.close()


def test_disk_that_is_full_takes_nothing_until_it_is_freed(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "data")
    try:
        if not disk.can_be_full:
            pytest.skip("root, who may not mount a file system, is refused nothing")
        disk.fill()
        with pytest.raises(OSError, match=r"No space left|Permission denied"):
            (tmp_path / "data" / "new").write_bytes(bytes(1 << 17))
        disk.free()
        (tmp_path / "data" / "new").write_bytes(bytes(1 << 17))
        (tmp_path / "data" / "run-1").mkdir()
        disk.sweep_sockets()
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["new"]
    finally:
        disk.close()


def test_switch_may_be_forgotten_only_where_a_full_disk_was_followed_by_a_kill() -> None:
    ledger = Ledger(full_disks=[(10.0, 12.0)])
    assert not ledger.may_be_unwritten(11)
    ledger.faults.append(Fault(at=15, weapon=Weapon.CONTROLLER_TERM, pid=1, aimed_at="serving"))
    assert not ledger.may_be_unwritten(11)
    ledger.faults.append(Fault(at=15, weapon=Weapon.CONTROLLER_KILL, pid=1, aimed_at="serving"))
    assert ledger.may_be_unwritten(11)
    assert not ledger.may_be_unwritten(14)
    before = [record("s3", 11)]
    assert history.forgotten(before, [], 15, ledger.may_be_unwritten) == []
    assert len(history.forgotten(before, [], 15)) == 1
    assert history.unlisted([facts_of(LOG)], [], lambda at: at == 23) == []


def test_server_whose_socket_was_swept_may_end_and_with_it_its_requests() -> None:
    swept = Fault(at=14.9, weapon=Weapon.SWEEP, pid=501, aimed_at="serving")
    broken = entry(End.BROKEN, status=200, ended_at=15)
    assert judging.judge(broken, scene(faults=[swept]))[0] is Verdict.SERVER
    lost: list[LogEvent] = [
        ("backend.lost", 15, {"epoch": 1, "level": "error"}),
        ("backend.died", 15, {"epoch": 1, "model": "minilm"}),
    ]
    found = facts_of([*LOG, *lost])
    assert found.troubles == []
    assert len(facts.unexpected_deaths(found, frozenset(), "swapped")) == 1
    assert facts.unexpected_deaths(found, scene(faults=[swept]).ended_pids(), "swapped") == []


@pytest.mark.parametrize("is_chunked", [True, False])
def test_client_that_half_closes_takes_the_answer_and_misses_it_where_none_comes(
    is_chunked: bool,
) -> None:
    body = json.dumps({"model": "demo-chat", "text": "Hello"}).encode()
    coded = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % len(body)
    whole = b"HTTP/1.1 200 OK\r\n%s\r\n\r\n%s" % (framing, coded)
    assert asyncio.run(half_closed(whole)) is End.WHOLE
    assert asyncio.run(half_closed(b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + whole)) is End.WHOLE
    assert asyncio.run(half_closed(b"")) is End.BROKEN


async def half_closed(content: bytes) -> End:
    """Answer a client only after it has closed its side."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.read()).endswith(b"{}")
        writer.write(content)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        exchanger = Exchanger(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", Ledger())
        request = Request(kind="half-closer", path="/", body=b"{}")
        found, _ = await exchanger.exchange(request, Temper(half_closes=True))
    return found.seen.end


def test_each_weapon_is_aimed_at_each_phase_before_any_comes_again() -> None:
    shots = faults.draw_shots(random.Random(3))
    count = len(Weapon) * (len(faults.PHASES) + 1) - 3  # servers cannot be hit while confirming
    aims = [(shot.weapon, shot.phase) for shot in islice(shots, count)]
    assert len(set(aims)) == count
    assert (Weapon.CONTROLLER_KILL, "confirming") in aims


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(setting_of(tmp_path, devices=2))
    yield machine
    machine.close()


def start_server(machine: Machine, devices: str, vram_gib: int) -> subprocess.Popen[bytes]:
    """Start what takes memory as a server does, and lives on without serving."""
    sleeps = machine.llama_server.with_name("sleeps")
    sleeps.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeps.chmod(0o755)
    taking = machine.llama_server.with_name("taking")
    write_gpu_server(taking, sleeps)
    uuids = ",".join(f"GPU-{device}000aaaa-0000" for device in devices)
    return subprocess.Popen(
        [taking, "--model", "m.gguf"],
        env=os.environ
        | machine.environment
        | {"CUDA_VISIBLE_DEVICES": uuids, "VRAM_BYTES": str(vram_gib << 30)},
    )


def test_start_that_a_gpu_has_no_room_for_is_found_unless_somebody_came_just_before(
    machine: Machine,
) -> None:
    with start_server(machine, "01", 40) as first:
        try:
            while not machine.holders(1):
                assert first.poll() is None
                time.sleep(0.01)
            assert machine.holders(0) == machine.holders(1) == {first.pid}
            assert list(machine.overcommitted()) == []
            with start_server(machine, "1", 5) as second:
                assert second.wait() != 0
            [(_, what)] = machine.overcommitted()
            assert f"pid={second.pid}" in what
        finally:
            first.kill()


def test_refusal_for_want_of_memory_is_found_unless_a_fault_of_the_gpus_took_it() -> None:
    failed = switched(1, "minilm", 14, outcome="failed", reason="gpu0 has 11.0 GiB free")
    runs = facts_of(failed).switches
    late = Fault(at=12, weapon=Weapon.LATE_RELEASE, pid=1, aimed_at="serving")
    killed = replace(late, weapon=Weapon.KILL)
    assert list(refused_for_nothing(runs, [late])) == []
    for others in ([], [killed], [replace(late, at=16.0)], [replace(late, at=-60.0)]):
        assert len(list(refused_for_nothing(runs, others))) == 1
    other_reason = switched(1, "minilm", 14, outcome="failed", reason="its file is cut short")
    assert list(refused_for_nothing(facts_of(other_reason).switches, [])) == []


def storm(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lab.chaos", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), **environment},
    )


@pytest.fixture
def surroundings(llama_server_bin: Path) -> Iterator[dict[str, str]]:
    """Where a storm writes; afterwards no file is left there, and no process has it in its name.

    Its path is short, because sockets stand in it (unix(7)).
    """
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        yield {"TMPDIR": folder, "LLAMA_SERVER_BIN": str(llama_server_bin)}
        assert list(Path(folder).iterdir()) == []
        left = [p for p in psutil.process_iter(["cmdline"]) if folder in str(p.info["cmdline"])]
        assert left == []


@pytest.mark.parametrize("devices", [0, 2])
def test_a_short_storm_is_clean_and_leaves_nothing(
    surroundings: dict[str, str], tmp_path: Path, models_dir: Path, devices: int
) -> None:
    report = tmp_path / "chaos.json"
    for seconds in ("10", "60"):  # on a slow machine little happens in the first
        run = storm(
            *("--seconds", seconds, "--seed", "49", "--queue", "file", "--devices", str(devices)),
            *("--json", report, "--models", models_dir),
            **surroundings,
        )
        told, progress = run.communicate()
        assert run.returncode == 0, f"{told}\n{progress}"
        drawn = json.loads(report.read_text(encoding="utf-8"))
        if drawn["figures"]["controllers"] > 1 and drawn["figures"]["batches"] > 0:
            break
    assert "seed 49" in progress.splitlines()[0]
    assert "seed 49" in told.splitlines()[-1]
    assert drawn["sent"] == sum(drawn["totals"].values())
    assert drawn["totals"]["answered"] > 0
    assert drawn["figures"]["controllers"] > 1
    assert drawn["figures"]["batches"] > 0
    assert drawn["figures"].get("shares_taken", 0) >= devices
    assert sum(sum(row.values()) for row in drawn["faults"].values()) > 0


def test_a_storm_that_is_interrupted_leaves_nothing(
    surroundings: dict[str, str], models_dir: Path
) -> None:
    run = storm("--seconds", "60", "--models", models_dir, **surroundings)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("storm of"):
            break
    deadline = time.monotonic() + PATIENCE_S
    folder = surroundings["TMPDIR"]
    while folder not in str([p.info["cmdline"] for p in psutil.process_iter(["cmdline"])]):
        assert time.monotonic() < deadline
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 2


def test_a_storm_without_models_says_so(surroundings: dict[str, str], tmp_path: Path) -> None:
    run = storm("--seconds", "1", "--models", tmp_path / "absent", **surroundings)
    _, progress = run.communicate()
    assert run.returncode == 2
    assert "there is no" in progress


BATCH = batches.Batch(
    id="batch_1", lines={name: lambda answer: answer.content.get("fault") for name in "abc"}
)


def answered(name: str, **body: Any) -> dict[str, Any]:
    response = {"status_code": 200, "body": body}
    return {"custom_id": name, "response": response, "error": None}


def failed(name: str, code: str) -> dict[str, Any]:
    return {"custom_id": name, "response": None, "error": {"code": code}}


def ended(output: int, errors: int = 0, status: str = "completed") -> dict[str, Any]:
    counts = {"total": 3, "completed": output, "failed": errors}
    return {"status": status, "errors": None, "request_counts": counts}


@pytest.mark.parametrize(
    ("batch", "output", "errors"),
    [
        (ended(3), [answered(name) for name in "cab"], []),
        (ended(2, 1), [answered("a"), answered("b")], [failed("c", "attempts_exhausted")]),
    ],
)
def test_batch_is_whole_with_each_line_once(batch: Any, output: Any, errors: Any) -> None:
    assert batches.problems_of(BATCH, batch, output, errors) == []


@pytest.mark.parametrize(
    ("batch", "output", "errors", "said"),
    [
        (ended(2), "ab", [], "line c is missing"),
        (ended(4), "abca", [], "line a is there 2 times"),
        (ended(3, 1), "abc", [failed("a", "attempts_exhausted")], "line a is there 2 times"),
        (ended(4), "abcd", [], "line d was never asked"),
        (ended(2, 1), "ab", [failed("c", "batch_cancelled")], "line c failed"),
        (ended(2), "abc", [], "3 are in the output file"),
        (ended(0, 0, "expired"), "", [], "it is expired"),
    ],
)
def test_batch_that_lost_or_doubled_a_line_is_found(
    batch: Any, output: str, errors: Any, said: str
) -> None:
    written = [answered(name) for name in output]
    assert any(said in each for each in batches.problems_of(BATCH, batch, written, errors))


def test_wrong_answer_in_a_batch_is_found() -> None:
    output = [answered("a"), answered("b", fault="another model"), answered("c")]
    assert batches.problems_of(BATCH, ended(3), output, []) == ["line b: another model"]


def test_batch_that_was_cancelled_may_have_lines_that_were_not_done() -> None:
    cancelled = replace(BATCH, was_cancelled=True)
    errors = [failed("b", "batch_cancelled"), failed("c", "batch_cancelled")]
    batch = ended(1, 0, "cancelled")
    assert batches.problems_of(cancelled, batch, [answered("a")], errors) == []
    assert batches.problems_of(cancelled, batch, [answered("a")], errors[:1]) == [
        "line c is missing"
    ]
