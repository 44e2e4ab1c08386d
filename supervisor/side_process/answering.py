"""The other side: a program that answers what the controller asks, and ends with it.

Its module ends with `answer_controller(…)`. The socket is its standard input; it is closed when the
controller ends, and the kernel's parent-death signal also ends what takes long.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec

from supervisor.errors import RequestRefused
from supervisor.side_process.messages import Answered, Asked, Frames, framed

SOCKET = 0

_encode = msgspec.msgpack.Encoder().encode

CarryOut = Callable[[Any], Awaitable[Any]]
"""Returns what a request is answered with. Raises RequestRefused."""


async def answer(
    connection: socket.socket, requests: Any, carry_out: CarryOut, failure_code: str
) -> None:
    """Answer requests, of the type `requests`, until the other end closes the connection.

    `failure_code` is of what fails otherwise than by RequestRefused.
    """
    decode = msgspec.msgpack.Decoder(Asked[requests]).decode

    async def respond(asked: Asked[Any]) -> None:
        try:
            content = _encode(await carry_out(asked.request))
            answered = Answered(asked.number, msgspec.Raw(content))
        except RequestRefused as error:
            answered = Answered(asked.number, code=error.code, message=error.message)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is no Exception
            reason = f"a process of ours failed: {type(error).__name__}: {error}"
            answered = Answered(asked.number, code=failure_code, message=reason)
        writer.write(framed(answered))

    reader, writer = await asyncio.open_connection(sock=connection)
    frames = Frames()
    tasks: set[asyncio.Task[None]] = set()
    with suppress(ConnectionResetError):
        while data := await reader.read(1 << 18):
            for content in frames.feed(data):
                task = asyncio.create_task(respond(decode(content)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    writer.close()
