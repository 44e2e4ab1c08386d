"""The store's process: one of the two places where Qdrant Edge is loaded.

It answers requests (messages.py) on the socket that is its standard input, and ends with the
controller: the socket is closed then, and the kernel's parent-death signal also ends an operation
that takes long. The engine keeps the interpreter's lock while it works (0.9.0), so one operation
follows the other; what takes minutes, building an index, is done in a process of its own.
"""

import asyncio
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from supervisor.errors import RequestRefused
from supervisor.own_process import end_with_parent
from supervisor.vector_store.messages import Answered, Asked, Frames, Request, framed
from supervisor.vector_store.shards import Shards

_SOCKET = 0
_FLUSH_EVERY_S = 5.0
"""As often as a Qdrant server does (`flush_interval_sec`): what a power failure may cost. What has
returned survives the end of the process in any case, for it is in the write-ahead log."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Asked).decode


async def serve(folder: Path, connection: socket.socket) -> None:
    """Serve the collections in a folder until the controller closes the socket."""
    shards = Shards(folder)
    reader, writer = await asyncio.open_connection(sock=connection)
    frames = Frames()
    tasks = {asyncio.create_task(_keep_flushing(shards))}
    with suppress(ConnectionResetError):
        while data := await reader.read(1 << 18):
            for content in frames.feed(data):
                task = asyncio.create_task(_answer(shards, writer, _decode(content)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    writer.close()
    shards.close()


async def _keep_flushing(shards: Shards) -> None:
    while True:
        await asyncio.sleep(_FLUSH_EVERY_S)
        with suppress(Exception):  # a full disk, say: what is written next tells of it
            shards.flush()


async def _answer(shards: Shards, writer: asyncio.StreamWriter, asked: Asked) -> None:
    try:
        content = _encode(await _carry_out(shards, asked.request))
        answered = Answered(asked.number, msgspec.Raw(content))
    except RequestRefused as error:
        answered = Answered(asked.number, code=error.code, message=error.message)
    except Exception as error:  # noqa: BLE001 - the engine raises nothing narrower
        reason = f"the vector store failed: {type(error).__name__}: {error}"
        answered = Answered(asked.number, code="store_failed", message=reason)
    writer.write(framed(answered))


async def _carry_out(shards: Shards, request: Request) -> Any:
    method = getattr(shards, str(request.__struct_config__.tag))
    return await method(*msgspec.structs.astuple(request))


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    asyncio.run(serve(Path(sys.argv[1]), socket.socket(fileno=_SOCKET)))
