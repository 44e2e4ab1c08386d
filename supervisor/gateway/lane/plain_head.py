"""Which request heads the fast lane reads by itself: the plain ones, and no other.

A head that is odd in any way is not judged here: the other door answers or refuses it. So nothing
need be known of HTTP but what is surely plain.
"""

import re
from contextlib import suppress

import httptools
import msgspec

from supervisor.gateway.call import RequestHead
from supervisor.gateway.call_reader import read_head
from supervisor.gateway.connections import MAX_FIELDS

MAX_HEAD_BYTES = 8190
"""A longer head is handed over: the other door has bounds for its parts, of this size at most."""

_STARTS = (b"GET /", b"POST /")
_METHODS = frozenset({b"GET", b"POST"})
_CONNECTION = frozenset({b"keep-alive", b"close"})
_ODD_NAMES = frozenset(
    {
        b"content-encoding",
        b"expect",
        b"http2-settings",
        b"origin",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_ODD_PREFIXES = (b"access-control-", b"proxy-", b"sec-")
_PLAIN_TARGET = re.compile(rb'/(?![/\\])[!"$-~]*')
_ODD_LINES = re.compile(rb"[^\r]\n|\r[^\n]|\n[ \t]|\0")
"""Half of a line's end, a line that continues the one before it, and a null."""


class PlainHead(msgspec.Struct, frozen=True):
    """A plain head. `length`: bytes of its body. `keeps_alive`: whether another may follow it."""

    head: RequestHead
    length: int
    keeps_alive: bool


def may_be_plain(beginning: bytes) -> bool:
    """Whether a head that begins so may be plain when the rest of it has come."""
    return beginning.startswith(_STARTS) or any(each.startswith(beginning) for each in _STARTS)


def read_plain_head(head: bytes) -> PlainHead | None:
    """Return what a head says, from its first byte to its empty line; None if it is not plain."""
    if len(head) > MAX_HEAD_BYTES or _ODD_LINES.search(head) is not None:
        return None
    parts = _Parts()
    parser = httptools.HttpRequestParser(parts)
    with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
        parser.feed_data(head)
    if not parts.is_whole or parts.is_odd or parts.hosts != 1 or len(parts.headers) > MAX_FIELDS:
        return None
    method = parser.get_method()
    if method not in _METHODS or parser.get_http_version() != "1.1":
        return None
    if _PLAIN_TARGET.fullmatch(parts.request_target) is None:
        return None
    head_read = read_head(
        method.decode(), parts.request_target.decode(), tuple(parts.headers), takes_chunks=True
    )
    return PlainHead(head_read, parts.length or 0, not parts.closes)


class _Parts:
    """What the parser finds in a head."""

    __slots__ = (
        "_has_connection",
        "closes",
        "headers",
        "hosts",
        "is_odd",
        "is_whole",
        "length",
        "request_target",
    )

    def __init__(self) -> None:
        self.request_target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.hosts = 0
        self.length: int | None = None
        self.is_odd = self.is_whole = self.closes = self._has_connection = False

    def on_url(self, part: bytes) -> None:
        """Take the request target, or a part of it."""
        self.request_target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self.headers.append((name, value))
        lower = name.lower()
        if lower == b"host":
            self.hosts += 1
        elif lower == b"content-length":
            if self.length is not None or not value.isdigit():
                self.is_odd = True
            else:
                self.length = int(value)
        elif lower == b"connection":
            self.is_odd |= self._has_connection or value.lower() not in _CONNECTION
            self._has_connection = True
            self.closes = value.lower() == b"close"
        elif lower in _ODD_NAMES or lower.startswith(_ODD_PREFIXES):
            self.is_odd = True

    def on_headers_complete(self) -> None:
        """Note that the parser has found no fault in it."""
        self.is_whole = True
