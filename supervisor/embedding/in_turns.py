"""Work on many vectors, in turns with all else that the event loop has to do.

2,048 vectors of 1,024 numbers, the most that one request has made, take 150 ms to be written as
JSON, in which nobody else would be served.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from supervisor.embedding.vectors import NUMBER_BYTES

NUMBERS_AT_ONCE = 64 * 1024
"""So many are written, or normalised, in 5 ms."""

_Made = TypeVar("_Made")


async def in_turns(make: Callable[[bytes], _Made], vectors: Sequence[bytes]) -> list[_Made]:
    """Return what a function makes of each vector."""
    at_once = max(1, NUMBERS_AT_ONCE * NUMBER_BYTES // max(1, len(vectors[0]) if vectors else 1))
    made = [make(vector) for vector in vectors[:at_once]]
    for begin in range(at_once, len(vectors), at_once):
        await asyncio.sleep(0)
        made += [make(vector) for vector in vectors[begin : begin + at_once]]
    return made
