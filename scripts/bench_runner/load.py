"""Closed-loop load: each client sends its next request when it has the answer to the last one."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import uvloop

from bench_runner.connection import BrokenAnswerError, Connection
from bench_runner.cpu import CpuMeter, CpuUse
from bench_runner.servers import Endpoint, Server
from bench_runner.setting import say

ROUND_GRACE_S = 120.0
"""How long the answers begun within a round may take after its end, before they are failures."""

WARM_UP_S = 1.0


@dataclass(slots=True)
class Tally:
    """What one round has counted. Only what arrived before `until_at` counts for the rate."""

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
    """A load: the same for each side of a comparison."""

    name: str
    requests: Sequence[bytes]
    exchange: Exchange
    clients: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One side under load once. `latencies_s` holds those of the answers within the time."""

    units_per_s: float
    requests: int
    failures: Mapping[str, int]
    latencies_s: tuple[float, ...]
    cpu: CpuUse

    @property
    def failed(self) -> int:
        """How many requests failed."""
        return sum(self.failures.values())


def alternate(
    load: Load, sides: Mapping[str, Server], rounds: int, watched_pids: Mapping[str, int]
) -> dict[str, list[Round]]:
    """Put the sides under load in turn, `rounds` times, after a short warm-up of each.

    `watched_pids` are the processes whose use of the processors is told, by role.
    """
    for server in sides.values():
        _run(load, server.endpoint, min(WARM_UP_S, load.seconds))
    measured: dict[str, list[Round]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, server in sides.items():
            meter = CpuMeter(watched_pids)
            tally = _run(load, server.endpoint, load.seconds)
            result = _round(tally, load.seconds, meter.stop())
            measured[side].append(result)
            say(
                f"  {load.name}, round {number + 1}/{rounds}, {side}: {result.units_per_s:.1f}/s, "
                f"{result.failed} failed"
            )
    return measured


def _round(tally: Tally, seconds: float, cpu: CpuUse) -> Round:
    return Round(
        units_per_s=tally.units / seconds,
        requests=tally.requests,
        failures=dict(tally.failures),
        latencies_s=tuple(tally.latencies_s),
        cpu=cpu,
    )


def _run(load: Load, endpoint: Endpoint, seconds: float) -> Tally:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run_clients(load, endpoint, seconds))


async def _run_clients(load: Load, endpoint: Endpoint, seconds: float) -> Tally:
    tally = Tally(until_at=time.monotonic() + seconds)
    async with asyncio.TaskGroup() as group:
        for client in range(load.clients):
            # Each client begins elsewhere in the list, so that no two send the same in step.
            offset = client * len(load.requests) // load.clients
            requests = islice(cycle(load.requests), offset, None)
            group.create_task(_client(load, endpoint, requests, tally), name=f"client-{client}")
    return tally


async def _client(
    load: Load, endpoint: Endpoint, requests: "islice[bytes]", tally: Tally
) -> None:
    connection = Connection(endpoint)
    try:
        async with asyncio.timeout_at(_loop_time(tally.until_at + ROUND_GRACE_S)):
            while (started_at := time.monotonic()) < tally.until_at:
                tally.requests += 1
                try:
                    await load.exchange(connection, next(requests), tally)
                except (BrokenAnswerError, EOFError, OSError) as error:
                    tally.failures[f"{type(error).__name__}: {error}"] += 1
                    connection.close()
                    continue
                ended_at = time.monotonic()
                if ended_at <= tally.until_at:
                    tally.latencies_s.append(ended_at - started_at)
    except TimeoutError:
        tally.failures["no answer in time"] += 1
    finally:
        connection.close()


def _loop_time(at: float) -> float:
    """Turn a time of the monotonic clock into one of the running loop's clock."""
    return asyncio.get_running_loop().time() + at - time.monotonic()
