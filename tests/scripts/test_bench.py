"""The benchmark measures every figure on both sides, and takes no broken answer for a whole one."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
import yaml
from lab.bench import prompt_cache, steady, warm_start
from lab.harness import large_model, servers, setting
from lab.harness.lean import LeanLoad, drive

from supervisor.engine.models.model_file import inspect_model_file
from supervisor.engine.models.page_cache import look_at_chunks
from tests.patience import PATIENCE_S

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ("--seconds", "0.3", "--rounds", "1", "--starts", "1", "--switches", "2")

QUANTITIES = {
    "listening": ["start until /health answers", "resident after a switch and 200 requests"],
    "switch": ["stop and start, seen by the caller"],
    "embeddings": [
        "8 clients",
        "1 client",
        "1 client, median",
        "8 clients, processor time",
        "failed",
    ],
}

TOKEN = b'data: {"choices":[{"delta":{"content":" word"}}]}\n\n'
END_MARK = b"data: [DONE]\n\n"
SWITCH_FIGURES = ["overhead", "make_before_break", "prompt_cache", "warm_start", "held"]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
CHAT = LeanLoad(
    requests=[b"POST / HTTP/1.1\r\n\r\n"],
    mark=b'"delta":{"content":"',
    units_per_answer=64,
    end=END_MARK,
)


def run_bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.bench", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(SCRIPTS), **environment},
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, llama_server_bin: Path, models_dir: Path
) -> tuple[str, dict[str, Any]]:
    """The table and the JSON of a run, as short as it can be.

    Streams are counted as embeddings are, and left out: 64 of them take longer than all else.
    """
    report = tmp_path_factory.mktemp("bench") / "new" / "serve.json"
    run = run_bench(
        "serve",
        *("--only", *QUANTITIES),
        *QUICK,
        *("--json", report, "--models", models_dir),
        LLAMA_SERVER_BIN=str(llama_server_bin),
    )
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(report.read_text(encoding="utf-8"))


def test_every_figure_has_its_rows_in_json_with_numbers_and_a_verdict(
    finished: tuple[str, dict[str, Any]],
) -> None:
    figures = finished[1]["figures"]
    assert {
        name: [row["quantity"] for row in each["rows"]] for name, each in figures.items()
    } == QUANTITIES
    for row in (row for each in figures.values() for row in each["rows"]):
        numbers = [row[key] for key in ("direct", "controller", "judged", "lower", "upper")]
        assert all(map(math.isfinite, numbers)), row
        assert isinstance(row["is_met"], bool)


def test_the_table_shows_each_row_with_its_target(finished: tuple[str, dict[str, Any]]) -> None:
    table, report = finished
    lines = table.splitlines()
    for name, figure in report["figures"].items():
        for row in figure["rows"]:
            label = ", ".join(filter(None, (row["quantity"], row["unit"])))
            (line,) = [
                each for each in lines if each.startswith(f"{name} ") and f"  {label}  " in each
            ]
            assert f"{row['target']['bound']:g} " in line
            assert line.endswith("met" if row["is_met"] else "MISSED")


def test_both_sides_worked_in_every_turn_and_nothing_failed(
    finished: tuple[str, dict[str, Any]],
) -> None:
    figures = finished[1]["figures"]
    loads = figures["embeddings"]["samples"].values()
    turns = [each for load in loads for side in load.values() for each in side]
    assert len(turns) == 2 * 2
    for turn in turns:
        assert turn["failures"] == {}
        assert turn["requests"] > 0
        assert turn["median_latency_ms"] > 0


def test_samples_tell_phases_of_each_switch_and_the_processor_time_of_each_turn(
    finished: tuple[str, dict[str, Any]],
) -> None:
    figures = finished[1]["figures"]
    switches = figures["switch"]["samples"]["switches"]
    assert [(each["from"], each["to"]) for each in switches] == [
        ("demo-chat", "minilm"),
        ("minilm", "demo-chat"),
    ]
    assert all({"stopping", "starting", "total"} <= each["phases_s"].keys() for each in switches)
    for side in ("direct", "controller"):
        (measured,) = figures["embeddings"]["samples"]["8 clients"][side]
        assert {"direct", "controller", "child", "client"} == measured["cpu"]["by_role_s"].keys()


def test_a_run_that_cannot_be_measured_fails_and_says_why(tmp_path: Path) -> None:
    report = tmp_path / "serve.json"
    run = run_bench("serve", *QUICK, "--json", report, "--profiles", tmp_path / "absent")
    assert run.returncode == 1
    assert "there is no such folder" in run.stderr
    assert not report.exists()


@pytest.fixture
def failures_of_streams() -> Iterator[Callable[[bytes], tuple[int, dict[str, int]]]]:
    """Sends one chat to a server that answers with these bytes and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(content: bytes) -> None:
            connection, _ = listener.accept()
            with closing(connection):
                connection.recv(65536)
                connection.sendall(content)

        def measure(content: bytes) -> tuple[int, dict[str, int]]:
            server = threading.Thread(target=answer, args=(content,))
            server.start()
            tally = drive(CHAT, servers.Endpoint(port=listener.getsockname()[1]), 1, seconds=0.0)
            server.join()
            return tally.all_units, dict(tally.failures)

        yield measure


def chunked(content: bytes) -> bytes:
    return f"{len(content):x}\r\n".encode() + content + b"\r\n"


def test_a_whole_stream_is_no_failure_wherever_its_chunks_are_cut(
    failures_of_streams: Callable[[bytes], tuple[int, dict[str, int]]],
) -> None:
    whole = TOKEN * 64 + END_MARK
    pieces = b"".join(chunked(whole[at : at + 7]) for at in range(0, len(whole), 7))
    assert failures_of_streams(HEAD + pieces + LAST_CHUNK) == (64, {})


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(chunked(TOKEN * 64 + END_MARK), id="cut before its last chunk"),
        pytest.param(chunked(TOKEN * 64) + LAST_CHUNK, id="without its end mark"),
        pytest.param(chunked(TOKEN * 63 + END_MARK) + LAST_CHUNK, id="short of a token"),
        pytest.param(chunked(TOKEN * 64 + END_MARK)[:-20], id="cut within a chunk"),
    ],
)
def test_a_stream_that_is_not_whole_is_a_failure(
    content: bytes, failures_of_streams: Callable[[bytes], tuple[int, dict[str, int]]]
) -> None:
    _, failures = failures_of_streams(HEAD + content)
    assert sum(failures.values()) == 1


def test_stream_behind_which_the_server_closes_is_followed_by_another_and_is_not_a_failure() -> (
    None
):
    whole = HEAD + chunked(TOKEN * 64 + END_MARK) + LAST_CHUNK
    answers, is_over = 0, threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)

        def serve() -> None:
            nonlocal answers
            while True:
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    if is_over.is_set():
                        return
                    continue
                with connection:
                    connection.recv(65536)
                    connection.sendall(whole)
                    answers += 1

        server = threading.Thread(target=serve)
        server.start()
        tally = drive(CHAT, servers.Endpoint(port=listener.getsockname()[1]), 2, seconds=0.2)
        is_over.set()
        server.join()
    assert dict(tally.failures) == {}
    assert len(tally.latencies_s) == answers > 2
    assert tally.all_units == 64 * answers


def test_peer_is_a_side_of_its_own_and_judged_by_how_often_the_relay_outdoes_it(
    tmp_path: Path, llama_server_bin: Path, models_dir: Path, serve: Callable[..., str]
) -> None:
    report = tmp_path / "relay.json"
    peer = serve(models_dir / "minilm.gguf", "--embeddings")
    run = run_bench(
        *("relay", "--only", "tokenize", "--seconds", "0.3", "--rounds", "2"),
        *("--peer", f"bare={peer}", "--json", report, "--models", models_dir),
        LLAMA_SERVER_BIN=str(llama_server_bin),
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads(report.read_text(encoding="utf-8"))["figures"]["tokenize"]["rows"]
    many, over, one, cost, failed = rows
    assert [row["target"]["bound"] for row in rows] == [12_000, 1.5, 4_500, 75, 0]
    assert over["quantity"] == "8 clients, over bare"
    assert over["direct"] == many["peers"]["bare"] > 0
    assert over["controller"] == many["controller"] == many["judged"]
    assert one["peers"]["bare"] > 0
    assert cost["controller"] > cost["direct"] > 0
    assert failed["peers"] == {"bare": 0}
    heads = run.stdout.splitlines()[0].split()
    assert heads == [
        "figure",
        "quantity",
        "direct",
        "controller",
        "bare",
        "judged",
        "range",
        "target",
    ]


def test_peer_that_does_not_run_is_named(tmp_path: Path, models_dir: Path) -> None:
    run = run_bench(
        *("relay", "--only", "tokenize", "--peer", "swap=http://127.0.0.1:9/upstream/{model}"),
        *("--json", tmp_path / "relay.json", "--models", models_dir),
    )
    assert run.returncode == 1
    assert "no process of this machine listens at http://127.0.0.1:9/" in run.stderr


def test_suite_of_the_switch_names_its_figures_and_takes_only_the_options_it_uses() -> None:
    told = run_bench("switch", "--help").stdout
    assert ", ".join(SWITCH_FIGURES) in " ".join(told.split())
    refused = run_bench("switch", "--seconds", "1")
    assert refused.returncode == 2
    assert "--seconds" in refused.stderr


def test_overhead_of_a_switch_is_judged_and_the_share_of_the_confirmation_told(
    tmp_path: Path, llama_server_bin: Path, models_dir: Path
) -> None:
    report = tmp_path / "switch.json"
    run = run_bench(
        *("switch", "--only", "overhead", "--switches", "2"),
        *("--json", report, "--models", models_dir),
        LLAMA_SERVER_BIN=str(llama_server_bin),
    )
    assert run.returncode == 0, run.stderr
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content["suite"] == "switch"
    assert content["options"] == {"engine": "llama-server", "rounds": 3, "switches": 2}
    (figure,) = content["figures"].values()
    (row,) = figure["rows"]
    assert row["judged"] == pytest.approx(row["controller"] - row["direct"], abs=0.01)
    assert row["target"] == {"sense": "at most", "bound": 60}
    assert any("confirm that memory is released" in note for note in figure["notes"])


def test_figure_changes_the_configuration_only_in_what_it_names(
    tmp_path: Path, profiles_dir: Path
) -> None:
    settings = setting.Setting(
        profiles=profiles_dir,
        models=tmp_path,
        work_dir=tmp_path,
        engine="llama-server",
        seconds=1.0,
        rounds=1,
        starts=1,
        switches=2,
    )
    changes: dict[str, dict[str, Any]] = {
        "supervisor.yaml": {"devices": {"host": {"exclusive": False}}},
        "other.yaml": {"extends": "generation"},
    }
    changed = setting.with_changes(settings, "changed", changes).profiles
    shipped = yaml.safe_load((profiles_dir / "supervisor.yaml").read_text())
    shipped["devices"]["host"]["exclusive"] = False
    assert yaml.safe_load((changed / "supervisor.yaml").read_text()) == shipped
    assert yaml.safe_load((changed / "other.yaml").read_text()) == {"extends": "generation"}
    assert (changed / "models.yaml").read_text() == (profiles_dir / "models.yaml").read_text()


class SlowAtFirst(BaseHTTPRequestHandler):
    """Answers the first request late and all others at once."""

    protocol_version = "HTTP/1.1"
    first_takes_s: ClassVar[float] = 0.3
    has_served: ClassVar[threading.Event]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if not self.has_served.is_set():
            self.has_served.set()
            time.sleep(self.first_takes_s)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *_: object) -> None:  # noqa: A002 - the library's name
        pass


def test_steady_client_counts_the_wait_of_the_requests_that_it_could_not_send() -> None:
    SlowAtFirst.has_served = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), SlowAtFirst) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()

        def send() -> None:
            address = f"http://127.0.0.1:{server.server_port}/"
            assert urlopen(address, data=b"{}", timeout=10).read() == b"{}"

        with steady.steady(send, clients=1, requests_per_s=20.0) as tally:
            deadline_at = time.monotonic() + PATIENCE_S
            while tally.requests < 4:
                assert time.monotonic() < deadline_at
                time.sleep(0.01)
        server.shutdown()
    assert tally.failures == []
    late_s = [0.3 - number * 0.05 for number in range(4)]
    assert all(took_s > late for took_s, late in zip(tally.latencies_s[:4], late_s, strict=True)), (
        tally.latencies_s
    )


def test_conversations_are_long_begin_differently_and_take_turns() -> None:
    module = prompt_cache
    first, second = module.conversation_of(0), module.conversation_of(1)
    assert [message["role"] for message in first] == ["user", "assistant"] * (module.TURNS // 2)
    assert sum(len(message["content"].split()) for message in first) == module.WORDS
    assert first[0]["content"][:80] != second[0]["content"][:80]


def test_timings_are_those_of_the_last_event_of_a_stream() -> None:
    timings_of = prompt_cache.timings_of
    last = b'data: {"choices":[],"timings":{"cache_n":7,"prompt_n":1}}\n\n'
    assert timings_of(TOKEN + last + END_MARK) == {"cache_n": 7, "prompt_n": 1}
    assert timings_of(TOKEN + END_MARK) is None


def test_log_gives_the_lines_of_an_event_and_no_others(tmp_path: Path) -> None:
    log = tmp_path / "controller.log"
    lines = ('{"event":"request.done","waited_s":0.5}', "no JSON", '{"event":"of request.done"}')
    log.write_text("\n".join(lines))
    assert servers.events_in(log, "request.done") == [{"event": "request.done", "waited_s": 0.5}]


def test_time_without_service_is_what_comes_after_the_drain() -> None:
    phases = {"preflight": 0.1, "draining": 3.0, "stopping": 0.5, "starting": 1.0, "total": 4.6}
    assert warm_start.after_the_drain_s(phases) == pytest.approx(1.5)


def test_large_model_is_a_whole_model_of_more_than_a_gigabyte(tmp_path: Path) -> None:
    module = large_model
    small = type(module.SHAPE)(
        context_tokens=64, layers=2, width=64, feed_forward=128, heads=1, head_size=64
    )
    module.write_large_model(tmp_path / "small.gguf", small)
    header = inspect_model_file(tmp_path / "small.gguf").header
    assert header.architecture == "llama"
    shape = module.SHAPE
    attention = 4 * shape.width * shape.heads * shape.head_size
    weights = shape.layers * (attention + 3 * shape.width * shape.feed_forward)
    assert 2 * weights > 1_000_000_000


def test_file_is_cold_after_it_was_dropped_from_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(1 << 20))
    warm_start.drop_from_page_cache(path)
    with path.open("rb") as file:
        assert sum(chunk.resident_bytes for chunk in look_at_chunks(path, file.fileno())) == 0
