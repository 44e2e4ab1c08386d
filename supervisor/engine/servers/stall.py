"""Finds a server that hangs: its health answers, and nothing moves in the requests it has.

What moves is a byte of an answer, a request that ends, or a slot: llama-server tells of each what
it has processed. Its slots are asked only while no byte comes, and an answer that does not come is
no movement either.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp

if TYPE_CHECKING:
    from supervisor.engine.servers.backend import Backend

_LOOKS_PER_TIMEOUT = 8
_LEAST_LOOKS = 4
_LONGEST_PAUSE_S = 5.0
_LEAST_PATIENCE_S = 1.0  # a server that computes answers between two batches


class Activity:
    """What the relay tells of a backend: requests that have begun, and signs of life."""

    __slots__ = ("requests", "signs")

    def __init__(self) -> None:
        self.requests = 0
        """Requests that are with the server now."""
        self.signs = 0
        """Counts up with each piece of an answer, and each request that begins or ends."""

    def begin(self) -> None:
        """A request is sent to the server."""
        self.requests += 1
        self.signs += 1

    def end(self) -> None:
        """A request is over, whatever came of it."""
        self.requests -= 1
        self.signs += 1


async def watch_for_stalls(
    backend: "Backend",
    timeout_s: float,
    on_stalled: Callable[[float], None],
    on_moved: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Tell once when nothing has moved for `timeout_s`, and once when something does again.

    Runs until it is cancelled. `on_stalled` gets the seconds without a movement.
    """
    pause_s = min(_LONGEST_PAUSE_S, timeout_s / _LOOKS_PER_TIMEOUT)
    seen: tuple[int, bytes | None] = (-1, None)
    moved_at, still_looks, is_stalled = clock(), 0, False
    while True:
        await asyncio.sleep(pause_s)
        signs = backend.activity.signs
        slots = seen[1]
        if backend.activity.requests and signs == seen[0]:
            slots = await _ask_slots(backend, max(_LEAST_PATIENCE_S, pause_s)) or slots
        if not backend.activity.requests or (signs, slots) != seen:
            seen, moved_at, still_looks = (signs, slots), clock(), 0
            if is_stalled:
                on_moved()
                is_stalled = False
            continue
        still_looks += 1  # a machine that is late with our own looks is no server that hangs
        stalled_s = clock() - moved_at
        if not is_stalled and still_looks >= _LEAST_LOOKS and stalled_s >= timeout_s:
            is_stalled = True
            on_stalled(stalled_s)


async def _ask_slots(backend: "Backend", patience_s: float) -> bytes | None:
    """Return what the server tells of its slots, as it stands; None when it does not in time."""
    path = backend.launch.abilities.slots_path
    if path is None or backend.session.closed:
        return None
    headers = {"Authorization": backend.authorization}
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(patience_s):
            async with backend.session.get(backend.base_url + path, headers=headers) as answer:
                return await answer.read()
    return None
