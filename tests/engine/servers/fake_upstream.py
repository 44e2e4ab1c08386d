"""A server that answers with the bytes a test gives it, whatever HTTP says of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from supervisor.engine.port import Address

CLOSE = b"<close>"
"""As a piece of a script: close the connection in order."""
RESET = b"<reset>"
"""As a piece of a script: reset the connection."""
WAIT = b"<wait>"
"""As a piece of a script: wait until the test lets it go on."""


@dataclass(slots=True, kw_only=True)
class FakeUpstream:
    """Answers each request by its path. A script is pieces of bytes, each written by itself."""

    scripts: dict[str, list[bytes]] = field(default_factory=dict)
    first_scripts: dict[str, list[bytes]] = field(default_factory=dict)
    """What is played in place of a script, once."""
    requests: list[bytes] = field(default_factory=list)
    """Requests as they came, heads and bodies."""
    connections: int = 0
    open_connections: int = 0
    written_bytes: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(_length(head))
                self.requests.append(head + body)
                if not await self._play(head.split(b" ")[1].decode(), writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open_connections -= 1
            writer.close()

    async def _play(self, path: str, writer: asyncio.StreamWriter) -> bool:
        """Return whether the connection goes on."""
        for piece in self.first_scripts.pop(path, self.scripts[path]):
            if piece == CLOSE:
                return False
            if piece == RESET:
                writer.transport.abort()
                return False
            if piece == WAIT:
                await self.go_on.wait()
                continue
            writer.write(piece)
            await writer.drain()
            self.written_bytes += len(piece)
            await asyncio.sleep(0)
        return True


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


@asynccontextmanager
async def listening(
    upstream: FakeUpstream, address: Address, limit: int = 65536
) -> AsyncIterator[Callable[[], None]]:
    """Serve at an address; yields what closes the listener alone."""
    if address.socket_path is not None:
        server = await asyncio.start_unix_server(
            upstream.serve, str(address.socket_path), limit=limit
        )
    else:
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", address.port, limit=limit)
    try:
        yield server.close
    finally:
        server.close()
