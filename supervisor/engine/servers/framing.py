"""HTTP/1.1 as it is spoken to a server: what a request is, its bytes, and the head of an answer."""

from collections.abc import Iterable

import msgspec

Headers = Iterable[tuple[bytes, bytes]]
"""Names and values as they stand on the wire, duplicates kept."""

_HAS_LENGTH_WITHOUT_BODY = frozenset({"POST", "PUT", "PATCH"})  # RFC 9110, section 8.6


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a server.

    `path`: with its query, as it stands in the request line. `headers`: those of the request
    itself; Host, Authorization, Content-Length and all that is hop by hop are the channel's.
    """

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""


class Head(msgspec.Struct, frozen=True):
    """The head of an answer. `headers`: as they came, in their order, duplicates kept."""

    status: int
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def value(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` in lower case. None where there is none."""
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def length(self) -> int | None:
        """The length that the body is stated to have, in bytes; None where none is stated.

        The answer to a HEAD, and a 304, state the length of a body that does not follow.
        """
        stated = self.value(b"content-length")
        return int(stated) if stated is not None else None


def encode_head(request: Request, own_headers: bytes) -> bytes:
    """Return the bytes of a request's head. `own_headers`: whole lines that each request gets.

    Raises ValueError where a part of it would end its line, and so be read as something else.
    """
    body, headers = request.body, request.headers
    lines = [b"%b: %b\r\n" % header for header in headers]
    if body:
        lines.append(b"Content-Length: %d\r\n" % len(body))
    elif request.method in _HAS_LENGTH_WITHOUT_BODY:
        lines.append(b"Content-Length: 0\r\n")
    start = f"{request.method} {request.path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    head = b"".join((start, own_headers, *lines))
    line_count = 1 + own_headers.count(b"\n") + len(lines)
    is_one_line_each = head.count(b"\n") == head.count(b"\r") == line_count
    if not is_one_line_each or b"\0" in head or start.count(b" ") != 2:
        raise ValueError(
            "a request to a server has a line break, a blank or a null where none may be"
        )
    return head + b"\r\n"
