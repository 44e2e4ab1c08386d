"""Writes points one by one into the store of a folder, and says after each that it is there."""

import asyncio
import sys
from itertools import count
from pathlib import Path

from supervisor.vector_store.edge import EdgeStore
from tests.vector_store.points import DIMENSION, MODEL, chunk


async def write(folder: Path) -> None:
    """Write for ever."""
    store = EdgeStore(folder)
    await store.ensure_collection("notes", MODEL, DIMENSION)
    for index in count():
        await store.upsert("notes", [chunk("a", index, 1, index)])
        print(index + 1, flush=True)  # noqa: T201 - what the test reads


asyncio.run(write(Path(sys.argv[1])))
