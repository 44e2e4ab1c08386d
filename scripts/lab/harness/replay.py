"""Requests that are sent at given moments, whatever has become of those before them: open traffic.

A closed loop sends less to a server that is slow, and so flatters it. Here a request that finds
every connection busy gets one more, and its latency counts from the moment at which it was due.
"""

import random
import select
import time
from collections import deque
from collections.abc import Sequence
from itertools import cycle

from lab.harness.lean import Busy, LeanClient, LeanLoad, LeanTally, take
from lab.harness.servers import Endpoint


def poisson_moments(rate_per_s: float, seconds: float, seed: str) -> tuple[float, ...]:
    """Draw the moments of a Poisson process, in seconds from 0; the same for the same seed."""
    chooser = random.Random(seed)
    moments, at = [], chooser.expovariate(rate_per_s)
    while at < seconds:
        moments.append(at)
        at += chooser.expovariate(rate_per_s)
    return tuple(moments)


def replay(
    load: LeanLoad, endpoint: Endpoint, moments: Sequence[float], begins_at: float
) -> LeanTally:
    """Send the load's requests, one at each moment, and wait for all answers.

    `moments` ascend, in seconds from `begins_at`, which is monotonic.
    """
    tally, used_before_s = LeanTally(), time.process_time()
    due = deque(begins_at + moment for moment in moments)
    requests = cycle(load.requests)
    busy: Busy = {}
    idle: list[LeanClient] = []
    poll = select.epoll()
    while due or busy:
        while due and due[0] <= time.monotonic():
            client = idle.pop() if idle else LeanClient(endpoint, load, requests)
            _ask(client, due.popleft(), busy, poll)
        next_in_s = max(0.0, due[0] - time.monotonic()) if due else load.stall_s
        ready = poll.poll(next_in_s)
        for number, _ in ready:
            answered = take(busy, number, tally, poll, is_in_time=True)
            if answered is not None:
                del busy[answered.socket.fileno()]
                poll.unregister(answered.socket)
                idle.append(answered)
        if not ready and not due:
            tally.failures["no answer in time"] += len(busy)
            break
    poll.close()
    for client in (*idle, *busy.values()):
        client.socket.close()
    tally.used_s = time.process_time() - used_before_s
    return tally


def _ask(client: LeanClient, due_at: float, busy: Busy, poll: select.epoll) -> None:
    """Send the next request; a connection that was closed while it was idle is opened again."""
    try:
        client.ask(due_at)
    except OSError:
        client.was_stale()
    busy[client.socket.fileno()] = client
    poll.register(client.socket, select.EPOLLIN)
