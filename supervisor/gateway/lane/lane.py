"""One client's connection in the fast lane.

It serves plain requests, one at a time. One that is not plain, or cannot be served at once, goes to
the other door, and the connection with it, before a byte of an answer was sent: so what is right
does not depend on this door, only how fast. Behind a plain request the connection comes back; where
it is not sure where a request ends, it stays there.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

import msgspec

from supervisor.config.settings import ServerSettings
from supervisor.errors import RequestRefused
from supervisor.gateway.bodies import BodyAccount
from supervisor.gateway.call import CallHead
from supervisor.gateway.connections import (
    ARE_YOU_THERE,
    HALF_CLOSED_S,
    ClientConnection,
    WriteProgress,
    note_slow_client,
)
from supervisor.gateway.form_routes import FormRoute
from supervisor.gateway.lane.answering import Answering
from supervisor.gateway.lane.crossing import Crossing
from supervisor.gateway.lane.plain_head import MAX_HEAD_BYTES, PlainHead, may_be_plain

MAX_BODY_BYTES = 1024 * 1024
"""Longer bodies are read by the other door."""

BUFFER_BYTES = 1024 * 1024
"""What is buffered for a client that does not read: an answer up to this length gives its permit at
the backend back, however slow its client is."""

PATIENCE_S = 1.0
"""Seconds in which a request comes whole; the other door goes on with one that does not, and has
the limits for that."""


class KnownHead(msgspec.Struct, frozen=True):
    """A plain head, whose Content-Length reads 0, and what it says of its call.

    `call_head` None: the other door's, plain as it is, and so is a body of more than
    `max_body_bytes`. `forms`: those in which its body may ask.
    """

    plain: PlainHead
    call_head: CallHead | None
    max_body_bytes: int
    forms: tuple[FormRoute, ...]


class Lanes(Protocol):
    """What all connections share."""

    def open_account(self) -> BodyAccount:
        """Return what the body of one request is counted in."""

    def enter(self, lane: "FastLane") -> None:
        """Take note of a connection in the fast lane."""

    def leave(self, lane: "FastLane") -> None:
        """Forget a connection that is closed or handed over."""

    def recognise(self, head: bytes) -> tuple[KnownHead, int] | None:
        """Return what a head says, and the length of its body; None where it is not plain."""

    def cross(
        self, lane: "FastLane", known: KnownHead, body: bytes, caller: str
    ) -> Crossing | Answering | None:
        """Send a request on its way; None where the other door has to answer it."""

    def other_door(self) -> ClientConnection:
        """Return what goes on with a connection that is handed over."""

    def take_back(self, transport: asyncio.Transport, data: bytes) -> None:
        """Go on with a connection that was handed over, and with what has come since."""


class FastLane(asyncio.Protocol):
    """The controller's side of one connection."""

    __slots__ = (
        "_body_at",
        "_caller",
        "_crossing",
        "_has_ended",
        "_is_full",
        "_known",
        "_lanes",
        "_pieces_since",
        "_quiet_since",
        "_raw",
        "_request",
        "_transport",
        "_whole_at",
        "_writing",
        "account",
        "keeps_alive",
        "write",
    )
    _transport: asyncio.Transport

    def __init__(self, lanes: Lanes, now: float) -> None:
        self._lanes = lanes
        self._crossing: Crossing | Answering | None = None
        self._request = b""
        """The request that is being answered, to be handed over if that fails."""
        self._raw = b""
        """What has come of the next one."""
        self._known: KnownHead | None = None
        """The head of the next one, once it is there."""
        self._body_at = self._whole_at = 0
        """Where in `_raw` its body begins and ends."""
        self._pieces_since: float | None = None
        """Since when a part of a request was seen to be there."""
        self._has_ended = False
        """Whether the client sends no more: it has left, or waits for its last answer."""
        self.account = lanes.open_account()
        """What the body that comes, or is answered, is counted in."""
        self._writing = WriteProgress()
        self._is_full = False
        """Whether its client has more than BUFFER_BYTES to take."""
        self.keeps_alive = True
        self._quiet_since = now
        """When it was opened, or its last answer ended, by the loop's clock."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's only act like one
        self.write: Callable[[bytes], None] = self._transport.write
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        self._caller: str = peer[0] if peer else ""
        self._lanes.enter(self)

    def data_received(self, data: bytes) -> None:
        """Serve the request once it is there."""
        self._raw = self._raw + data if self._raw else data
        if self._crossing is None and not self._is_full:
            self._go_on()
        else:  # a client that does not wait for its answer, or does not take it, has to
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Keep the way open to a client that sends no more and is owed an answer."""
        self._has_ended = True
        is_owed = self._crossing is not None or bool(self._raw and self._is_full)
        if is_owed:
            asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._ask_whether_it_is_there)
        return is_owed

    def connection_lost(self, _: Exception | None) -> None:
        """Give up what is being answered."""
        self._lanes.leave(self)
        self.account.close()
        crossing, self._crossing = self._crossing, None
        if crossing is not None:
            crossing.abandon()

    def pause_writing(self) -> None:
        """Read no more from the backend: the client does not keep up."""
        self._is_full = True
        if self._crossing is not None:
            self._crossing.pause()

    def resume_writing(self) -> None:
        """Read on."""
        self._is_full = False
        if self._crossing is not None:
            self._crossing.resume()
        elif self._raw and not self._transport.is_closing():  # else an answer broke off
            self._transport.resume_reading()
            self._go_on()

    # What a crossing calls

    def cut(self) -> None:
        """See `crossing.Lane`."""
        self._crossing = None
        self._transport.close()

    def finish(self) -> None:
        """See `crossing.Lane`."""
        self._crossing, self._request = None, b""
        self.account.close()
        self._quiet_since = asyncio.get_running_loop().time()
        if self._has_ended or not self.keeps_alive:
            self._transport.close()
        elif self._raw and not self._is_full:
            self._transport.resume_reading()
            self._go_on()

    def hand_over(self) -> None:
        """See `crossing.Lane`."""
        is_one_request = bool(self._request) and not self._raw
        came, self._request, self._raw = self._request + self._raw, b"", b""
        self._crossing = None
        self.account.close()
        self._lanes.leave(self)
        transport, other = self._transport, self._lanes.other_door()
        transport.set_write_buffer_limits()
        transport.set_protocol(other)
        other.connection_made(transport)
        if not transport.is_reading():
            transport.resume_reading()
        if came:
            other.data_received(came)
        if is_one_request:
            other.go_back = self._lanes.take_back
        if self._has_ended and not other.eof_received():
            transport.close()

    # What the server calls

    def look(self, now: float, limits: ServerSettings) -> None:
        """End what takes too long: a quiet connection, a request in pieces, a slow reader."""
        size = self._transport.get_write_buffer_size()
        if self._writing.is_stuck(size, now, limits.write_timeout_s):
            note_slow_client(self._caller, "write")
            self._transport.abort()
        elif self._crossing is not None:
            return
        elif self._raw:
            self._pieces_since = self._pieces_since or now
            if now - self._pieces_since >= PATIENCE_S and not self._is_full:
                self.hand_over()
        elif now - self._quiet_since > limits.idle_timeout_s:
            self._transport.close()

    def _ask_whether_it_is_there(self) -> None:
        """Write to a client that sends no more and whose answer is late: see `ARE_YOU_THERE`."""
        is_owed = self._crossing is not None or self._raw
        if self._transport.is_closing() or not is_owed:
            return
        if self._crossing is not None and not self._crossing.is_streaming:
            self._transport.write(ARE_YOU_THERE)
        asyncio.get_running_loop().call_later(HALF_CLOSED_S, self._ask_whether_it_is_there)

    def close_if_idle(self) -> None:
        """Close a connection on which nothing is asked."""
        if self._crossing is None:
            self._transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self._transport.abort()

    def _go_on(self) -> None:
        """Look at what has come of a request: serve it, wait for the rest, or hand it over."""
        came, known = self._raw, self._known
        if known is None:
            known = self._meet(came)
            if known is None:
                return
        missing = self._whole_at - len(came)
        if missing > 0:
            return
        if missing < 0:  # requests in a row, which the other door can do
            self.hand_over()
            return
        self._request, self._raw, self._known, self._pieces_since = came, b"", None, None
        self.keeps_alive = known.plain.keeps_alive
        self._crossing = self._lanes.cross(self, known, came[self._body_at :], self._caller)
        if self._crossing is None:
            self.hand_over()

    def _meet(self, came: bytes) -> KnownHead | None:
        """Return the head of a request once it is there; one that is not served here goes."""
        end = came.find(b"\r\n\r\n") + 4
        if end < 4:
            if len(came) > MAX_HEAD_BYTES or not may_be_plain(came):
                self.hand_over()
            return None
        recognised = None if end > MAX_HEAD_BYTES else self._lanes.recognise(came[:end])
        if recognised is not None:
            known, length = recognised
            is_here = length <= len(came) - end  # a body that is here is counted as it is served
            if length <= known.max_body_bytes and (is_here or self._can_count(length)):
                self._known, self._body_at, self._whole_at = known, end, end + length
                return known
        self.hand_over()
        return None

    def _can_count(self, length: int) -> bool:
        """Whether there is room for a body that is to come; it is counted then."""
        try:
            self.account.grow_to(length)
        except RequestRefused:
            return False
        return True
