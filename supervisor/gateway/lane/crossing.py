"""One request on its way through the fast lane, from its lease until its answer has ended.

Everything happens in callbacks of the two connections: no task is made, and nothing is awaited.
"""

import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

import structlog

from supervisor.arbiter.arbiter import Lease
from supervisor.engine.servers.framing import CONTENT_LENGTH, Head, HeadForm
from supervisor.errors import BackendUnreachable, RequestRefused
from supervisor.gateway.answer import SERVER_NAME, Answer
from supervisor.gateway.call import Call, Headers
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.event_stream import last_event, note_broken
from supervisor.gateway.hop_by_hop import answer_headers
from supervisor.gateway.relay import COLLECT_UP_TO_BYTES, Relay, may_repeat, served_by
from supervisor.observability.request_log import RequestRecord, request_log

log = structlog.get_logger()

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_WITHOUT_BODY = frozenset({204, 304})  # RFC 9110, sections 15.3.5 and 15.4.5


class Lane(Protocol):
    """The client's connection, as a crossing uses it."""

    keeps_alive: bool
    """Whether another request may follow on it."""

    write: Callable[[bytes], None]
    """Sends bytes to the client."""

    def cut(self) -> None:
        """Close the connection behind what was written: the answer broke off."""

    def finish(self) -> None:
        """Take the next request, or close: the answer has ended."""

    def hand_over(self) -> None:
        """Have the other door answer the request, which has not got a byte of an answer."""


class Crossing:
    """The exchange of one call. It ends with the answer, by an error, or when its client leaves."""

    __slots__ = (
        "_call",
        "_exchange",
        "_head",
        "_is_chunked",
        "_lane",
        "_lease",
        "_pieces",
        "_record",
        "_relay",
        "is_streaming",
    )

    def __init__(
        self, lane: Lane, relay: Relay, call: Call, lease: Lease, record: RequestRecord
    ) -> None:
        """Send the call."""
        self._lane = lane
        self._relay = relay
        self._call = call
        self._lease = lease
        self._record = record
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        """The body, as long as the answer is collected."""
        self.is_streaming = self._is_chunked = False
        """Whether the answer is passed on as it comes, and in chunks."""
        self._exchange = lease.backend.send(call.request, self)

    # Receiver

    def take(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        """See `Receiver`."""
        if head is not None:
            self._begin_or_collect(head)
        if data:
            if self.is_streaming:
                self._write_piece(data)
                record = self._record
                record.tail = (data if len(data) >= 4 else record.tail + data)[-4:]
            else:
                self._pieces.append(data)
        if is_end:
            self._end()

    def _begin_or_collect(self, head: Head) -> None:
        """Begin the answer; a short one is sent when it is whole."""
        self._head = head
        length = head.length
        if length is not None and length <= COLLECT_UP_TO_BYTES:
            return
        if head.form.status in _WITHOUT_BODY:
            return
        self.is_streaming, self._is_chunked = True, length is None
        framing = b"Transfer-Encoding: chunked\r\n" if self._is_chunked else b""
        self._lane.write(self._begin(head, framing))

    def _end(self) -> None:
        head = self._head
        if self.is_streaming:
            if self._is_chunked:
                self._lane.write(b"0\r\n\r\n")
        elif head is not None:
            self._lane.write(b"".join((self._begin(head), *self._pieces)))
        self._close()
        self._lane.finish()

    def failed(self, error: BackendUnreachable) -> None:
        """See `Receiver`. A call that may be repeated waits at the other door."""
        backend = self._lease.backend
        has_successor = backend.is_replaced or not backend.is_stopping
        if not self.is_streaming and has_successor and may_repeat(self._call, error):
            self._lease.end()
            self._lane.hand_over()
            return
        refusal = self._relay.explained(
            error, backend, self._record, is_streaming=self.is_streaming
        )
        if self.is_streaming:
            self._break_off(refusal)
        else:
            self._refuse(refusal)

    # What the client's connection calls

    def pause(self) -> None:
        """Read no more from the backend."""
        self._exchange.pause()

    def resume(self) -> None:
        """Read on."""
        self._exchange.resume()

    def abandon(self) -> None:
        """End it, because its client has left: that frees the backend's slot."""
        self._exchange.cancel()
        self._close()

    def _break_off(self, error: RequestRefused) -> None:
        note_broken(self._record, error)
        event = last_event(self._record, error)
        if event:
            self._write_piece(event)
        self._close()
        self._lane.cut()

    def _refuse(self, error: RequestRefused) -> None:
        answer = error_answer(error)
        self._record.status = answer.status
        request_id, keeps_alive = self._record.request_id, self._lane.keeps_alive
        head = head_of_answer(answer, request_id, keeps_alive=keeps_alive)
        self._lane.write(head + answer.body)
        self._close()
        self._lane.finish()

    def _begin(self, head: Head, framing: bytes = b"") -> bytes:
        """Return the head of the answer; `framing` are whole lines of our own."""
        form, length = head.form, head.length
        self._record.status, self._record.headers = form.status, form.headers
        before, behind = _for_client(form)
        lines = before if length is None or not behind else b"%b%d%b" % (before, length, behind)
        wanted = self._call.wanted
        if wanted is not None and wanted.spill is not None:
            framing += _header_lines(served_by(self._call, self._lease.backend))
        request_id, keeps_alive = self._record.request_id, self._lane.keeps_alive
        return _end_head(lines, request_id, framing, keeps_alive=keeps_alive)

    def _write_piece(self, content: bytes) -> None:
        if self._is_chunked:
            content = b"%x\r\n%b\r\n" % (len(content), content)
        self._lane.write(content)

    def _close(self) -> None:
        self._lease.end()
        request_log.done(self._record)


def head_of_answer(answer: Answer, request_id: str, *, keeps_alive: bool) -> bytes:
    """Return the head of an answer of ours as its client gets it."""
    framing = b"Content-Length: %d\r\nServer: %b\r\n" % (len(answer.body), SERVER_NAME)
    lines = _lines(answer.status, _REASONS.get(answer.status, b""), answer.headers)
    return _end_head(lines, request_id, framing, keeps_alive=keeps_alive)


def _end_head(lines: bytes, request_id: str, framing: bytes, *, keeps_alive: bool) -> bytes:
    connection = b"" if keeps_alive else b"Connection: close\r\n"
    named, date = request_id.encode(), _date(int(time.time()))
    return b"%bDate: %b\r\nX-Request-ID: %b\r\n%b%b\r\n" % (
        lines,
        date,
        named,
        framing,
        connection,
    )


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    """Return a time as `Date` has it, which every answer needs (RFC 9110, 6.6.1)."""
    return formatdate(second, usegmt=True).encode()


@lru_cache(maxsize=256)
def _for_client(form: HeadForm) -> tuple[bytes, bytes]:
    """Return a head as its client gets it, up to the value of Content-Length, and from there.

    The second part is empty where it has none.
    """
    headers = answer_headers(form.headers)
    at = next((i for i, each in enumerate(headers) if each[0].lower() == CONTENT_LENGTH), None)
    if at is None:
        return _lines(form.status, form.reason, headers), b""
    before = _lines(form.status, form.reason, headers[: at + 1]).removesuffix(b"\r\n")
    return before, b"\r\n" + _header_lines(headers[at + 1 :])


def _lines(status: int, reason: bytes, headers: Headers) -> bytes:
    return b"HTTP/1.1 %d %b\r\n%b" % (status, reason, _header_lines(headers))


def _header_lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % each for each in headers])
