"""Clients that send at a fixed rate whatever becomes of their answers, while something happens.

A closed loop would send nothing while it is held up, and so hardly ever see a wait.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import uvloop

from lab.harness.connection import BrokenAnswerError, Connection
from lab.harness.load import ANSWER_GRACE_S, Load, Tally
from lab.harness.servers import Endpoint


@contextmanager
def steady(load: Load, endpoint: Endpoint, *, requests_per_s: float) -> Iterator[Tally]:
    """Keep a load's clients sending, that many requests in all, until the context is left.

    The tally is complete then. Latencies count from when a request was due, not from when its
    client got round to it. `load.seconds` bounds nothing here.
    """
    tally = Tally(until_at=float("inf"))
    should_stop = threading.Event()

    async def send() -> None:
        period_s = load.clients / requests_per_s
        begin_at = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(load.clients):
                due_at = begin_at + number / requests_per_s
                group.create_task(client(number, due_at, period_s), name=f"client-{number}")

    async def client(number: int, due_at: float, period_s: float) -> None:
        connection = Connection(endpoint)
        while not should_stop.is_set():
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            request = load.requests[number % len(load.requests)]
            await _exchange(load, connection, request, tally, due_at)
            due_at += period_s
        connection.close()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(send())

    with ThreadPoolExecutor(1, "steady") as thread:
        sending = thread.submit(run)
        try:
            yield tally
        finally:
            should_stop.set()
            sending.result()


async def _exchange(
    load: Load, connection: Connection, request: bytes, tally: Tally, due_at: float
) -> None:
    tally.requests += 1
    try:
        async with asyncio.timeout(ANSWER_GRACE_S):
            await load.exchange(connection, request, tally)
    except (BrokenAnswerError, EOFError, OSError) as error:  # TimeoutError is an OSError
        tally.failures[f"{type(error).__name__}: {error}"] += 1
        connection.close()
    else:
        tally.latencies_s.append(time.monotonic() - due_at)
