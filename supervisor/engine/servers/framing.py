"""HTTP/1.1 as it is spoken to a server: what a request is, its bytes, and the head of an answer."""

from functools import lru_cache

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]
"""Names and values as they stand on the wire, duplicates kept."""

_HAS_LENGTH_WITHOUT_BODY = frozenset({"POST", "PUT", "PATCH"})  # RFC 9110, section 8.6


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a server.

    `path`: with its query, as it stands in the request line. `headers`: those of the request
    itself; Host, Authorization, Content-Length and all that is hop by hop are the channel's.
    `request_id`: what the server may name it by, printable ASCII.
    """

    method: str
    path: str
    headers: Headers = ()
    body: bytes = b""
    request_id: str | None = None


class Head(msgspec.Struct, frozen=True):
    """The head of an answer. `headers`: as they came, in their order, duplicates kept."""

    status: int
    reason: bytes
    headers: Headers

    def value(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` in lower case. None where there is none."""
        for key, value in self.headers:
            if key.lower() == name:
                return value
        return None

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
    start, lines = _encoded(request.method, request.path, request.headers)
    body, request_id = request.body, request.request_id
    own_id = b"" if request_id is None else b"X-Request-ID: %b\r\n" % request_id.encode("ascii")
    if body:
        length = b"Content-Length: %d\r\n" % len(body)
    else:
        length = b"Content-Length: 0\r\n" if request.method in _HAS_LENGTH_WITHOUT_BODY else b""
    return b"%b%b%b%b%b\r\n" % (start, own_headers, lines, own_id, length)


@lru_cache(maxsize=256)  # clients repeat themselves
def _encoded(method: str, path: str, headers: Headers) -> tuple[bytes, bytes]:
    """Return the request line and the lines of the headers. Raises ValueError as `encode_head`."""
    start = f"{method} {path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    both = start + lines
    is_one_line_each = both.count(b"\n") == both.count(b"\r") == 1 + len(headers)
    if not is_one_line_each or b"\0" in both or start.count(b" ") != 2:
        raise ValueError(
            "a request to a server has a line break, a blank or a null where none may be"
        )
    return start, lines
