"""What it takes to keep 100,000 texts waiting, and to be rid of them when their callers leave.

The model's server is suspended meanwhile, so that nothing is computed. Then as many wait for a
server whose vectors tell their texts, and each answer is held against its own.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from lab.bench.report import Figure, compare
from lab.harness import telling_server
from lab.harness.command import LabError, say
from lab.harness.lean import LeanLoad, post, work_off
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes
from lab.harness.telling_server import vector_of
from lab.harness.texts import short_texts
from supervisor.embedding.vectors import from_base64, normalized, to_base64

NAME = "queued"

TEXTS, ARRAY = 100_000, 2_000
WORDS = 8
PAUSE_S = 0.02
WITHIN_S = 180.0
KIB = 1024

TELLING = "telling"
"""The model, and the profile, of `telling_server`."""


def measure(setting: Setting, count: int = TEXTS) -> Figure:
    """Queue the texts in arrays, look at the controller's memory, and close all connections.

    Then have others embedded by the server that tells texts, all of them at once.
    """
    texts = short_texts(count, min_words=WORDS, max_words=WORDS)
    array = min(ARRAY, count)
    bodies = [
        post("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": texts[at : at + array]})
        for at in range(0, count, array)
    ]
    with Controller(setting) as controller:
        controller.load(EMBEDDING_MODEL)
        controller.call("POST", "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "warm"})
        before_bytes = controller.resident_bytes()
        with _suspended(controller.child_pid()), ExitStack() as connections:
            for body in bodies:
                connection = controller.endpoint.connect(WITHIN_S)
                connections.callback(connection.close)
                connection.sendall(body)
            most = _wait(controller, lambda waiting: waiting == count, "were not queued")
            grown_bytes = controller.resident_bytes() - before_bytes
            left_at = time.monotonic()
            connections.close()
            _wait(controller, lambda waiting: waiting == 0, "were not forgotten")
            forgotten_s = time.monotonic() - left_at
    own_bytes = sum(len(text.encode()) for text in texts)
    each = (grown_bytes - own_bytes) / count / KIB
    return Figure(
        name=NAME,
        rows=(
            compare("memory of a text", "KiB", direct=[0], controller=[each], at_most=2),
            compare("until all are gone", "s", direct=[0], controller=[forgotten_s], at_most=1),
            compare(
                f"texts of {count} in answers that are wrong",
                "",
                direct=[0],
                controller=[_wrong(setting, count)],
                at_most=0,
            ),
        ),
        notes=(f"{most} of {count} texts waited, their own {own_bytes / count:.0f} bytes apart",),
    )


def _wrong(setting: Setting, count: int) -> int:
    """Have so many different texts embedded; return how many are in answers that are wrong."""
    array = min(ARRAY, count)
    fixed = {"model": TELLING, "encoding_format": "base64"}
    requests = [
        post("/v1/embeddings", {**fixed, "input": [f"text {at + n}" for n in range(array)]})
        for at in range(0, count, array)
    ]
    load = LeanLoad(
        requests=requests,
        mark=b'"embedding":"',
        units_per_answer=array,
        find_fault=_find_fault,
        stall_s=WITHIN_S,
    )
    with Controller(_with_telling_server(setting)) as controller:
        controller.load(TELLING)
        tally = work_off(load, controller.endpoint, len(requests))
    if tally.failures:
        say(f"  {dict(tally.failures)}")
    return tally.failures.total() * array


def _find_fault(request: bytes, body: bytes) -> str | None:
    """Say whether an answer has not the vector of each text of its request."""
    texts = json.loads(request.partition(b"\r\n\r\n")[2])["input"]
    told = [(entry["index"], entry["embedding"]) for entry in json.loads(body)["data"]]
    own = [to_base64(normalized(from_base64(vector_of(text)))) for text in texts]
    return None if told == list(enumerate(own)) else "an answer has the vectors of other texts"


def _with_telling_server(setting: Setting) -> Setting:
    argv = [sys.executable, "-I", "-S", str(Path(telling_server.__file__)), "{socket}"]
    profile = {
        "mode": "embedding",
        "engine": "command",
        "command": {"argv": argv, "embeds_base64": True},
        "memory": {"need_bytes": 1},
    }
    model = {"path": telling_server.__name__, "type": "embedding", "profile": TELLING}
    catalogue = {"default_model": TELLING, "models": {TELLING: model}}
    folder = setting.work_dir / TELLING
    folder.mkdir()
    changes = {f"{TELLING}.yaml": profile, "models.yaml": catalogue}
    return with_changes(replace(setting, work_dir=folder), "profiles", changes)


@contextmanager
def _suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _wait(controller: Controller, is_so: Callable[[int], bool], otherwise: str) -> int:
    """Wait until so many texts wait; return how many. Raises LabError."""
    deadline_at = time.monotonic() + WITHIN_S
    while not is_so(waiting := _waiting(controller)):
        if time.monotonic() > deadline_at:
            raise LabError(f"texts {otherwise} within {WITHIN_S:.0f} s; {waiting} wait")
        time.sleep(PAUSE_S)
    return waiting


def _waiting(controller: Controller) -> int:
    """Count the texts that wait in the controller or, a few of them, at the suspended server."""
    queues = controller.status()["embedding"][EMBEDDING_MODEL]
    return sum(each["inputs"] for each in (*queues["queued"].values(), queues["running"]))
