"""The best that the bare server does with arrays: a sweep of how it is started and asked."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

from lab.harness.command import LabError
from lab.harness.lean import LeanLoad, post, work_off
from lab.harness.servers import ChildCommand, Endpoint, Server
from lab.harness.setting import EMBEDDING_MODEL, Setting

UBATCHES = (128, 512, 2048)
PARALLEL = (8, 32)
IN_FLIGHT = (1, 2, 4)
ARRAY = 40
"""Texts in an array: enough to fill what the server computes at once, and few to wait for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the server is started, and how many arrays it is sent at a time."""

    ubatch_size: int
    parallel: int
    in_flight: int

    def __str__(self) -> str:
        return (
            f"ubatch_size {self.ubatch_size}, parallel {self.parallel}, {self.in_flight} at a time"
        )


@contextmanager
def started(command: ChildCommand, way: Way, setting: Setting) -> Iterator[Server]:
    """Run the bare server as the way wants it."""
    sizes = {
        "--batch-size": way.ubatch_size,
        "--ubatch-size": way.ubatch_size,
        "--parallel": way.parallel,
    }
    argv = list(command.argv)
    for flag, value in sizes.items():
        argv[argv.index(flag) + 1] = str(value)
    changed = replace(command, argv=tuple(argv))
    with changed.start(Endpoint.on_free_port(), setting) as server:
        yield server


def array_load(texts: Sequence[str], array: int) -> LeanLoad:
    """Return the texts in arrays of that length, which must divide their number."""
    parts = (texts[at : at + array] for at in range(0, len(texts), array))
    fixed = {"model": EMBEDDING_MODEL, "encoding_format": "base64"}
    requests = [post("/v1/embeddings", {**fixed, "input": part}) for part in parts]
    return LeanLoad(requests=requests, mark=b'"embedding":"', units_per_answer=array, stall_s=300)


def rate_of(load: LeanLoad, endpoint: Endpoint, in_flight: int) -> float:
    """Have all of a load embedded; return texts per second. Raises LabError where one failed."""
    began_at = time.monotonic()
    tally = work_off(load, endpoint, in_flight)
    if tally.failures:
        raise LabError(f"arrays failed: {dict(tally.failures)}")
    return tally.units / (time.monotonic() - began_at)


def sweep(command: ChildCommand, texts: Sequence[str], setting: Setting) -> dict[Way, float]:
    """Return the texts per second of each way; the server is started once for each of its own."""
    rates: dict[Way, float] = {}
    load = array_load(texts, ARRAY)
    for ubatch_size, parallel in product(UBATCHES, PARALLEL):
        ways = [
            Way(ubatch_size=ubatch_size, parallel=parallel, in_flight=in_flight)
            for in_flight in IN_FLIGHT
        ]
        with started(command, ways[0], setting) as server:
            rate_of(array_load(texts[:ARRAY], ARRAY), server.endpoint, 1)
            rates |= {way: rate_of(load, server.endpoint, way.in_flight) for way in ways}
    return rates
