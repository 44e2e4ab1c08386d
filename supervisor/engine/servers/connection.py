"""One connection to a server: writes a request, and reads its answer with llhttp.

The parser is given every byte, so that the end of an answer is known by its framing alone. What
cannot be used again is closed: llama-server closes a connection after a chunked answer although
its head says keep-alive, so one that carried such an answer is never kept.
"""

import asyncio
from typing import Protocol, cast

import httptools

from supervisor.engine.servers.framing import CONTENT_LENGTH, Head, form_of

MAX_HEAD_BYTES = 64 * 1024
"""A head that has not ended after so many bytes is an error; llhttp itself sets no bound."""

_MAX_JOINED_BYTES = 64 * 1024  # a body up to this is copied behind its head, to be one write

_UNREAD = (ConnectionResetError, BrokenPipeError)
"""How a connection ends on which the other side left bytes of ours unread: else it ends in order
(tcp(7), unix(7)), as it does where a server dies of a request that it has read."""


class Carried(Protocol):
    """What a connection carries, and tells what comes. After its end or `broken` nothing comes."""

    head: bytes
    """That of the request, as it is written."""

    body: bytes

    is_head_only: bool
    """Whether it is a HEAD, whose answer has no body."""

    connection: "Connection | None"
    """What carries it; set when it is sent."""

    paused_at: float | None
    """Since when nothing is to be read; None while it is."""

    def came(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        """Take what came of the answer: its head, once; a piece of its body, decoded; its end.

        Interim heads (1xx) are passed over.
        """

    def broken(self, reason: str, *, is_stale: bool, is_unread: bool) -> None:
        """The connection is of no use any more.

        `is_stale`: it was used before, and no byte of this answer came. `is_unread`: the request
        was not read to its end. `reason` continues a sentence that begins with the server.
        """


class Home(Protocol):
    """Where a connection goes when its answer has ended."""

    def put(self, connection: "Connection") -> None:
        """Keep one that may be used again."""

    open: "set[Connection]"
    """Those that stand; a connection that is closed leaves it."""


class Connection(asyncio.Protocol):
    """A connection to a server, from when it stands until it is closed; one exchange at a time."""

    __slots__ = (
        "_body",
        "_carried",
        "_has_begun",
        "_has_surplus",
        "_head",
        "_head_bytes",
        "_headers",
        "_home",
        "_is_chunked",
        "_is_complete",
        "_is_head_given",
        "_is_parsed",
        "_is_paused",
        "_keeps_alive",
        "_length",
        "_parser",
        "_reason",
        "_transport",
        "_uses",
        "idle_since",
    )

    _transport: asyncio.Transport

    def __init__(self, home: Home) -> None:
        self._home = home
        self._parser = httptools.HttpResponseParser(self)
        self._carried: Carried | None = None
        self._uses = 0
        self._is_paused = False
        self.idle_since = 0.0
        """When its last answer ended, by the loop's clock."""

    @property
    def is_usable(self) -> bool:
        """Whether it is not known to be closed."""
        return not self._transport.is_closing()

    def send(self, carried: Carried) -> None:
        """Write a request; what comes is for it."""
        self._carried = carried
        carried.connection = self
        self._uses += 1
        self._head: Head | None = None
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._length: int | None = None
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._has_begun = self._is_head_given = self._is_chunked = False
        self._is_complete = self._is_parsed = self._has_surplus = self._keeps_alive = False
        if len(carried.body) <= _MAX_JOINED_BYTES:
            self._transport.write(carried.head + carried.body)
        else:
            self._transport.writelines((carried.head, carried.body))
        if carried.paused_at is not None:
            self.pause()

    def pause(self) -> None:
        """Read nothing more until `resume`: who reads the answer cannot keep up."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        self._transport.resume_reading()

    def abort(self) -> None:
        """Close it at once; nothing more is handed on."""
        self._carried = None
        self._transport.abort()

    def close(self) -> None:
        """Close one that carries nothing."""
        self._transport.close()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's only act like one

    def data_received(self, data: bytes) -> None:
        """Parse what came, and tell it."""
        if self._carried is None:  # nobody asked for it
            self._transport.abort()
            return
        self._has_begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self._is_complete:
                self._break(f"sent an answer that is not HTTP/1.1 ({error})")
                return
            self._has_surplus = True
        if self._head is None:
            self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._break(f"answered with a head of more than {MAX_HEAD_BYTES} bytes")
        elif self._head is not None:
            self._tell(self._carried, self._head)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what it carries: an answer that states no length ends so; any other is broken."""
        self._home.open.discard(self)
        carried, self._carried = self._carried, None
        if carried is None:
            return
        if exc is None and self._ends_with_connection():
            carried.came(None, b"", is_end=True)
        else:
            is_unread = not self._has_begun and isinstance(exc, _UNREAD)
            carried.broken(
                self._how_it_was_lost(exc), is_stale=self._is_stale(), is_unread=is_unread
            )

    # What the parser calls; an answer that nobody asked for is only noted.

    def on_message_begin(self) -> None:
        """Note an answer behind the answer."""
        if self._is_complete:
            self._has_surplus = True

    def on_status(self, reason: bytes) -> None:
        """Take the words behind the status, or a part of them."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a chunked body (trailers) come too late."""
        if self._head is not None:
            return
        if len(name) == len(CONTENT_LENGTH) and name.lower() == CONTENT_LENGTH:
            self._length = int(value)
            value = b""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Make the head, unless it is an interim one."""
        if self._head is not None:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            form = form_of(status, self._reason, tuple(self._headers))
            self._head = Head(form, self._length)
            self._is_complete = self._carried is not None and self._carried.is_head_only
        self._reason, self._headers, self._length = b"", [], None

    def on_chunk_header(self) -> None:
        """Note that the body is chunked."""
        self._is_chunked = True

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        if not self._is_complete:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the answer, but of an interim one."""
        if self._head is not None and not self._has_surplus:
            self._is_complete = self._is_parsed = True
            self._keeps_alive = self._parser.should_keep_alive()

    # What follows from it

    def _tell(self, carried: Carried, head: Head) -> None:
        """Hand on what was parsed; a connection is set free before the end of its answer is."""
        fresh = None if self._is_head_given else head
        self._is_head_given = True
        pieces, self._body = self._body, []
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        is_end = self._is_complete
        if is_end:
            self._set_free()
        if is_end or data or fresh is not None:
            carried.came(fresh, data, is_end=is_end)

    def _set_free(self) -> None:
        self._carried = None
        if self._is_paused:
            self.resume()
        if self._may_be_used_again():
            self._home.put(self)
        else:
            self._transport.close()

    def _may_be_used_again(self) -> bool:
        return (
            self._is_parsed
            and self._keeps_alive
            and not self._is_chunked
            and self._head is not None
            # Chunks may follow a 204, unasked.
            and self._head.form.value(b"transfer-encoding") is None
            and not self._has_surplus
            and not self._transport.get_write_buffer_size()  # else it was answered half-read
            and not self._transport.is_closing()
        )

    def _break(self, reason: str) -> None:
        carried, self._carried = self._carried, None
        self._transport.abort()
        if carried is not None:
            carried.broken(reason, is_stale=False, is_unread=False)

    def _is_stale(self) -> bool:
        """Whether the server may have closed it before it read the request."""
        return self._uses > 1 and not self._has_begun

    def _ends_with_connection(self) -> bool:
        head = self._head
        if head is None or self._is_complete:
            return False
        return head.length is None and head.form.value(b"transfer-encoding") is None

    def _how_it_was_lost(self, exc: Exception | None) -> str:
        where = "in the middle of its answer" if self._has_begun else "without an answer"
        how = f" ({exc})" if exc else ""
        return f"closed the connection{how} {where}"
