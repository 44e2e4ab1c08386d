"""How long the event loop is held up, in processor time: the rest is what else a machine does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

BLOCKED_S = 0.05


async def is_never_held_up(work: Callable[[], Awaitable[object]]) -> bool:
    """Whether no turn of the loop takes as long as BLOCKED_S while something is done.

    Done up to five times, for what else this machine does may hold it up, too.
    """
    for _ in range(5):
        async with longest_turn() as longest_s:
            await work()
        if longest_s() < BLOCKED_S:
            return True
    return False


@asynccontextmanager
async def longest_turn() -> AsyncIterator[Callable[[], float]]:
    """Tell, at the end, the most processor time that was taken between two turns of the loop.

    Of all threads: one that keeps the interpreter's lock holds the loop up as well.
    """
    longest_s = 0.0
    ended = asyncio.Event()

    async def watch() -> None:
        nonlocal longest_s
        before_s = time.process_time()
        while not ended.is_set():
            await asyncio.sleep(0)
            now_s = time.process_time()
            longest_s, before_s = max(longest_s, now_s - before_s), now_s

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield lambda: longest_s
    finally:
        ended.set()
        await watching
