"""A client that costs as little as possible: it shares two cores with the servers it measures.

One keep-alive HTTP/1.1 connection (RFC 9112), requests made beforehand as bytes, answers looked at
just enough to tell a whole one from a broken one. Both sides of a comparison use it.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from lab.harness.servers import Endpoint

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n")
_CLOSES = b"\r\nconnection: close\r\n"
_CHUNKED = b"\r\ntransfer-encoding: chunked\r\n"
_BUFFER_BYTES = 1 << 20


class BrokenAnswerError(Exception):
    """An answer that is not what was asked for: another status, or an end that is missing."""


@dataclass(frozen=True, slots=True)
class Head:
    """Of an answer: its length in bytes (None: chunked), and whether the connection ends then."""

    length: int | None
    closes: bool


def post(path: str, content: object, headers: Mapping[str, str] | None = None) -> bytes:
    """Write a whole POST request with a JSON body."""
    body = json.dumps(content).encode()
    further = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"{further}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """Opens when the first request is sent, and again after the server has closed it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def exchange(self, request: bytes) -> bytes:
        """Send a request and return the body of its answer, which tells its length.

        Raises BrokenAnswerError, EOFError and OSError; `close()` the connection then.
        """
        reader, head = await self._send(request)
        if head.length is None:
            raise BrokenAnswerError("the answer does not tell its length")
        body = await reader.readexactly(head.length)
        if head.closes:
            self.close()
        return body

    async def stream(self, request: bytes) -> AsyncIterator[bytes]:
        """Send a request and give the chunks of its answer as they come, until its last one.

        Raises what `exchange()` raises; a stream that breaks off is an EOFError.
        """
        reader, head = await self._send(request)
        if head.length is not None:
            raise BrokenAnswerError("the answer is not a stream")
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)  # no trailers follow the last chunk
        if head.closes:
            self.close()

    def close(self) -> None:
        """Cut the connection; the next request opens another."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _send(self, request: bytes) -> tuple[asyncio.StreamReader, Head]:
        """Return the head of the answer; ask once more where a kept connection was stale.

        llama-server closes a connection after a streamed answer without saying so before. No byte
        of an answer came then, and the connection had served before: the request was not read
        (RFC 9112, section 9.3.1).
        """
        is_kept = self._reader is not None
        try:
            return await self._ask(request)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            has_begun = isinstance(error, asyncio.IncompleteReadError) and error.partial
            if has_begun or not is_kept:
                raise
        self.close()
        return await self._ask(request)

    async def _ask(self, request: bytes) -> tuple[asyncio.StreamReader, Head]:
        if self._reader is None or self._writer is None:
            self._reader, self._writer = await self._open()
        self._writer.write(request)
        raw = (await self._reader.readuntil(_HEAD_END)).lower()
        if not raw.startswith(b"http/1.1 200"):
            raise BrokenAnswerError(f"the answer begins {raw[:40]!r}")
        length = _LENGTH.search(raw)
        if length is None and _CHUNKED not in raw:
            raise BrokenAnswerError("the answer is neither of known length nor chunked")
        size = int(length[1]) if length else None
        return self._reader, Head(length=size, closes=_CLOSES in raw)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        path = self._endpoint.socket_path
        if path is not None:
            return await asyncio.open_unix_connection(path, limit=_BUFFER_BYTES)
        return await asyncio.open_connection("127.0.0.1", self._endpoint.port, limit=_BUFFER_BYTES)
