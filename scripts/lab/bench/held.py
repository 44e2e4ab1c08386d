"""What it takes to hold 10,000 requests over a switch, each on a connection of its own.

The server that leaves is suspended with one request in flight, so that the switch drains until the
whole crowd waits; then it goes on, and the switch with it. What it is compared with, in place of a
direct side, is the same crowd when the model is live: a bare llama-server loses requests of such a
crowd, and takes minutes for the others, a thousand threads at a time.
"""

import json
import math
import os
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context

from lab.bench.report import Figure, Row, compare
from lab.harness.command import LabError
from lab.harness.lean import LeanLoad, drive, post
from lab.harness.servers import ANSWER_TIMEOUT_S, Controller, Endpoint, Server
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes
from lab.harness.texts import short_texts

NAME = "held"

REQUESTS = 10_000
CONFIGURATION = {"supervisor.yaml": {"queue": {"model_share": 1.0}}}
"""All of them want the same model."""

EMBEDDINGS = f"/upstream/{EMBEDDING_MODEL}/v1/embeddings"
"""Relayed one by one: without the model's name in the path they would be put into batches."""

LEAVING_MODEL = "demo-chat"
TEXTS = 64

BEGIN_WITHIN_S = 180.0
OTHER_FILES = 512
"""Descriptors beyond one for each request: logs, libraries, the connections to the backend."""

PROBE_PAUSE_S = 0.005
LOOK_PAUSE_S = 0.25
MIN_COSINE = 0.999
"""A text embedded alone and the same in a batch of others: the sums are rounded differently."""

KB = 1000
MS = 1000

Vectors = Mapping[bytes, tuple[float, ...]]
"""For each request, as its bytes, the embedding that is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordeal:
    """One server under the crowd. `probes` are `/health`: seconds since its start, and taken."""

    answered: int
    failures: Mapping[str, int]
    resident_before_bytes: int
    resident_peak_bytes: int
    probes: Sequence[tuple[float, float]]
    released_s: float
    took_s: float

    @property
    def failed(self) -> int:
        """Requests without a right answer."""
        return sum(self.failures.values())

    @property
    def kb_per_request(self) -> float:
        """By how much the process has grown at its peak, per request."""
        grown_bytes = self.resident_peak_bytes - self.resident_before_bytes
        return grown_bytes / (self.answered + self.failed) / KB

    def p99_ms(self) -> float:
        """How long `/health` took at the 99th percentile."""
        ordered_s = sorted(took_s for _, took_s in self.probes)
        return ordered_s[math.ceil(len(ordered_s) * 0.99) - 1] * MS


def measure(setting: Setting, requests: int = REQUESTS) -> Figure:
    """Let the crowd wait for a switch, and send it once more when there is none.

    Each answer must be the embedding of its own text. `/health` is asked without a pause from the
    first connection to the last answer. The memory is the controller's at its peak; what it keeps
    of it serves the second crowd, which therefore shows less.
    """
    roomy = with_changes(setting, NAME, CONFIGURATION)
    with _open_files(requests + OTHER_FILES), Controller(roomy) as controller:
        controller.load(EMBEDDING_MODEL)
        vectors = _right_vectors(controller)
        held = _hold(controller, vectors, requests)
        live = _endure(controller, vectors, requests, lambda: True)
    return Figure(
        name=NAME,
        rows=_rows(live, held, requests),
        notes=(_note(held), *_failure_notes("held", held), *_failure_notes("live", live)),
        samples={"held": asdict(held), "live": asdict(live)},
    )


def _rows(live: Ordeal, held: Ordeal, requests: int) -> tuple[Row, ...]:
    quantities: tuple[tuple[str, str, Callable[[Ordeal], float], float], ...] = (
        (f"{requests} requests, failed", "", lambda ordeal: ordeal.failed, 0),
        ("memory per request", "kB", lambda ordeal: ordeal.kb_per_request, 20),
        ("/health meanwhile, p99", "ms", Ordeal.p99_ms, 50),
    )
    return tuple(
        compare(
            quantity,
            unit,
            direct=[value(live)],
            controller=[value(held)],
            at_most=bound,
        )
        for quantity, unit, value, bound in quantities
    )


def _note(held: Ordeal) -> str:
    """Tell the course: how long each part took, and the longest wait of `/health` in it."""
    before = [took_s for at_s, took_s in held.probes if at_s < held.released_s]
    after = [took_s for at_s, took_s in held.probes if at_s >= held.released_s]
    return (
        f"all waited after {held.released_s:.1f} s (/health at most {max(before) * MS:.0f} ms), "
        f"all were answered {held.took_s - held.released_s:.1f} s later "
        f"(at most {max(after) * MS:.0f} ms); {len(held.probes)} probes"
    )


def _failure_notes(side: str, ordeal: Ordeal) -> list[str]:
    return [f"{side}: {count} × {what}" for what, count in ordeal.failures.items()]


def _right_vectors(server: Server) -> Vectors:
    """Ask for each text's embedding while nothing else runs."""
    vectors = {}
    for text in short_texts(TEXTS, min_words=3, max_words=12):
        content = {"model": EMBEDDING_MODEL, "input": text}
        answer = server.call("POST", EMBEDDINGS, content)
        vectors[post(EMBEDDINGS, content)] = tuple(answer["data"][0]["embedding"])
    return vectors


def _hold(controller: Controller, vectors: Vectors, requests: int) -> Ordeal:
    """Let the crowd gather in a switch that cannot go on, and then let it go on."""
    controller.switch_to(LEAVING_MODEL)
    child_pid = controller.child_pid()
    with _suspended(child_pid), _asking(controller, "/tokenize", {"content": "in flight"}):
        _wait_for(controller, "in_flight", 1)
        with _asking(controller, "/switch-backend", {"model_name": EMBEDDING_MODEL}):
            release = partial(_release, controller, child_pid, requests)
            return _endure(controller, vectors, requests, release)


def _release(controller: Controller, child_pid: int, requests: int) -> bool:
    """Let the suspended server go on once all requests wait. Returns whether they do."""
    if controller.status()["requests"]["waiting"] < requests:
        return False
    os.kill(child_pid, signal.SIGCONT)
    return True


def _endure(server: Server, vectors: Vectors, requests: int, release: Callable[[], bool]) -> Ordeal:
    """Send the crowd from another process, and watch the server until it has been answered.

    `release` is called now and then until it returns True. Raises LabError when it does not.
    """
    before_bytes = peak_bytes = server.resident_bytes()
    started_at = time.monotonic()
    released_s: float | None = None
    look_at = 0.0
    probes = []
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        crowd = process.submit(send_crowd, server.endpoint, vectors, requests)
        while not crowd.done():
            now_s = time.monotonic() - started_at
            probes.append((now_s, _probe(server)))
            if now_s > look_at:
                look_at = now_s + LOOK_PAUSE_S
                peak_bytes = max(peak_bytes, server.resident_bytes())
                if released_s is None and release():
                    released_s = now_s
            time.sleep(PROBE_PAUSE_S)
        answered, failures = crowd.result()
    if released_s is None:
        raise LabError(f"the requests did not all come to wait; failures: {dict(failures)}")
    return Ordeal(
        answered=answered,
        failures=dict(failures),
        resident_before_bytes=before_bytes,
        resident_peak_bytes=peak_bytes,
        probes=probes,
        released_s=released_s,
        took_s=time.monotonic() - started_at,
    )


def send_crowd(endpoint: Endpoint, vectors: Vectors, requests: int) -> tuple[int, Counter[str]]:
    """Send all requests at once, a connection each. Returns right answers, and what failed."""

    def find_fault(request: bytes, body: bytes) -> str | None:
        vector = json.loads(body)["data"][0]["embedding"]
        is_right = _cosine(vector, vectors[request]) >= MIN_COSINE
        return None if is_right else "the embedding is that of another text"

    load = LeanLoad(
        requests=tuple(vectors),
        mark=b'"embedding":[',
        find_fault=find_fault,
        stall_s=BEGIN_WITHIN_S,
    )
    tally = drive(load, endpoint, requests, seconds=0.0)
    return len(tally.latencies_s), tally.failures


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the cosine of two vectors of length 1, as llama-server's embeddings are."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def _probe(server: Server) -> float:
    """Ask `/health` on a connection of its own, and return how long that took in seconds.

    No answer counts as one after the longest time that is waited for it.
    """
    started_at = time.monotonic()
    try:
        server.ask("GET", "/health")
    except LabError:
        return ANSWER_TIMEOUT_S
    return time.monotonic() - started_at


def _wait_for(controller: Controller, count: str, wanted: int) -> None:
    while controller.status()["requests"][count] < wanted:
        time.sleep(PROBE_PAUSE_S)


@contextmanager
def _asking(server: Server, path: str, content: object) -> Iterator[None]:
    """Have a request under way whose answer nobody reads."""
    connection: socket.socket = server.endpoint.connect(ANSWER_TIMEOUT_S)
    with connection:
        connection.sendall(post(path, content))
        yield


@contextmanager
def _suspended(pid: int) -> Iterator[None]:
    """Suspend a process; it goes on at the end, unless it has ended."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@contextmanager
def _open_files(wanted: int) -> Iterator[None]:
    """Allow this process, and those it starts, that many open files. Raises LabError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise LabError(f"{wanted} open files are needed and {hard} allowed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
