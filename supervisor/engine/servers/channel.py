"""The one way to talk to a server: who may send, what is in flight, and what may be sent again.

The form with callbacks (`send`) is the way of the relay: where a permit is free and a connection
idle, the request is on the wire when it returns, without a task and without a wait. `exchange` is
the same for whoever would rather wait for an answer and read it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from supervisor.engine.port import Address
from supervisor.engine.servers.answer import ServerAnswer
from supervisor.engine.servers.connection import Connection
from supervisor.engine.servers.framing import HAS_LENGTH_WITHOUT_BODY, Head, Request, encoded
from supervisor.engine.servers.pool import KEEPALIVE_S, Pool
from supervisor.engine.servers.slow_readers import SlowReaders
from supervisor.errors import BackendUnreachable

STOPPED = "is stopped, or has ended; see /status for its last exit"
"""What errors say of a server whose connections were cut by us."""


class Receiver(Protocol):
    """Takes an answer as it comes. Its end, or `failed`, comes last: one of them, once.

    Nothing is called before `send` has returned, nor after `cancel`.
    """

    def take(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        """Take what came of the answer: its head, once and first; a piece of its body; its end."""

    def failed(self, error: BackendUnreachable) -> None:
        """The answer does not come, or breaks off."""


Fault = Callable[[str, bool], BackendUnreachable]
"""Makes the error of a reason ("the server" stands before it) and whether to repeat is safe."""


class Activity:
    """Requests that are with a server now, and the signs of life that it gives.

    Our own questions count for nothing here: a server that hangs may well answer them.
    """

    __slots__ = ("held", "requests", "signs")

    def __init__(self) -> None:
        self.requests = 0
        """Requests that are with the server, answered in part or not at all."""
        self.held = 0
        """Those of them that wait for who reads the answer, not for the server."""
        self.signs = 0
        """Counts up with each piece of an answer, and each request that begins or ends."""

    def begin(self) -> None:
        """A request is sent to the server."""
        self.requests += 1
        self.signs += 1

    def end(self) -> None:
        """A request is over, whatever came of it."""
        self.requests -= 1
        self.signs += 1


class Channel:
    """All connections to one server, from its start until `close`.

    `permits`: requests that are with the server at a time; further ones wait here, the first come
    first. As each has a connection of its own, no more connections than that are opened, but for
    those of our own questions. `fault` makes the errors, `is_alive` says whether the process runs.
    An idle connection is closed after `keepalive_s`. `names_requests`: whether the server is told
    their ids.
    """

    def __init__(  # noqa: PLR0913 - each is known to the backend alone
        self,
        address: Address,
        authorization: str,
        permits: int,
        *,
        fault: Fault = lambda reason, may_repeat: BackendUnreachable(
            f"the server {reason}", may_repeat=may_repeat
        ),
        is_alive: Callable[[], bool] = lambda: True,
        keepalive_s: float = KEEPALIVE_S,
        names_requests: bool = True,
    ) -> None:
        host = "localhost" if address.socket_path else f"127.0.0.1:{address.port}"
        self._own_headers = f"Host: {host}\r\nAuthorization: {authorization}\r\n".encode()
        self.names_requests = names_requests
        self.fault = fault
        self.is_alive = is_alive
        self.activity = Activity()
        self.is_closed = False
        self._free_permits = permits
        self._waiting: deque[Exchange] = deque()
        self._begun: set[Exchange] = set()
        self.pool = Pool(address, keepalive_s)
        self.slow_readers = SlowReaders(
            lambda: any(not waiting.is_over for waiting in self._waiting)
        )

    @property
    def open_connections(self) -> int:
        """Connections that stand, in use or idle."""
        return len(self.pool.open)

    def send(
        self, request: Request, receiver: Receiver, *, takes_permit: bool = True
    ) -> "Exchange":
        """Send a request when a permit is free; what comes back is for the receiver.

        `takes_permit=False` is for our own questions, which must not wait behind requests. Raises
        ValueError where the request cannot be written as one.
        """
        exchange = Exchange(self, request, self._own_headers, receiver)
        if self.is_closed:
            asyncio.get_running_loop().call_soon(exchange.fail, STOPPED, True)
            return exchange
        if takes_permit and not self._free_permits:
            self._waiting.append(exchange)
            return exchange
        if takes_permit:
            self._free_permits -= 1
            exchange.has_permit = True
        self._begin(exchange)
        return exchange

    def exchange(self, request: Request, *, takes_permit: bool = True) -> ServerAnswer:
        """Return what sends the request, to be entered by `async with`; see `ServerAnswer`."""
        return ServerAnswer(
            lambda receiver: self.send(request, receiver, takes_permit=takes_permit)
        )

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask a question of our own, with JSON or nothing; gives the answer's status and body.

        Raises BackendUnreachable.
        """
        headers = ((b"Content-Type", b"application/json"),) if body else ()
        request = Request(method=method, path=path, headers=headers, body=body)
        async with self.exchange(request, takes_permit=False) as answer:
            return answer.status, await answer.read()

    def close(self) -> None:
        """Cut every connection, and fail what is in flight or waits for a permit."""
        self.is_closed = True
        waiting, self._waiting = self._waiting, deque()
        for exchange in (*self._begun, *waiting):
            exchange.cut()
        self.pool.close()

    def _begin(self, exchange: "Exchange") -> None:
        self._begun.add(exchange)
        if exchange.has_permit:
            self.activity.begin()
        self.pool.carry(exchange)

    def release(self, exchange: "Exchange") -> None:
        """Give the permit of an exchange that is over to the next one."""
        if exchange not in self._begun:
            return
        self._begun.discard(exchange)
        if not exchange.has_permit:
            return
        self.activity.end()
        while self._waiting:
            following = self._waiting.popleft()
            if not following.is_over:
                following.has_permit = True
                self._begin(following)
                return
        self._free_permits += 1


class Exchange:
    """One request and its answer, from `send` until that has ended, failed or is cancelled."""

    __slots__ = (
        "_channel",
        "_may_be_read",
        "_paused_s",
        "_receiver",
        "body",
        "connecting",
        "connection",
        "has_permit",
        "head",
        "is_head_only",
        "is_over",
        "paused_at",
    )

    def __init__(
        self, channel: Channel, request: Request, own_headers: bytes, receiver: Receiver
    ) -> None:
        """`own_headers`: whole lines. Raises ValueError as `encoded`."""
        self._channel = channel
        self._receiver: Receiver | None = receiver
        self.paused_at: float | None = None
        """Since when its reader does not keep up, by the loop's clock."""
        self._paused_s = 0.0
        """How long its reader did not keep up before that."""
        self._may_be_read = False
        """Whether the server may have read the request."""
        self.body = body = request.body
        self.is_head_only = request.method == "HEAD"
        self.connecting: asyncio.Task[None] | None = None
        self.connection: Connection | None = None
        self.has_permit = False
        self.is_over = False
        start, lines = encoded(request.method, request.path, request.headers)
        length = own_id = b""
        if body or request.method in HAS_LENGTH_WITHOUT_BODY:
            length = b"Content-Length: %d\r\n" % len(body)
        if request.request_id is not None and channel.names_requests:
            own_id = b"X-Request-ID: %b\r\n" % request.request_id.encode("ascii")
        self.head = b"%b%b%b%b%b\r\n" % (start, own_headers, lines, own_id, length)

    def pause(self) -> None:
        """Ask for no more data until `resume`; the server is not blamed for the pause.

        The reader is: see `SlowReaders`.
        """
        if self.paused_at is not None or self.is_over:
            return
        self.paused_at = asyncio.get_running_loop().time()
        self._channel.activity.held += 1
        self._channel.slow_readers.hold(self)
        if self.connection is not None:
            self.connection.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        if self.paused_at is None:
            return
        self._end_pause(self.paused_at)
        if self.connection is not None:
            self.connection.resume()

    def cancel(self) -> None:
        """Cut it, which frees the server's slot. The receiver hears nothing more."""
        if self.is_over:
            return
        self._cut_connection()
        self._finish()

    # What the channel, the pool and the connection call

    def came(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        """See `Carried`."""
        if is_end:
            receiver = self._finish()
        else:
            receiver = self._receiver
            self._note_sign()
        if receiver is not None:
            receiver.take(head, data, is_end=is_end)

    def broken(self, reason: str, *, is_stale: bool, is_unread: bool) -> None:
        """See `Carried`; sends the request again where the server did not read it.

        It closes a connection that was idle for 5 s, or had 100 requests, and may do so at the
        moment when the next one is written.
        """
        self.connection = None
        self._may_be_read = self._may_be_read or not is_unread
        if is_stale and not self._channel.is_closed and self._channel.is_alive():
            self._channel.pool.carry(self)
        else:
            self.fail(reason, may_repeat=not self._may_be_read)

    def fail_to_connect(self, error: OSError) -> None:
        """See `pool.Load`."""
        reason = f"cannot be reached ({error or type(error).__name__})"
        if self._may_be_read:
            reason = f"closed the connection without an answer, and {reason}"
        self.fail(reason, may_repeat=not self._may_be_read)

    def held_s(self, now: float) -> float:
        """See `Held`."""
        return self._paused_s + (0.0 if self.paused_at is None else now - self.paused_at)

    def give_up(self, reason: str) -> None:
        """See `Held`."""
        self._cut_connection()
        self.fail(reason, may_repeat=False)

    def cut(self) -> None:
        """End it: the connections to the server are cut."""
        is_sent = self.connection is not None or self._may_be_read
        self._cut_connection()
        self.fail(STOPPED, may_repeat=not is_sent)

    def fail(self, reason: str, may_repeat: bool) -> None:
        """End it with an error."""
        receiver = self._finish()
        if receiver is not None:
            receiver.failed(self._channel.fault(reason, may_repeat))

    def _cut_connection(self) -> None:
        if self.connecting is not None:
            self.connecting.cancel()
        if self.connection is not None:
            self.connection.abort()

    def _finish(self) -> Receiver | None:
        """End it, and return who is still to hear of that.

        A receiver refers to its exchange: unless both let go here, a body stays in memory until a
        full collection, which comes rarely.
        """
        receiver, self._receiver, self.body = self._receiver, None, b""
        self.is_over = True
        self.connection = None
        if self.paused_at is not None:
            self._end_pause(self.paused_at)
        self._channel.release(self)
        return receiver

    def _end_pause(self, began_at: float) -> None:
        self._paused_s += asyncio.get_running_loop().time() - began_at
        self.paused_at = None
        self._channel.activity.held -= 1
        self._channel.slow_readers.let_go(self)
        self._note_sign()

    def _note_sign(self) -> None:
        if self.has_permit:
            self._channel.activity.signs += 1
