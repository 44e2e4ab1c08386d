"""Finds a server that hangs: its health answers, and nothing moves in the requests it has.

What moves is a byte of an answer, a request that ends, or a slot: llama-server shows for each what
it has processed. Its slots are asked for only while no byte comes, and an answer that does not come
is not a movement either. While a client is slow to read, the server is not judged: one that
computes for a single request at a time holds all others up behind that client.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from supervisor.engine.servers.channel import Activity

_LOOKS_PER_TIMEOUT = 8
_MIN_LOOKS = 4
_LONGEST_PAUSE_S = 5.0
_MIN_PATIENCE_S = 1.0  # a server that computes answers between two batches


class Watched(Protocol):
    """What is looked at of a server."""

    activity: Activity

    async def ask_slots(self, patience_s: float) -> bytes | None:
        """Return what it says of its slots; None where it does not."""
        ...


async def watch_for_stalls(
    server: Watched,
    timeout_s: float,
    on_stalled: Callable[[float], None],
    on_moved: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Report once when nothing has moved for `timeout_s`, and once when something does again.

    Runs until it is cancelled. `on_stalled` gets the seconds without a movement.
    """
    pause_s = min(_LONGEST_PAUSE_S, timeout_s / _LOOKS_PER_TIMEOUT)
    seen: tuple[int, bytes | None] = (-1, None)
    moved_at, still_looks, is_stalled = clock(), 0, False
    while True:
        await asyncio.sleep(pause_s)
        signs, slots = server.activity.signs, seen[1]
        is_asked = server.activity.requests > 0 and not server.activity.held
        if is_asked and signs == seen[0]:
            slots = await server.ask_slots(max(_MIN_PATIENCE_S, pause_s)) or slots
        if not is_asked or (signs, slots) != seen:
            seen, moved_at, still_looks = (signs, slots), clock(), 0
            if is_stalled:
                on_moved()
                is_stalled = False
            continue
        still_looks += 1  # a machine that is late with our own looks is not a server that hangs
        stalled_s = clock() - moved_at
        if not is_stalled and still_looks >= _MIN_LOOKS and stalled_s >= timeout_s:
            is_stalled = True
            on_stalled(stalled_s)
