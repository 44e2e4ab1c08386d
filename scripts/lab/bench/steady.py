"""Clients that send at a fixed rate whatever becomes of their answers, while something happens.

A closed loop would send nothing while it is held up, and so hardly ever see a wait.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event

from lab.harness.command import LabError


@dataclass(slots=True)
class Tally:
    """What became of the requests; latencies count from when each was due."""

    latencies_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many were sent."""
        return len(self.latencies_s) + len(self.failures)


@contextmanager
def steady(send: Callable[[], None], *, clients: int, requests_per_s: float) -> Iterator[Tally]:
    """Keep clients sending, that many requests in all, until the context is left.

    `send` makes one exchange and raises LabError where it fails. The tally is complete at the end.
    """
    tally, should_stop, begin_at = Tally(), Event(), time.monotonic()

    def client(number: int) -> None:
        due_at = begin_at + number / requests_per_s
        while not should_stop.wait(max(0.0, due_at - time.monotonic())):
            try:
                send()
            except LabError as error:
                tally.failures.append(str(error))
            else:
                tally.latencies_s.append(time.monotonic() - due_at)
            due_at += clients / requests_per_s

    with ThreadPoolExecutor(clients, "steady") as threads:
        sending = [threads.submit(client, number) for number in range(clients)]
        try:
            yield tally
        finally:
            should_stop.set()
            for each in sending:
                each.result()
