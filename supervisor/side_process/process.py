"""A side process as the controller sees it: started, asked, and ended with the controller."""

import asyncio
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec

from supervisor.errors import RequestRefused
from supervisor.own_process import command_of, python_path
from supervisor.side_process.messages import Answered, Asked, Frames, framed

_decode = msgspec.msgpack.Decoder(Answered).decode


class ProcessLost(Exception):
    """The process ended before it had answered."""


class SideProcess(asyncio.Protocol):
    """A process of ours (`answering.py` is its side), and what it has to answer."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._frames = Frames()
        self._waiting: dict[int, asyncio.Future[Answered]] = {}
        self._asked = 0
        self._transport: asyncio.Transport
        self.is_lost = False

    @classmethod
    async def start(cls, program: Sequence[str], environ: Mapping[str, str]) -> "SideProcess":
        """Start the process: a module of this package, and its arguments. Raises OSError.

        Call it on the event loop's thread, for as long as which the process may live: the kernel
        ends it with the thread that started it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await _start_program(program, environ, theirs.fileno())
        except BaseException:
            ours.close()
            raise
        loop = asyncio.get_running_loop()
        _, started = await loop.create_unix_connection(lambda: cls(process), sock=ours)
        return started

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return bool(self._waiting)

    async def ask(self, request: Any) -> msgspec.Raw:
        """Have a request carried out; returns what it is answered with.

        Raises ProcessLost where the process ends first, and RequestRefused where it says so.
        """
        if self.is_lost:
            raise ProcessLost
        self._asked = number = self._asked + 1
        frame = framed(Asked(number, request))
        answer = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        self._transport.write(frame)
        try:
            answered: Answered = await answer
        finally:
            self._waiting.pop(number, None)
        if answered.code is not None:
            raise RequestRefused(answered.code, answered.message)
        return answered.content

    async def stop(self, grace_s: float) -> None:
        """Have the process end what it does, and itself; killed after `grace_s` seconds."""
        self._transport.close()  # which is how it learns that it is needed no more
        try:
            async with asyncio.timeout(grace_s):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the process."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from it

    def data_received(self, data: bytes) -> None:
        """Hand each answer to the request that it is for."""
        for content in self._frames.feed(data):
            answered = _decode(content)
            waiting = self._waiting.get(answered.number)
            if waiting is not None and not waiting.done():  # else whoever asked waits no more
                waiting.set_result(answered)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's protocol
        """Tell everybody who waits that there is no answer."""
        self.is_lost = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ProcessLost())


async def _start_program(
    program: Sequence[str], environ: Mapping[str, str], socket_fd: int
) -> asyncio.subprocess.Process:
    kept = {name: environ[name] for name in ("PATH", "LANG", "LC_ALL") if name in environ}
    return await asyncio.create_subprocess_exec(
        *command_of(*program),
        env={**kept, "PYTHONPATH": python_path()},
        cwd="/",
        stdin=socket_fd,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in a terminal is the controller's to handle
    )
