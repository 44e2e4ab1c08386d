"""The store's process: one of the two places where Qdrant Edge is loaded.

The engine keeps the interpreter's lock while it works (0.9.0), so one operation follows the other;
what takes minutes, building an index, is done in a process of its own.
"""

import asyncio
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from supervisor.own_process import end_with_parent
from supervisor.side_process.answering import SOCKET, answer
from supervisor.vector_store.messages import Request
from supervisor.vector_store.shards import Shards

_FLUSH_EVERY_S = 5.0
"""As often as a Qdrant server does (`flush_interval_sec`): what a power failure may cost. What has
returned survives the end of the process in any case, for it is in the write-ahead log."""


async def serve(folder: Path, connection: socket.socket) -> None:
    """Serve the collections in a folder until the controller closes the socket."""
    shards = Shards(folder)

    async def carry_out(request: Any) -> Any:
        method = getattr(shards, str(request.__struct_config__.tag))
        return await method(*msgspec.structs.astuple(request))

    flushing = asyncio.create_task(_keep_flushing(shards))
    await answer(connection, Request, carry_out, "store_failed")
    flushing.cancel()
    shards.close()


async def _keep_flushing(shards: Shards) -> None:
    while True:
        await asyncio.sleep(_FLUSH_EVERY_S)
        with suppress(Exception):  # a full disk, say: what is written next tells of it
            shards.flush()


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    asyncio.run(serve(Path(sys.argv[1]), socket.socket(fileno=SOCKET)))
