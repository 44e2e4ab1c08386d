"""HTTP/1.1 as it is spoken to a server: what a request is, its bytes, and the head of an answer."""

from functools import lru_cache

import msgspec

Headers = tuple[tuple[bytes, bytes], ...]
"""Names and values as they stand on the wire, duplicates kept."""

CONTENT_LENGTH = b"content-length"
HAS_LENGTH_WITHOUT_BODY = frozenset({"POST", "PUT", "PATCH"})  # RFC 9110, section 8.6


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


def post_json(path: str, content: object) -> Request:
    """Return a POST of what JSON can express."""
    headers = ((b"Content-Type", b"application/json"),)
    return Request(method="POST", path=path, headers=headers, body=msgspec.json.encode(content))


class HeadForm:
    """The head of an answer but for the length of its body: servers repeat themselves.

    Two heads of the same form have the same object here, so that what follows from it can be kept.
    """

    __slots__ = ("_length_at", "_values", "headers", "reason", "status")

    def __init__(self, status: int, reason: bytes, headers: Headers) -> None:
        self.status = status
        self.reason = reason
        self.headers = headers
        """As they came, in their order, duplicates kept; but the value of Content-Length is left
        out."""
        self._values: dict[bytes, bytes] = {}
        self._length_at: int | None = None
        for position, (name, value) in enumerate(headers):
            key = name.lower()
            self._values.setdefault(key, value)
            if key == CONTENT_LENGTH:
                self._length_at = position

    def value(self, name: bytes) -> bytes | None:
        """Return the first value of a header; `name` in lower case. None where there is none."""
        return self._values.get(name)

    def with_length(self, length: int | None) -> Headers:
        """Return the headers with the value of Content-Length."""
        at = self._length_at
        if at is None or length is None:
            return self.headers
        name, _ = self.headers[at]
        return (*self.headers[:at], (name, b"%d" % length), *self.headers[at + 1 :])


form_of = lru_cache(maxsize=256)(HeadForm)
"""Return the form of a head from its status, reason and headers, the same for the same ones."""


class Head(msgspec.Struct, frozen=True):
    """The head of an answer.

    `length`: what its body is stated to have, in bytes; None where that is not stated. The answer
    to a HEAD, and a 304, state the length of a body that does not follow.
    """

    form: HeadForm
    length: int | None

    @property
    def headers(self) -> Headers:
        """Its headers as they came, in their order, duplicates kept."""
        return self.form.with_length(self.length)


@lru_cache(maxsize=256)  # clients repeat themselves
def encoded(method: str, path: str, headers: Headers) -> tuple[bytes, bytes]:
    """Return a request's first line and the lines of its headers.

    Raises ValueError where a part of it would end its line, and so be read as something else.
    """
    start = f"{method} {path} HTTP/1.1\r\n".encode("utf-8", "surrogateescape")
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    both = start + lines
    is_one_line_each = both.count(b"\n") == both.count(b"\r") == 1 + len(headers)
    if not is_one_line_each or b"\0" in both or start.count(b" ") != 2:
        raise ValueError(
            "a request to a server has a line break, a blank or a null where none may be"
        )
    return start, lines
