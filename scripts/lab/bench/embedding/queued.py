"""What it takes to keep 100,000 texts waiting, and to be rid of them when their callers leave.

The model's server is suspended meanwhile, so that nothing is computed.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from lab.bench.report import Figure, compare
from lab.harness.command import LabError
from lab.harness.lean import post
from lab.harness.servers import Controller
from lab.harness.setting import EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

NAME = "queued"

TEXTS, ARRAY = 100_000, 2_000
WORDS = 8
PAUSE_S = 0.02
WITHIN_S = 180.0
KIB = 1024


def measure(setting: Setting, count: int = TEXTS) -> Figure:
    """Queue the texts in arrays, look at the controller's memory, and close all connections."""
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
        ),
        notes=(f"{most} of {count} texts waited, their own {own_bytes / count:.0f} bytes apart",),
    )


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
