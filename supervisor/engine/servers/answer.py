"""An answer to be waited for and read, over the form with callbacks."""

import asyncio
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from supervisor.engine.servers.framing import Head
from supervisor.errors import BackendUnreachable

BUFFER_BYTES = 1024 * 1024
"""What is read ahead of a reader that cannot keep up. An answer that fits gives the permit back
however slowly it is read; beyond it nothing more is read until the reader is back.
"""


class Handle(Protocol):
    """What an answer needs of its exchange."""

    def pause(self) -> None:
        """Ask for no more data."""

    def resume(self) -> None:
        """Ask for more data."""

    def cancel(self) -> None:
        """Cut the exchange."""


class ServerAnswer:
    """A server's answer: `async with channel.exchange(request) as answer` waits for its head.

    Leaving it early cuts the connection, and so frees the server's slot. Entering and reading
    raise BackendUnreachable.
    """

    def __init__(self, send: Callable[["ServerAnswer"], Handle]) -> None:
        self._send = send
        self._exchange: Handle | None = None
        self._head: Head | None = None
        self._chunks: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._is_paused = False
        self._is_over = False
        self._error: BackendUnreachable | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._on_end: Callable[[], None] | None = None

    @property
    def status(self) -> int:
        """Its status."""
        return self._known_head.form.status

    @property
    def reason(self) -> str:
        """The words behind the status."""
        return self._known_head.form.reason.decode("latin-1")

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Its headers as they came, duplicates kept."""
        return self._known_head.headers

    @property
    def length(self) -> int | None:
        """The stated length of its body; None where none is stated."""
        return self._known_head.length

    def value(self, name: bytes) -> bytes | None:
        """Return the first value of a header other than Content-Length; `name` in lower case."""
        return self._known_head.form.value(name)

    def on_end(self, call: Callable[[], None]) -> None:
        """Have `call` called once the server is done with it, maybe long before it is read."""
        if self._is_over:
            call()
        else:
            self._on_end = call

    async def read(self) -> bytes:
        """Return the rest of the body."""
        return b"".join([chunk async for chunk in self])

    async def __aenter__(self) -> Self:
        self._exchange = self._send(self)
        try:
            while self._head is None and self._error is None:
                await self._wait()
        except BaseException:
            self._exchange.cancel()
            raise
        if self._head is None and self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback refers to us
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._exchange is not None and not self._is_over:
            self._exchange.cancel()
        self._error = None  # its traceback refers to us

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks and not self._is_over:
            await self._wait()
        if self._chunks:
            return self._take()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    def _take(self) -> bytes:
        chunk = self._chunks.popleft()
        self._buffered_bytes -= len(chunk)
        if self._is_paused and not self._chunks and self._exchange is not None:
            self._is_paused = False
            self._exchange.resume()
        return chunk

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def _known_head(self) -> Head:
        assert self._head is not None  # noqa: S101 - entering it waits for the head
        return self._head

    # Receiver

    def take(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        """See `Receiver`."""
        if head is not None:
            self._head = head
        if data:
            self._chunks.append(data)
            self._buffered_bytes += len(data)
        self._is_over = is_end
        is_full = self._buffered_bytes > BUFFER_BYTES
        if is_full and not self._is_paused and not is_end and self._exchange:
            self._is_paused = True
            self._exchange.pause()
        if is_end and self._on_end is not None:
            self._on_end()
        self._wake()

    def failed(self, error: BackendUnreachable) -> None:
        """See `Receiver`."""
        self._error = error
        self._is_over = True
        self._wake()
