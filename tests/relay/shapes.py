"""Requests that two servers in a row may read in two ways, and what must become of each.

A smuggled request, where a shape carries one, asks for `/smuggled`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

HALF_CLOSE = None
"""In place of a part: the client says that it sends no more."""

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSED = (400, 499)
REFUSED_OR_UNKNOWN = (400, 505)
"""With 501 (unknown coding) and 505 (unknown version of HTTP)."""

Statuses = tuple[int, int]
"""The smallest and the largest status that an answer may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is sent, the answers to it, and what the server must have seen.

    `seen`: targets with their bodies. `closes`: whether the connection must end after the answers.
    `may_be_refused`: whether one refusal of the whole, with nothing seen, is as right.
    """

    name: str
    parts: tuple[bytes | None, ...]
    answers: tuple[Statuses, ...]
    seen: tuple[tuple[str, bytes], ...]
    closes: bool
    may_be_refused: bool = False


def shapes() -> Iterator[Shape]:
    """Yield every shape."""
    yield from _lengths()
    yield from _codings()
    yield from _chunks()
    yield from _lines()
    yield from _request_lines()
    yield from _hosts()
    yield from _large_heads()
    yield from _sequences()
    yield from _one_hop()


def refused(name: str, *parts: bytes | None, statuses: Statuses = REFUSED) -> Shape:
    """Return a shape that must be refused, the connection closed, and nobody asked."""
    return Shape(name=name, parts=parts, answers=(statuses,), seen=(), closes=True)


def relayed(name: str, *parts: bytes | None, body: bytes = b"", closes: bool = False) -> Shape:
    """Return a shape that must be relayed exactly once, with this body, as `/shape`."""
    seen = (("/shape", body),)
    return Shape(name=name, parts=parts, answers=((200, 200),), seen=seen, closes=closes)


def post(*lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """Return a POST of `/shape` with these header lines."""
    head = (b"POST /shape " + version, b"Host: localhost", b"Content-Type: text/plain", *lines)
    return b"\r\n".join((*head, b"", b"")) + body


def get(*lines: bytes, first: bytes = b"GET /shape HTTP/1.1") -> bytes:
    """Return a GET of `/shape`, or of another first line, with these header lines."""
    return b"\r\n".join((first, b"Host: localhost", *lines, b"", b""))


CHUNKED = b"Transfer-Encoding: chunked"
END = b"0\r\n\r\n"
HELLO = b"5\r\nhello\r\n"


def _lengths() -> Iterator[Shape]:
    both = b"Content-Length: %d" % len(END + SMUGGLED)
    yield refused("length, then chunks", post(both, CHUNKED, body=END + SMUGGLED))
    yield refused("chunks, then length", post(CHUNKED, both, body=END + SMUGGLED))
    yield refused("length of nothing, and chunks", post(b"Content-Length: 0", CHUNKED, body=END))
    for name, lines in (
        ("two lengths", (b"Content-Length: 0", b"Content-Length: 5")),
        ("two lengths, larger first", (b"Content-Length: 5", b"Content-Length: 0")),
        ("one length twice", (b"Content-Length: 5", b"Content-Length: 5")),
        ("list of two lengths", (b"Content-Length: 0, 5",)),
        ("list of one length twice", (b"Content-Length: 5, 5",)),
        ("length with a plus", (b"Content-Length: +5",)),
        ("negative length", (b"Content-Length: -5",)),
        ("length in hex", (b"Content-Length: 0x5",)),
        ("length with an underscore", (b"Content-Length: 0_5",)),
        ("length with a fraction", (b"Content-Length: 5.0",)),
        ("length with a blank in it", (b"Content-Length: 0 5",)),
        ("length with letters", (b"Content-Length: 5a",)),
        ("no length in the field", (b"Content-Length:",)),
        ("length beyond 64 bits", (b"Content-Length: 99999999999999999999",)),
        ("length in other digits", ("Content-Length: \u0665".encode(),)),
    ):
        yield refused(name, post(*lines, body=b"hello"))
    yield relayed(
        "length with leading noughts", post(b"Content-Length: 005", body=b"hello"), body=b"hello"
    )
    yield relayed(
        "a field that is nearly the length",
        post(b"Content_Length: 0", b"Content-Length: 5", body=b"hello"),
        body=b"hello",
    )


def _codings() -> Iterator[Shape]:
    for name, lines in (
        ("blank before the colon", (b"Transfer-Encoding : chunked",)),
        ("unknown coding", (b"Transfer-Encoding: xchunked",)),
        ("chunked, and something after it", (b"Transfer-Encoding: chunked, identity",)),
        ("chunked twice", (b"Transfer-Encoding: chunked, chunked",)),
        ("chunked in two fields", (CHUNKED, CHUNKED)),
        (
            "chunked after an unknown coding in a field of its own",
            (b"Transfer-Encoding: x", CHUNKED),
        ),
        ("a vertical tab before it", (b"Transfer-Encoding: \x0bchunked",)),
        ("a nought byte after it", (b"Transfer-Encoding: chunked\x00",)),
        ("in quotes", (b'Transfer-Encoding: "chunked"',)),
        ("folded", (b"Transfer-Encoding:\r\n chunked",)),
        ("no coding in the field", (b"Transfer-Encoding:",)),
        ("gzip before it", (b"Transfer-Encoding: gzip, chunked",)),
        ("identity before it", (b"Transfer-Encoding: identity, chunked",)),
    ):
        sent = post(*lines, body=HELLO + END)
        yield refused(f"coding: {name}", sent, statuses=REFUSED_OR_UNKNOWN)
    yield refused("chunks in HTTP/1.0", post(CHUNKED, body=HELLO + END, version=b"HTTP/1.0"))
    yield relayed(
        "coding: in other case",
        post(b"transfer-encoding: Chunked", body=HELLO + END),
        body=b"hello",
    )
    yield relayed(
        "coding: blanks around it",
        post(b"Transfer-Encoding:   chunked   ", body=HELLO + END),
        body=b"hello",
    )
    yield relayed(
        "a field that is nearly the coding",
        post(b"Transfer_Encoding: chunked", b"Content-Length: 5", body=b"hello"),
        body=b"hello",
    )


def _chunks() -> Iterator[Shape]:
    for name, content in (
        ("negative size", b"-5\r\nhello\r\n"),
        ("size with a plus", b"+5\r\nhello\r\n"),
        ("size with 0x", b"0x5\r\nhello\r\n"),
        ("size with an underscore", b"0_5\r\nhello\r\n"),
        ("size of no digits", b"\r\nhello\r\n"),
        ("size that is not a number", b"g\r\nhello\r\n"),
        ("size beyond 64 bits", b"f" * 17 + b"\r\nhello\r\n"),
        ("blank before the size", b" 5\r\nhello\r\n"),
        ("line feed alone after the size", b"5\nhello\r\n"),
        ("carriage return alone after the size", b"5\rhello\r\n"),
        ("longer than its size", b"4\r\nhello\r\n"),
        ("line feed alone after the chunk", b"5\r\nhello\n"),
        ("line feed in an extension", b"5;a\nb\r\nhello\r\n"),
    ):
        yield refused(f"chunk: {name}", post(CHUNKED, body=content + END))
    extended = b"5;a=b;c\r\nhello\r\n"
    yield relayed("chunk: extension", post(CHUNKED, body=extended + END), body=b"hello")
    trailing = HELLO + b"0\r\nX-After: 1\r\n\r\n"
    yield relayed("chunk: trailer", post(CHUNKED, body=trailing), body=b"hello")
    for field in (b"Content-Length: 9", b"Transfer-Encoding: x"):
        ended = HELLO + b"0\r\n" + field + b"\r\n\r\n"
        name = field.partition(b":")[0].decode()
        yield refused(f"chunk: {name} in the trailer", post(CHUNKED, body=ended))
    yield refused("chunk: endless extension", post(CHUNKED, body=b"5;" + b"a" * 100_000))
    yield refused("chunk: bad trailer", post(CHUNKED, body=HELLO + b"0\r\nX After : 1\r\n\r\n"))


def _lines() -> Iterator[Shape]:
    yield refused("line feeds alone", get().replace(b"\r\n", b"\n"))
    for name, line in (
        ("line feed alone", b"X-A: 1\nX-B: 2"),
        ("carriage return alone", b"X-A: 1\rX-B: 2"),
        ("line that is folded", b"X-A: 1\r\n 2"),
        ("no colon", b"X-A"),
        ("no name", b": 1"),
        ("blank before the colon", b"X-A : 1"),
        ("tab in the name", b"X\tA: 1"),
        ("nought byte in the value", b"X-A: 1\x002"),
        ("nought byte in the name", b"X\x00A: 1"),
        ("control byte in the value", b"X-A: 1\x012"),
        ("eight bits in the name", b"X\xe4: 1"),
        ("brackets in the name", b"X(A): 1"),
    ):
        yield refused(f"field: {name}", get(line, b"X-C: 3"))
    yield refused(
        "field: blank before the first", b"GET /shape HTTP/1.1\r\n Host: localhost\r\n\r\n"
    )


def _request_lines() -> Iterator[Shape]:
    for name, line in (
        ("lower-case version", b"GET /shape http/1.1"),
        ("no version", b"GET /shape"),
        ("version without a minor part", b"GET /shape HTTP/1"),
        ("version two", b"GET /shape HTTP/2.0"),
        ("version nine", b"GET /shape HTTP/9.9"),
        ("something after the version", b"GET /shape HTTP/1.1 x"),
        ("blank in the target", b"GET /sha pe HTTP/1.1"),
        ("tabs between", b"GET\t/shape\tHTTP/1.1"),
        ("nought byte in the target", b"GET /sha\x00pe HTTP/1.1"),
        ("carriage return in the target", b"GET /sha\rpe HTTP/1.1"),
        ("no method", b" /shape HTTP/1.1"),
        ("no slash before the target", b"GET shape HTTP/1.1"),
        ("a tunnel", b"CONNECT example.com:443 HTTP/1.1"),
    ):
        yield refused(f"first line: {name}", get(first=line), statuses=REFUSED_OR_UNKNOWN)
    yield refused(
        "preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", statuses=REFUSED_OR_UNKNOWN
    )
    yield refused("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 99)
    yield relayed("an empty line first", b"\r\n" + get())
    yield relayed("whole address", get(first=b"GET http://localhost/shape HTTP/1.1"))
    yield refused("whole address of another host", get(first=b"GET http://x/shape HTTP/1.1"))
    yield refused("fragment behind the target", get(first=b"GET /shape?a=b#c HTTP/1.1"))


def _hosts() -> Iterator[Shape]:
    yield refused("two hosts", get(b"Host: y"))
    yield refused("one host twice", get(b"Host: localhost"))
    yield refused("no host", b"GET /shape HTTP/1.1\r\n\r\n")
    yield refused("a host that is not one", get().replace(b"Host: localhost", b"Host: a b"))
    for host in (b"localhost:x", b"[::1", b"a@localhost", b"localhost/a"):
        sent = get().replace(b"Host: localhost", b"Host: " + host)
        yield refused(f"a host with more to it: {host.decode()}", sent)
    yield refused("a list of hosts", get().replace(b"Host: localhost", b"Host: a, b"))
    yield relayed("no host in HTTP/1.0", b"GET /shape HTTP/1.0\r\n\r\n", closes=True)


def _large_heads() -> Iterator[Shape]:
    yield refused("a head of 100 KB", get(b"X-Large: " + b"a" * 100_000))
    yield refused("a target of 100 KB", get(first=b"GET /" + b"a" * 100_000 + b" HTTP/1.1"))
    yield refused("ten thousand fields", get(*(b"X-%d: %d" % (n, n) for n in range(10_000))))


def _sequences() -> Iterator[Shape]:
    two = ((200, 200),) * 2
    seen = (("/shape", b""), ("/shape", b"hello"))
    whole = post(b"Content-Length: 5", body=b"hello")
    yield Shape(name="two at once", parts=(get() + whole,), answers=two, seen=seen, closes=False)
    yield Shape(
        name="two at once, the second in pieces",
        parts=(get() + whole[:40], whole[40:]),
        answers=two,
        seen=seen,
        closes=False,
    )
    chunked = post(CHUNKED, body=HELLO + END)
    yield Shape(
        name="chunks, and the next at once",
        parts=(chunked + get(),),
        answers=two,
        seen=tuple(reversed(seen)),
        closes=False,
    )
    yield Shape(
        name="something that is not a request behind one",
        parts=(whole + b"\x00\x01rubbish\r\n\r\n",),
        answers=((200, 200), REFUSED),
        seen=seen[1:],
        closes=True,
        may_be_refused=True,
    )
    yield Shape(
        name="another behind a close",
        parts=(get(b"Connection: close") + SMUGGLED,),
        answers=((200, 200),),
        seen=seen[:1],
        closes=True,
        may_be_refused=True,
    )
    yield relayed("byte by byte", *(bytes([byte]) for byte in whole), body=b"hello")
    yield relayed("a client that half-closes", get(), HALF_CLOSE, closes=True)
    yield relayed(
        "a client that half-closes after a body", whole, HALF_CLOSE, body=b"hello", closes=True
    )
    for name, parts in (
        ("half-closed in the head", get()[:20]),
        ("half-closed in a body", post(b"Content-Length: 9", body=b"hello")),
        ("half-closed in a chunk", post(CHUNKED, body=b"9\r\nhello")),
        ("half-closed before the last chunk", post(CHUNKED, body=HELLO)),
    ):
        yield Shape(name=name, parts=(parts, HALF_CLOSE), answers=(), seen=(), closes=True)


def _one_hop() -> Iterator[Shape]:
    hello = b"Content-Length: 5"
    older = post(hello, body=b"hello", version=b"HTTP/1.0")
    yield relayed("HTTP/1.0", older, body=b"hello", closes=True)
    kept = post(hello, b"Connection: keep-alive", body=b"hello", version=b"HTTP/1.0")
    yield relayed("HTTP/1.0, kept alive", kept, body=b"hello")
    expecting = post(hello, b"Expect: 100-continue", body=b"hello")
    yield relayed("expects 100, body at once", expecting, body=b"hello")
    yield Shape(
        name="expects something else",
        parts=(post(b"Content-Length: %d" % len(SMUGGLED), b"Expect: 200-ok", body=SMUGGLED),),
        answers=((417, 417),),
        seen=(),
        closes=False,
    )
    for name, lines in (
        ("another protocol", (b"Connection: Upgrade", b"Upgrade: websocket")),
        ("HTTP/2 in the clear", (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c")),
        ("trailers", (b"TE: trailers", b"Connection: TE")),
        ("the length named as of one hop", (b"Connection: Content-Length",)),
        ("the coding named as of one hop", (b"Connection: Transfer-Encoding",)),
        ("the key named as of one hop", (b"Connection: Authorization",)),
        ("the host named as of one hop", (b"Connection: Host",)),
        ("two fields of one hop", (b"Connection: X-A", b"Connection: X-B", b"X-B: 1")),
    ):
        yield relayed(f"one hop: {name}", post(hello, *lines, body=b"hello"), body=b"hello")
