"""The benchmark measures every figure on both sides, and takes no broken answer for a whole one."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ("--seconds", "0.3", "--rounds", "1", "--starts", "1", "--switches", "2")

QUANTITIES = {
    "listening": ["start until /health answers", "resident after a switch and 200 requests"],
    "switch": ["stop and start, seen by the caller"],
    "embeddings": [
        "8 clients",
        "8 clients, failures",
        "1 client, median",
        "1 client, failures",
    ],
    "streams": ["8 clients", "8 clients, failures"],
}

TOKEN = b'data: {"choices":[{"delta":{"content":" word"}}]}\n\n'
END_MARK = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def run_bench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, llama_server_bin: Path, models_dir: Path
) -> tuple[str, dict[str, Any]]:
    """The table and the JSON of a run over all figures, as short as it can be."""
    report = tmp_path_factory.mktemp("bench") / "new" / "serve.json"
    run = run_bench(
        *("serve", *QUICK, "--json", report, "--models", models_dir),
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
    embeddings, streams = figures["embeddings"]["samples"], figures["streams"]["samples"]
    alternating = (embeddings["many_clients"], embeddings["one_client"], streams["many_clients"])
    turns = [each for load in alternating for side in load.values() for each in side]
    turns += [embeddings["sustained"], streams["sustained"]]
    assert len(turns) == 2 * len(alternating) + 2
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
        (measured,) = figures["streams"]["samples"]["many_clients"][side]
        assert {"bare", "controller", "child", "client"} == measured["cpu"]["by_role_s"].keys()


def test_a_run_that_cannot_be_measured_fails_and_says_why(tmp_path: Path) -> None:
    report = tmp_path / "serve.json"
    run = run_bench("serve", *QUICK, "--json", report, "--profiles", tmp_path / "absent")
    assert run.returncode == 1
    assert "there is no such folder" in run.stderr
    assert not report.exists()


@pytest.fixture
def failures_of_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[bytes], tuple[int, dict[str, int]]]]:
    """Sends one chat to a server that answers with these bytes and hangs up."""
    monkeypatch.syspath_prepend(SCRIPTS)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer(content: bytes) -> None:
            connection, _ = listener.accept()
            with closing(connection):
                connection.recv(65536)
                connection.sendall(content)

        def measure(content: bytes) -> tuple[int, dict[str, int]]:
            from bench_runner.load import run  # noqa: PLC0415 - found by the path set above
            from bench_runner.servers import Endpoint  # noqa: PLC0415
            from bench_runner.streams import chat_load  # noqa: PLC0415

            server = threading.Thread(target=answer, args=(content,))
            server.start()
            load = chat_load(clients=1, seconds=10.0, requests_per_client=1)
            tally = run(load, Endpoint(port=listener.getsockname()[1]))
            server.join()
            return tally.units, dict(tally.failures)

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
