"""aiohttp's server with limits on how long a client may take: for a head, a body, idling, reading.

One look at all connections every few seconds costs a request nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import EMPTY_PAYLOAD, HttpVersion11, StreamReader, web, web_protocol, web_response
from aiohttp.http_exceptions import HttpProcessingError, InvalidURLError, LineTooLong
from aiohttp.web_protocol import _ErrInfo

from supervisor.config.settings import ServerSettings
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import SERVER_NAME
from supervisor.gateway.call_reader import new_request_id
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.reply import REQUEST_ID
from supervisor.observability.request_log import RequestRecord, request_log

log = structlog.get_logger()

LAST_ANSWERS_S = 2.0
"""Seconds that open handlers get once every backend is stopped; what is left cannot be answered."""

HALF_CLOSED_S = 0.25
"""Seconds without an answer until a client that sends no more is asked whether it is there, and
then between two questions. Most of them have left, and what is computed for them is wasted. The
second question is the one that fails: nobody reads the reset that the first is answered with."""

ARE_YOU_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What asks it: closed and half-closed connections look the same until something is written. Any
client of HTTP/1.1 discards this (RFC 9110, 15.2.1); where one has left, its system resets the
connection."""

_UNKNOWN = "-"
"""Method and path of what cannot be parsed, in its closing line, as access logs have it."""

_LOOKS_PER_LIMIT = 8
_LONGEST_PAUSE_S = 0.5  # half of what a request in pieces gets in the fast lane

MAX_TARGET_BYTES = 8192
MAX_FIELD_BYTES = 8190
"""Of one header. aiohttp's error names the limit that was passed, not whose it is: they differ."""

MAX_FIELDS = 128
_TOO_MANY_FIELDS = "Too many headers"  # aiohttp has no class of its own for it

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class WriteProgress:
    """Whether a client takes what is written to it."""

    __slots__ = ("_size", "_stuck_since")

    def __init__(self) -> None:
        self._size = 0
        self._stuck_since: float | None = None
        """Since when what was written and not taken has not become less."""

    def is_stuck(self, size: int, now: float, limit_s: float) -> bool:
        """Whether nothing of `size` bytes, those not taken yet, was taken for `limit_s`."""
        if size == 0 or size < self._size:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        self._size = size
        return self._stuck_since is not None and now - self._stuck_since >= limit_s


def note_slow_client(client: str | None, waited_for: str) -> None:
    """Log that a client is given up."""
    log.info("client.too_slow", waited_for=waited_for, client=client)


class ClientConnection(web.RequestHandler):
    """One client's connection, which knows since when it waits for what."""

    __slots__ = ("_has_ended", "_last_body", "answering", "go_back", "head_began_at", "writing")

    def __init__(self, server: web.Server, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self.answering = 0
        """Requests that are with a handler."""
        self.head_began_at: float | None = None
        """When a head began to come of which the end has not come."""
        self.writing = WriteProgress()
        self.go_back: Callable[[asyncio.Transport, bytes], None] | None = None
        """What goes on with the connection once its one request is answered; None: we do."""
        self._has_ended = False
        """Whether the client sends no more: it has left, or waits for its answers."""
        self._last_body: StreamReader = EMPTY_PAYLOAD

    def data_received(self, data: bytes) -> None:
        """Parse what came, and note when a head began."""
        if data:  # else aiohttp goes on with what it had put off
            if self.go_back is not None and self._is_given_back(self.go_back, data):
                return
            if self.head_began_at is None and not self.answering:
                self.head_began_at = asyncio.get_running_loop().time()
        super().data_received(data)
        if self._messages:
            latest, body = self._messages[-1]
            if isinstance(latest, _ErrInfo):
                self._give_up(self._last_body, _without_what_was_sent(latest.message))
            self._last_body = body

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's closes at once
        """Keep the way open to a client that sends no more and is owed an answer."""
        self._has_ended = True
        is_owed = self._is_owed_an_answer() and self._last_body.is_eof()
        if is_owed:
            asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._ask_whether_it_is_there)
        return is_owed

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Refuse a head that cannot be parsed, or does not come, as all is, with its closing line.

        aiohttp's answer is a plain text, and its log quotes what the client sent.
        """
        if isinstance(exc, HttpProcessingError):
            exc = _refusal_of(exc)
        if not isinstance(exc, RequestRefused):
            return super().handle_error(request, status, exc, message)
        record = RequestRecord(_UNKNOWN, _UNKNOWN, new_request_id(), self._client or "")
        answer = error_answer(exc)
        record.status = answer.status
        request_log.done(record)
        named = (*answer.headers, (REQUEST_ID, record.request_id.encode()))
        headers = {name.decode(): value.decode() for name, value in named}
        response = web.Response(status=answer.status, body=answer.body, headers=headers)
        response.force_close()
        return response

    def close_if_ended(self) -> None:
        """Close behind the last answer to a client that sends no more."""
        if self._has_ended and not self._messages:
            self.close()

    def _give_up(self, body: StreamReader, problem: str) -> None:
        """Tell whoever reads a body that its rest cannot be read, nor what follows it."""
        if body.is_eof():
            return
        self._lingering_time = 0.0
        if self.answering or len(self._messages) > 1:
            body.set_exception(web.RequestPayloadError(problem))
        else:  # it was answered before
            body.feed_eof()

    def _is_owed_an_answer(self) -> bool:
        return bool(self._messages) or self._waiter is None

    def _ask_whether_it_is_there(self) -> None:
        """Write to a client that sends no more, until its answer begins or it has left."""
        transport, request = self.transport, self._current_request
        if transport is None:
            return
        if not self._is_owed_an_answer():
            transport.close()
            return
        if request is not None and not request.writer.output_size:
            if request.version < HttpVersion11:  # it would not know what is written
                transport.abort()
                return
            transport.write(ARE_YOU_THERE)
        asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._ask_whether_it_is_there)

    def _is_given_back(
        self, go_back: Callable[[asyncio.Transport, bytes], None], data: bytes
    ) -> bool:
        """Give the connection back with what came, unless that came before the answer had ended.

        Bytes that come earlier may be part of what is parsed here: they would be read twice.
        """
        self.go_back = None
        transport = self.transport
        if self.answering or self.head_began_at is not None or transport is None:
            return False
        self.transport = None  # else it would be closed
        self.connection_lost(None)
        go_back(transport, data)
        return True

    def judge(self, now: float, limits: ServerSettings) -> None:
        """Cut the connection if its client takes too long."""
        transport = self.transport
        if transport is None:
            return
        began_at = self.head_began_at
        if self.writing.is_stuck(transport.get_write_buffer_size(), now, limits.write_timeout_s):
            note_slow_client(self._client, "write")
            transport.abort()
        elif began_at is not None and now - began_at >= limits.head_timeout_s:
            note_slow_client(self._client, "head")
            self._end_with(
                RequestRefused(
                    "head_timeout",
                    f"the head of the request did not come within {limits.head_timeout_s:g} s "
                    "(server.head_timeout_s)",
                )
            )

    def _end_with(self, refusal: RequestRefused) -> None:
        """Answer with a refusal, in place of a request, and close behind it."""
        self.head_began_at = None
        self._messages.append((_ErrInfo(0, refusal, ""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def _client(self) -> str | None:
        return self.peername[0] if self.peername else None


class ClientServer(web.Server):
    """Makes a `ClientConnection` of each connection, and looks after them."""

    def __init__(self, handler: Handler, limits: Callable[[], ServerSettings]) -> None:
        self.limits = limits
        super().__init__(_counted(handler), handler_cancellation=True)

    def __call__(self) -> ClientConnection:
        """Return what serves a new connection; its bodies stay as they came."""
        return ClientConnection(
            self,
            auto_decompress=False,
            access_log=None,
            keepalive_timeout=self.limits().idle_timeout_s,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            max_headers=MAX_FIELDS,
        )

    async def watch(self) -> None:
        """Look at the connections again and again. Runs until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            limits = self.limits()
            shortest_s = min(limits.head_timeout_s, limits.write_timeout_s)
            await asyncio.sleep(min(_LONGEST_PAUSE_S, shortest_s / _LOOKS_PER_LIMIT))
            self.look(loop.time(), limits)

    def look(self, now: float, limits: ServerSettings) -> None:
        """Cut connections whose clients take too long."""
        for connection in self.connections:
            if isinstance(connection, ClientConnection):  # there are no others
                connection.judge(now, limits)


class ClientRunner(web.ServerRunner):
    """Serves, and watches what it serves."""

    __slots__ = ("_client_server", "_watching")

    def __init__(self, server: ClientServer) -> None:
        super().__init__(server, shutdown_timeout=LAST_ANSWERS_S)
        self._client_server = server
        self._watching: asyncio.Task[None] | None = None

    async def setup(self) -> None:
        """Begin to watch."""
        await super().setup()
        self._watching = asyncio.create_task(self._client_server.watch(), name="watch-clients")

    async def cleanup(self) -> None:
        """Close all connections, and watch no longer."""
        if self._watching is not None:
            self._watching.cancel()
        await super().cleanup()


def make_runner(
    handler: Handler,
    limits: Callable[[], ServerSettings] = ServerSettings,
    make_server: Callable[[Handler, Callable[[], ServerSettings]], ClientServer] = ClientServer,
) -> ClientRunner:
    """Return what serves: clients that leave cancel, bodies stay as they came."""
    # aiohttp's names its own version and Python's, also in what it answers before any handler.
    web_response.SERVER_SOFTWARE = SERVER_NAME.decode()  # type: ignore[attr-defined]
    # What cannot be parsed is answered as HTTP/1.0 by aiohttp, which has no `Connection: close`.
    web_protocol.ERROR = web_protocol.ERROR._replace(version=HttpVersion11)
    return ClientRunner(make_server(handler, limits))


def _counted(handler: Handler) -> Handler:
    """Have each connection know of the requests that are being answered."""

    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        if not isinstance(connection, ClientConnection):
            return await handler(request)
        connection.head_began_at = None
        connection.answering += 1
        try:
            return await handler(request)
        finally:
            connection.answering -= 1
            connection.close_if_ended()

    return answer


def _refusal_of(error: HttpProcessingError) -> RequestRefused:
    """Say what is wrong with a head that the parser does not take, without what was sent."""
    if isinstance(error, LineTooLong) and error.args[1] == MAX_TARGET_BYTES:
        return RequestRefused(
            "uri_too_long",
            f"the request target has more than {MAX_TARGET_BYTES} bytes; send what is long in a "
            "body",
        )
    if isinstance(error, LineTooLong) or error.message.startswith(_TOO_MANY_FIELDS):
        return RequestRefused(
            "header_fields_too_large",
            f"a header has more than {MAX_FIELD_BYTES} bytes, or there are more than {MAX_FIELDS}; "
            "send shorter or fewer ones",
        )
    problem = _without_what_was_sent(error.message)
    if isinstance(error, InvalidURLError):
        problem = "its target is neither a path nor a URL"
    return RequestRefused("bad_request", f"the request cannot be read: {problem}")


def _without_what_was_sent(message: str) -> str:
    """Return what the parser says is wrong; what was sent stands behind a colon."""
    return message.partition(":")[0].rstrip(".")
