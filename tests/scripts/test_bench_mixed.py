"""The bench of two models that want one device: what it sends, what it counts, how it judges."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from lab.bench import mixed, mixed_load
from lab.bench.mixed_load import Run, Taken, changes, waits_of
from lab.bench.sides import preset_of
from lab.harness.lean import LeanLoad, drive_until_answered
from lab.harness.replay import poisson_moments, replay
from lab.harness.servers import Endpoint

SCRIPTS = Path(__file__).parents[2] / "scripts"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


def test_poisson_traffic_is_the_same_for_a_seed_and_comes_as_often_as_is_asked() -> None:
    moments = poisson_moments(50.0, 200.0, "7:chat")
    assert moments == poisson_moments(50.0, 200.0, "7:chat")
    assert moments != poisson_moments(50.0, 200.0, "7:embedding")
    assert list(moments) == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 200
    assert len(moments) == pytest.approx(10_000, rel=0.05)


def test_open_traffic_is_sent_when_it_is_due_though_nothing_was_answered_yet() -> None:
    """A server that answers nobody before all have asked would hold a closed loop for ever."""
    load = LeanLoad(requests=[b"POST / HTTP/1.1\r\n\r\n"], mark=b"{}")
    moments = (0.0, 0.05, 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connections = [listener.accept()[0] for _ in moments]
            for connection in connections:
                with closing(connection):
                    connection.recv(1024)
                    connection.sendall(ANSWER)

        server = threading.Thread(target=serve)
        server.start()
        endpoint = Endpoint(port=listener.getsockname()[1])
        late_s = 0.5
        tally = replay(load, endpoint, moments, time.monotonic() - late_s)
        server.join()
    assert dict(tally.failures) == {}
    # Each latency counts from when it was due, and that was before anything could be sent.
    waits_s = zip(sorted(tally.latencies_s), sorted(late_s - at for at in moments), strict=True)
    assert all(took_s >= was_due_s for took_s, was_due_s in waits_s)


def test_rate_of_a_slow_server_is_measured_for_longer() -> None:
    """All else is held against it, so it must not be 0 because nothing was answered in time."""
    load = LeanLoad(requests=[b"POST / HTTP/1.1\r\n\r\n"], mark=b"{}")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # once the listener is closed
                while True:
                    connection, _ = listener.accept()
                    with closing(connection):
                        while connection.recv(1024):
                            time.sleep(0.1)
                            connection.sendall(ANSWER)

        threading.Thread(target=serve, daemon=True).start()
        endpoint = Endpoint(port=listener.getsockname()[1])
        tally, took_s = drive_until_answered(load, endpoint, 1, seconds=0.05)
    assert tally.units > 0
    assert took_s > 0.05


def test_request_on_a_connection_that_was_closed_while_idle_is_sent_again() -> None:
    load = LeanLoad(requests=[b"POST / HTTP/1.1\r\n\r\n"], mark=b"{}")
    closed = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                with closing(connection):
                    connection.recv(1024)
                    connection.sendall(ANSWER)
                closed.set()

        server = threading.Thread(target=serve)
        server.start()
        endpoint = Endpoint(port=listener.getsockname()[1])
        tally = replay(load, endpoint, (0.0, 0.2), time.monotonic())
        server.join()
    assert closed.is_set()
    assert (len(tally.latencies_s), dict(tally.failures)) == (2, {})


def test_switches_are_seen_from_the_order_of_the_answers() -> None:
    assert changes([[1.0, 2.0, 5.0], [3.0, 4.0]]) == 2
    assert changes([[1.0, 3.0, 5.0], [2.0, 4.0]]) == 4
    assert changes([[1.0, 2.0], []]) == 0


def test_waits_of_nobody_are_none() -> None:
    assert waits_of([])["longest"] == 0
    waits = waits_of([0.001 * number for number in range(1, 101)])
    assert waits["p99"] == pytest.approx(0.099)
    assert waits["longest"] == pytest.approx(0.1)


def test_router_gets_the_arguments_of_our_servers_but_for_those_that_it_chooses() -> None:
    arguments = ("--model", "/m/a.gguf", "--no-kv-unified", "--parallel", "4", "--alias", "a")
    assert preset_of((*arguments, "--metrics")) == (
        "model = /m/a.gguf\nno-kv-unified = true\nparallel = 4\n"
    )


def taken(answers_per_s: float, *latencies_s: float, failed: int = 0) -> Taken:
    failures = {"the answer begins b'HTTP/1.1 503'": failed} if failed else {}
    return Taken(answers_per_s=answers_per_s, latencies_s=latencies_s, failures=failures)


def a_run(chat: Taken, embedding: Taken, switches_s: Sequence[float] = ()) -> Run:
    return Run(
        by_model=dict(zip(mixed_load.MODELS, (chat, embedding), strict=True)),
        took_s=10.0,
        switches=10,
        switches_s=switches_s,
        drains_s=[0.05] * len(switches_s),
        others_share=0.0,
    )


def contested(runs: Mapping[str, Run]) -> mixed.Contested:
    alone = dict(zip(mixed_load.MODELS, (taken(60, 0.02), taken(200, 0.006)), strict=True))
    return mixed.Contested(
        others=[name for name in runs if name not in {"controller", "fifo"}],
        probed_s=dict.fromkeys(runs, 0.3),
        alone=[alone],
        runs={name: [run] for name, run in runs.items()},
    )


OURS = a_run(taken(27, 0.9, 1.4), taken(70, 0.8, 1.2), switches_s=[0.1] * 9 + [0.9])
ROUTER = a_run(taken(50, 0.2, 3.0), taken(8, 0.1, 10.0, failed=2))
SWAP = a_run(taken(40, 0.3, 2.0), taken(9, 0.3, 2.5))


def test_class_is_held_against_what_it_reaches_alone_and_its_longest_wait_against_the_bound() -> (
    None
):
    figure = mixed.closed_figure(contested({"controller": OURS, "router": ROUTER}), 4)
    chat, embedding, chat_wait, embedding_wait, bound, switching, errors = figure.rows
    assert (chat.quantity, chat.judged, chat.is_met) == ("chat, 4 clients", 27 / 60, True)
    assert (embedding.judged, embedding.is_met) == (70 / 200, False)
    assert chat.peers == {"router": 50}
    assert (chat_wait.controller, chat_wait.peers, chat_wait.is_met) == (1.4, {"router": 3.0}, True)
    assert (embedding_wait.controller, embedding_wait.target.bound) == (1.2, 2.0)
    # The median of the switches, 0.1 s: twice that, a turn of 0.1 × 0.85/0.15 s, and the drain.
    assert bound.direct == pytest.approx(0.2 + 0.1 * 0.85 / 0.15 + 0.05)
    assert bound.judged == pytest.approx(1.4 - bound.direct)
    assert not bound.is_met
    assert switching.controller == pytest.approx(18)
    assert switching.peers == {"router": pytest.approx(30)}
    assert (errors.controller, errors.peers) == (0, {"router": 2})


def test_what_is_measured_on_either_side_of_a_run_counts_alike() -> None:
    both = taken(60, 0.02, failed=1).and_as_long(taken(50, 0.01, 0.03, failed=2))
    assert (both.answers_per_s, both.failed) == (55, 3)
    assert sorted(both.latencies_s) == [0.01, 0.02, 0.03]


def test_waits_of_open_traffic_are_held_against_the_better_peer_and_never_against_our_fifo() -> (
    None
):
    fifo = a_run(taken(27, 0.01), taken(70, 0.01))
    runs = {"controller": OURS, "fifo": fifo, "router": ROUTER, "swap": SWAP}
    mean, p99, longest, errors = mixed.open_figure(contested(runs), 30, {}).rows
    assert mean.quantity == "mean wait, over swap"
    assert mean.direct == pytest.approx(1275)
    assert mean.judged == pytest.approx(1.075 / 1.275)
    assert (p99.quantity, longest.quantity) == ("p99 wait, over swap", "longest wait, over swap")
    assert longest.judged == pytest.approx(1.4 / 2.5)
    assert [row.target.bound for row in (mean, p99, longest)] == [1.05, 0.5, 0.5]
    assert errors.target.bound == 0


def test_every_side_is_put_under_both_loads_and_nothing_fails(
    tmp_path: Path, llama_server_bin: Path, models_dir: Path
) -> None:
    report = tmp_path / "mixed.json"
    run = subprocess.run(
        [
            *(sys.executable, "-m", "lab.bench", "mixed", "--only", "closed_1", "--seconds", "4"),
            *("--json", report, "--models", models_dir),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": str(SCRIPTS),
            "LLAMA_SERVER_BIN": str(llama_server_bin),
        },
    )
    assert run.returncode == 0, run.stderr
    figure = json.loads(report.read_text(encoding="utf-8"))["figures"]["closed_1"]
    runs = figure["samples"]["runs"]
    assert list(runs) == ["controller", "fifo", "router"]
    for (measured,) in runs.values():
        for model in mixed_load.MODELS:
            assert measured[model]["answers"] > 0
            assert measured[model]["failures"] == {}
    assert runs["controller"][0]["switches_s"]
    assert figure["rows"][-1]["quantity"] == "errors"
