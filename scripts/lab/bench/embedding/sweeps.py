"""Sweeps on the processors: how long requests take, by threads, texts in a request and callers.

Every row is a burst of that many requests at once, again and again, each burst after the answers of
the one before; the service and the bare server take turns, burst by burst. The bare server is sent
the token ids that the service makes of the texts: its own tokenizer loses most of a Korean text, so
that it would have half as much to compute. A second sweep is by how
many batches the service sends at once and how many inputs may wait; there some requests get 429.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from math import ceil
from typing import Any

from lab.bench.embedding.sweep_report import Cell, Measured, p95_ms, picture_of, table_of
from lab.bench.report import Figure, Row, compare
from lab.harness.command import LabError, say
from lab.harness.korean_texts import LONG, SHORT
from lab.harness.lean import LeanLoad, post
from lab.harness.replay import replay
from lab.harness.servers import Controller, Endpoint, Server
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes

NAME = "sweeps"

Inputs = Mapping[str, Sequence[Any]]
"""Texts, or the token ids of each, by their length."""

TEXTS: Inputs = {"short": SHORT, "long": LONG}
THREADS, BATCHES, CALLERS = (1, 2, 4), (1, 4, 8, 16), (1, 5, 10)
MAX_CONCURRENT, BOUNDS = (1, 2, 4, 8), (4, 100_000)

LINGER: Mapping[str, Any] = {"batch_wait_ms": 50, "max_batch_size": 8, "max_concurrent": 1}
"""What is often set where a model computes in the process of the service itself."""

LEAST_REQUESTS = 20
"""Of a row: below, a 95th percentile means little."""

REFUSED = "HTTP/1.1 429"
AT_MOST = 1.05
JUDGED_THREADS = 2
JUDGED_REQUESTS = 600
"""The rows of single short texts with so many threads are held against the bare server, by the
95th percentile of so many requests: of 20, that is one or two. The one with most at a time is
judged."""


@dataclass(slots=True)
class Taken:
    """What the bursts of a row brought on one side."""

    latencies_s: list[float] = field(default_factory=list)
    refused: int = 0


def measure(setting: Setting) -> Figure:
    """Run both sweeps; the table and the picture are attached."""
    rows = [*_by_threads(setting), *_by_bounds(setting)]
    return Figure(
        name=NAME,
        rows=(_p95_row(rows, max(CALLERS)),),
        notes=(
            "llama-server merges what arrives together by itself, so both sides batch",
            *(_told(_p95_row(rows, callers)) for callers in CALLERS),
        ),
        samples={"rows": [row.as_json() for row in rows]},
        attachments={"sweeps.md": table_of(rows), "sweeps.svg": picture_of(rows)},
    )


def _by_threads(setting: Setting) -> Iterator[Measured]:
    """Measure both sides by threads, length, texts in a request, and callers."""
    for threads in THREADS:
        with _sides(setting, f"threads-{threads}", {"threads": threads}, {}) as sides:
            ours, bare = sides
            ids = {length: _ids_of(texts, ours) for length, texts in TEXTS.items()}
            for length, batch, callers in product(TEXTS, BATCHES, CALLERS):
                cell = Cell(threads=threads, length=length, batch=batch, callers=callers)
                least = JUDGED_REQUESTS if cell == _held(callers) else LEAST_REQUESTS
                yield _row(cell, ((ours, TEXTS), (bare, ids)), setting.rounds, least)


def _by_bounds(setting: Setting) -> Iterator[Measured]:
    """Measure the service alone by batches at once and inputs that may wait, and with a linger."""
    settings = [
        ({"max_concurrent": concurrent}, bound)
        for concurrent, bound in product(MAX_CONCURRENT, BOUNDS)
    ]
    for number, (batching, bound) in enumerate([*settings, (LINGER, max(BOUNDS))]):
        overrides = {"threads": JUDGED_THREADS, "batching": batching}
        queue = {"max_embedding_inputs": bound}
        with _sides(setting, f"bounds-{number}", overrides, queue) as (ours, _):
            for callers in CALLERS:
                cell = Cell(
                    threads=JUDGED_THREADS,
                    length="short",
                    batch=1,
                    callers=callers,
                    batching={**batching, **queue},
                )
                yield _row(cell, ((ours, TEXTS),), setting.rounds, LEAST_REQUESTS)


@contextmanager
def _sides(
    setting: Setting, name: str, overrides: Mapping[str, Any], queue: Mapping[str, Any]
) -> Iterator[tuple[Server, Server]]:
    """Run the service with these settings, and beside it the server that it has started."""
    say(f"  {name} …")
    models = {"models": {EMBEDDING_MODEL: {"overrides": overrides}}}
    changes: dict[str, Mapping[str, Any]] = {
        "models.yaml": models,
        "supervisor.yaml": {"queue": queue},
    }
    own = with_changes(setting, name, changes)
    with (
        Controller(own) as controller,
        controller.load(EMBEDDING_MODEL).start(Endpoint.on_free_port(), setting) as bare,
    ):
        yield controller, bare


def _ids_of(texts: Sequence[str], service: Server) -> list[list[int]]:
    told = service.call("POST", f"/tokenize?model={EMBEDDING_MODEL}", {"inputs": texts})
    return [[token["id"] for token in tokens] for tokens in told]


def _held(callers: int) -> Cell:
    return Cell(threads=JUDGED_THREADS, length="short", batch=1, callers=callers)


def _row(cell: Cell, sides: Sequence[tuple[Server, Inputs]], rounds: int, least: int) -> Measured:
    """Take turns, burst by burst, so that both have the same machine; the service comes first."""
    loads = [(server.endpoint, _load(cell, inputs)) for server, inputs in sides]
    taken, warm_up = [Taken() for _ in sides], [Taken() for _ in sides]
    bursts = max(rounds, ceil(least / cell.callers))
    for takers in (warm_up, *(taken,) * bursts):
        for (endpoint, load), taker in zip(loads, takers, strict=True):
            _burst(load, endpoint, cell.callers, taker)
    ours, *bare = taken
    return Measured(
        cell=cell,
        latencies_s=ours.latencies_s,
        refused=ours.refused,
        direct_s=bare[0].latencies_s if bare else [],
    )


def _load(cell: Cell, given: Inputs) -> LeanLoad:
    some = given[cell.length]
    inputs = [
        [some[(start + number) % len(some)] for number in range(cell.batch)]
        for start in range(len(some))
    ]
    fixed = {"model": EMBEDDING_MODEL, "encoding_format": "base64"}
    requests = [post("/v1/embeddings", {**fixed, "input": each}) for each in inputs]
    mark = b'"embedding":"'
    return LeanLoad(requests=requests, mark=mark, units_per_answer=cell.batch, stall_s=120)


def _burst(load: LeanLoad, endpoint: Endpoint, callers: int, taken: Taken) -> None:
    """Send so many requests at once, and wait for all answers. Raises LabError where one failed."""
    tally = replay(load, endpoint, [0.0] * callers, time.monotonic())
    refused = sum(count for why, count in tally.failures.items() if REFUSED in why)
    if refused != tally.failures.total():
        raise LabError(f"requests failed: {dict(tally.failures)}")
    taken.latencies_s += tally.latencies_s
    taken.refused += refused


def _told(row: Row) -> str:
    return f"{row.quantity}: bare {row.direct:.1f} ms, service {row.controller:.1f} ms"


def _p95_row(rows: Sequence[Measured], callers: int) -> Row:
    """Hold the service's 95th percentile against the bare server's, for one short text each."""
    (row,) = (row for row in rows if row.cell == _held(callers))
    return compare(
        f"p95, {callers} at a time",
        "ms",
        direct=[p95_ms(row.direct_s)],
        controller=[p95_ms(row.latencies_s)],
        judged_as="ratio",
        at_most=AT_MOST,
    )
