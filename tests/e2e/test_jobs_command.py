"""`llama-supervisor jobs`, as somebody uses it who has sent a batch."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.e2e.conftest import COMMAND
from tests.relay.conftest import Running, serving
from tests.relay.wire import until


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A controller whose embedding model is live."""
    with serving(tmp_path_factory.mktemp("jobs"), server={}) as running:
        running.make_live("minilm")
        yield running


def call(running: Running, *words: str) -> subprocess.CompletedProcess[str]:
    url = f"http://127.0.0.1:{running.port}"
    return subprocess.run(
        [COMMAND, "jobs", *words, "--url", url], capture_output=True, text=True, check=False
    )


def send_batch(running: Running, texts: int, **more: Any) -> str:
    """Send a batch of texts to embed; returns its id."""
    lines = (
        {
            "custom_id": str(number),
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "minilm", "input": f"text {number}"},
        }
        for number in range(texts)
    )
    content = "\n".join(map(json.dumps, lines)).encode()
    address = f"http://127.0.0.1:{running.port}/v1/files?purpose=batch"
    request = urllib.request.Request(address, content, {"Content-Type": "application/jsonl"})
    with urllib.request.urlopen(request) as answer:
        file_id = json.load(answer)["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    return str(running.json("POST", "/v1/batches", body | more)["id"])


def state_of(running: Running, job: str) -> str:
    return str(running.json("GET", f"/jobs/{job}")["state"])


def test_job_is_listed_shown_and_cancelled(running: Running) -> None:
    done = send_batch(running, 3)
    until(lambda: state_of(running, done) == "completed")
    waiting = send_batch(running, 2, not_before="2100-01-01T00:00:00Z")

    listed = json.loads(call(running, "--json").stdout)["jobs"]
    assert [job["id"] for job in listed] == [waiting, done]
    table = call(running).stdout
    assert done in table
    assert "3 of 3" in table
    assert "waits until" in table

    shown = call(running, "show", done)
    assert "completed" in shown.stdout
    assert json.loads(call(running, "show", done, "--json").stdout)["lines"]["succeeded"] == 3

    cancelled = call(running, "cancel", waiting)
    assert cancelled.returncode == 0
    until(lambda: state_of(running, waiting) == "cancelled")
    assert call(running, "retry", waiting).returncode == 0
    assert state_of(running, waiting) != "cancelled"


def test_what_is_refused_is_told(running: Running) -> None:
    told = call(running, "show", "nobody")

    assert told.returncode == 1
    assert "there is no job 'nobody'" in told.stderr
    assert not told.stdout


def test_jobs_that_are_watched_are_told_again_when_they_change(running: Running) -> None:
    watching = subprocess.Popen(
        [COMMAND, "jobs", "--watch", "--json", "--url", f"127.0.0.1:{running.port}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with watching:
        assert watching.stdout is not None
        before = json.loads(watching.stdout.readline())["jobs"]
        batch = send_batch(running, 1)
        after = json.loads(watching.stdout.readline())["jobs"]
        watching.send_signal(2)
        assert watching.wait() == 130
    assert batch not in [job["id"] for job in before]
    assert batch in [job["id"] for job in after]


@pytest.mark.parametrize(
    "words", [("jobs",), ("search", "memory"), ("embed", str(ROOT / "README.md"))]
)
def test_without_a_controller_it_is_said_what_to_do(words: tuple[str, ...]) -> None:
    told = subprocess.run(
        [COMMAND, *words, "--url", "127.0.0.1:1"], capture_output=True, text=True, check=False
    )

    assert told.returncode == 69
    assert "no controller answers at http://127.0.0.1:1 (Connection refused)" in told.stderr
    assert "llama-supervisor serve" in told.stderr
