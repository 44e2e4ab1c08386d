"""Closed-loop load: each client sends its next request when it has the answer to the last one."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import uvloop

from lab.harness.connection import BrokenAnswerError, Connection
from lab.harness.servers import Endpoint

ANSWER_GRACE_S = 120.0
"""How long the answers begun within a load may take after its end, before they are failures."""


@dataclass(slots=True)
class Tally:
    """What one load has counted: units that arrived until `until_at`, requests begun until then.

    The last requests run to their end, so that latencies are not of the quick ones only.
    """

    until_at: float
    units: int = 0
    requests: int = 0
    latencies_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    def add(self, units: int) -> None:
        """Count units (answers, tokens) that arrived just now."""
        if time.monotonic() <= self.until_at:
            self.units += units


Exchange = Callable[[Connection, bytes, Tally], Awaitable[None]]
"""Sends a request, counts what comes, and raises unless the answer is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load, the same for each side of a comparison: it ends by time, or sooner by count."""

    name: str
    requests: Sequence[bytes]
    exchange: Exchange
    clients: int
    seconds: float
    requests_per_client: int | None = None


def run(load: Load, endpoint: Endpoint) -> Tally:
    """Put one server under the load and return what was counted."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_clients(load, endpoint))


async def _run_clients(load: Load, endpoint: Endpoint) -> Tally:
    tally = Tally(until_at=time.monotonic() + load.seconds)
    count = load.requests_per_client
    async with asyncio.TaskGroup() as group:
        for client in range(load.clients):
            # Each client begins elsewhere in the list, so that no two send the same in step.
            offset = client * len(load.requests) // load.clients
            requests = islice(cycle(load.requests), offset, count and offset + count)
            group.create_task(_client(load, endpoint, requests, tally), name=f"client-{client}")
    return tally


async def _client(load: Load, endpoint: Endpoint, requests: Iterable[bytes], tally: Tally) -> None:
    connection = Connection(endpoint)
    try:
        async with asyncio.timeout(load.seconds + ANSWER_GRACE_S):
            for request in requests:
                started_at = time.monotonic()
                if started_at > tally.until_at:
                    break
                tally.requests += 1
                try:
                    await load.exchange(connection, request, tally)
                except (BrokenAnswerError, EOFError, OSError) as error:
                    tally.failures[f"{type(error).__name__}: {error}"] += 1
                    connection.close()
                    continue
                tally.latencies_s.append(time.monotonic() - started_at)
    except TimeoutError:
        tally.failures["no answer in time"] += 1
    finally:
        connection.close()
