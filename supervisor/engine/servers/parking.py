"""How a server gives its devices' memory up and lives on, and takes it back.

Either it does so itself, when it is asked over HTTP (`ParkRoutes`), or the driver does it to its
process (`supervisor/engine/cuda/`).
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Protocol

import psutil

from supervisor.engine.cuda.checkpoint import CheckpointError, checkpoint, restore
from supervisor.engine.port import ParkRoutes
from supervisor.engine.servers.descendants import descendants_of
from supervisor.errors import BackendUnreachable, EngineError

_FIRST_POLL_S = 0.01
_MAX_POLL_S = 0.25

Ask = Callable[[str, str], Awaitable[tuple[int, bytes]]]
"""Asks a server by method and path; gives the answer's status and body."""


class NotParked(EngineError):
    """A server did not give its memory up, or did not take it back. The message says why."""


class WayOfParking(Protocol):
    """One of the ways. Whoever calls sets the deadline."""

    ends_by_itself: bool
    """Whether a parked server can still answer a signal; else only SIGKILL ends it."""

    async def park(self) -> None:
        """Return once the server says that it has given its memory up. Raises NotParked."""
        ...

    async def unpark(self) -> None:
        """Return once it has taken it back. Raises NotParked."""
        ...


class ParkingByRequest:
    """The server does it itself: it is told, and asked until it says so."""

    ends_by_itself = True

    def __init__(self, routes: ParkRoutes, ask: Ask) -> None:
        self._routes = routes
        self._ask = ask

    async def park(self) -> None:
        """POST `sleep`, and ask until it is asleep."""
        await self._order(self._routes.sleep)
        await self._wait_until(is_asleep=True)

    async def unpark(self) -> None:
        """POST `wake`, and ask until it is not asleep any more."""
        await self._order(self._routes.wake)
        await self._wait_until(is_asleep=False)

    async def _order(self, path: str) -> None:
        await self._answer("POST", path)

    async def _wait_until(self, *, is_asleep: bool) -> None:
        pause_s = _FIRST_POLL_S
        while _says_yes(await self._answer("GET", self._routes.is_asleep)) is not is_asleep:
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_POLL_S, pause_s * 1.5)

    async def _answer(self, method: str, path: str) -> bytes:
        try:
            status, body = await self._ask(method, path)
        except BackendUnreachable as error:
            raise NotParked(f"{method} {path}: {error}") from error
        if status // 100 != 2:
            said = body[:200].decode(errors="replace")
            raise NotParked(f"{method} {path} was answered with status {status}: {said}")
        return body


def _says_yes(body: bytes) -> bool:
    """Whether an answer is `true`, or an object with a field that is, as `{"is_sleeping": true}`.

    Raises NotParked for one that is no JSON.
    """
    try:
        told = json.loads(body)
    except ValueError as error:
        said = body[:200].decode(errors="replace")
        raise NotParked(f"whether it is asleep was answered without JSON: {said}") from error
    return told is True or (isinstance(told, dict) and any(v is True for v in told.values()))


class ParkingByCheckpoint:
    """The driver does it to the server's process, with all that it has in memory."""

    ends_by_itself = False

    def __init__(self, pid: int) -> None:
        self._pid = pid

    async def park(self) -> None:
        """Lock the process, and have its memory moved to the host."""
        try:
            await checkpoint(self._pid)
        except CheckpointError as error:
            raise NotParked(str(error)) from error

    async def unpark(self) -> None:
        """Have its memory moved back, and unlock it."""
        try:
            await restore(self._pid)
        except CheckpointError as error:
            raise NotParked(str(error)) from error


def held_on_host(pid: int) -> int:
    """Return the bytes of host memory that only the end of a process, and of its own, gives back.

    That is what it has in memory without its files, which the kernel may drop.
    """
    held_bytes = 0
    for each in (pid, *descendants_of(pid)):
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(each).memory_info()
            held_bytes += memory.rss - memory.shared
    return held_bytes
