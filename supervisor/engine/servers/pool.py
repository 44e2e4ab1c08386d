"""The connections to one server that are open, and how a new one is made.

The one that was used last is used first: llama-server keeps a thread at each connection, so the
fewer are in use the better, and the others grow old and are closed.
"""

import asyncio
import errno
import socket
from typing import Protocol

from supervisor.engine.port import Address
from supervisor.engine.servers.connection import Carried, Connection

KEEPALIVE_S = 4.0
"""Idle seconds after which a connection is closed: llama-server closes it after 5, and a request
that is sent at that moment is lost."""

_CONNECT_TIMEOUT_S = 5.0
_CROWDED_PAUSE_S = 0.005


class Load(Carried, Protocol):
    """A request on its way to a connection."""

    connecting: asyncio.Task[None] | None
    """What opens one for it."""

    def fail_to_connect(self, error: OSError) -> None:
        """End it: no connection could be made."""


class Pool:
    """The connections to one address."""

    def __init__(self, address: Address, keepalive_s: float = KEEPALIVE_S) -> None:
        self._address = address
        self._keepalive_s = keepalive_s
        self._loop = asyncio.get_running_loop()
        self.open: set[Connection] = set()
        """Those that stand, in use or idle."""
        self._idle: list[Connection] = []
        """The one that was used last stands last."""
        self._sweep: asyncio.TimerHandle | None = None

    def carry(self, load: Load) -> None:
        """Send a request on the connection that was used last, or on a new one."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.send(load)
                return
        load.connecting = asyncio.create_task(self._open_for(load), name="connect")

    async def _open_for(self, load: Load) -> None:
        try:
            connection = await self._open()
        except OSError as error:
            load.connecting = None
            load.fail_to_connect(error)
        else:
            load.connecting = None
            connection.send(load)

    async def _open(self) -> Connection:
        """Return a new connection.

        Waits while the server's queue of connections is full. Raises OSError, TimeoutError being
        one, where nobody listens.
        """
        path, port = self._address.socket_path, self._address.port
        if path is not None:
            standing = await _connect_to_socket(str(path))
            _, connection = await self._loop.create_unix_connection(
                lambda: Connection(self), sock=standing
            )
        else:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self), "127.0.0.1", port or 0
                )
        if not connection.is_usable:
            raise ConnectionResetError(errno.ECONNRESET, "closed as soon as it was made")
        self.open.add(connection)
        return connection

    def put(self, connection: Connection) -> None:
        """Keep a connection whose answer has ended, for the next request."""
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(self._keepalive_s, self._close_old)

    def close(self) -> None:
        """Close all of them at once."""
        if self._sweep is not None:
            self._sweep.cancel()
        self._idle.clear()
        for connection in tuple(self.open):
            connection.abort()

    def _close_old(self) -> None:
        """Close what was idle for too long; the idle stand in the order of their last use."""
        now = self._loop.time()
        while self._idle and now - self._idle[0].idle_since >= self._keepalive_s:
            self._idle.pop(0).close()
        self._sweep = None
        if self._idle:
            due_at = self._idle[0].idle_since + self._keepalive_s
            self._sweep = self._loop.call_at(due_at, self._close_old)


async def _connect_to_socket(path: str) -> socket.socket:
    """Return a connected unix socket. It connects at once, or is refused: EAGAIN, queue full."""
    while True:
        standing = socket.socket(socket.AF_UNIX)
        standing.setblocking(False)
        try:
            standing.connect(path)
        except OSError as error:
            standing.close()
            if error.errno != errno.EAGAIN:
                raise
        else:
            return standing
        await asyncio.sleep(_CROWDED_PAUSE_S)
