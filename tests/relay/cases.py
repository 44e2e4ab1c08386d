"""The requests of the matrix: what clients of llama-server send, well-formed or badly formed.

Generation is made deterministic by temperature 0, a seed, and no prompt cache.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

CHAT_MODEL, EMBEDDING_MODEL = "demo-chat", "minilm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request. `framing`: how the end of its body is marked: length | chunked | none.

    `chunks` are what a chunked body consists of; one chunk by default.
    """

    name: str
    model: str
    method: str = "GET"
    target: str = "/props"
    headers: tuple[bytes, ...] = ()
    body: bytes = b""
    framing: str = "length"
    chunks: tuple[bytes, ...] = ()
    version: bytes = b"HTTP/1.1"

    def request(self, prefix: str = "", *further_headers: bytes) -> bytes:
        """Return the bytes to send, the target behind a prefix."""
        first = f"{self.method} {prefix}{self.target} ".encode() + self.version
        lines = [first, b"Host: localhost", *self.headers, *further_headers]
        content = self.body
        if self.framing == "chunked":
            lines.append(b"Transfer-Encoding: chunked")
            content = b"".join(self.chunks or (chunk(self.body), b"0\r\n\r\n"))
        elif self.framing == "length" and (self.body or self.method == "POST"):
            lines.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join((*lines, b"", b"")) + content


def chunk(content: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(content), content)


JSON = (b"Content-Type: application/json",)
MESSAGES = [{"role": "user", "content": "Hello"}]
FIXED: dict[str, Any] = {"temperature": 0, "seed": 1, "cache_prompt": False}

GET_TARGETS = (
    *("/", "/index.html", "/sw.js", "/health", "/v1/health", "/models", "/v1/models", "/props"),
    *("/metrics", "/slots", "/slots?fail_on_no_slot=1", "/slots/0", "/lora-adapters", "/tools"),
    *("/cors-proxy", "/v1/streams/lookup", "/v1/stream", "/no/such/path", "/props/", "/PROPS"),
    *("/%70rops", "/props?x=1&x=%20+2&&empty=", "/a%2Fb//c%20d?", "/tokenize", "/predict"),
)
METHODS = ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "BREW")

GENERATION_POSTS: tuple[tuple[str, str, Any], ...] = (
    ("tokenize", "/tokenize", {"content": "a cat sits"}),
    ("tokenize with pieces", "/tokenize", {"content": "a cat", "with_pieces": True}),
    ("tokenize nothing", "/tokenize", {"content": ""}),
    ("tokenize unicode", "/tokenize", {"content": "한국어 ü \U0001f600 \u0000"}),
    ("detokenize", "/detokenize", {"tokens": [1, 2, 3]}),
    ("detokenize nothing", "/detokenize", {"tokens": []}),
    ("detokenize unknown token", "/detokenize", {"tokens": [99_999_999]}),
    ("template", "/apply-template", {"messages": MESSAGES}),
    ("completion", "/completion", {"prompt": "a cat", "n_predict": 4, **FIXED}),
    ("completion of nothing", "/completion", {"prompt": "", "n_predict": 1, **FIXED}),
    ("completion of tokens", "/completion", {"prompt": [1, 2], "n_predict": 2, **FIXED}),
    ("two completions", "/completion", {"prompt": ["a", "the"], "n_predict": 2, **FIXED}),
    ("completion, none predicted", "/completion", {"prompt": "a", "n_predict": 0, **FIXED}),
    ("probabilities", "/completion", {"prompt": "a", "n_predict": 2, "n_probs": 2, **FIXED}),
    ("stop word", "/completion", {"prompt": "a", "n_predict": 8, "stop": ["t"], **FIXED}),
    ("tokens too", "/completion", {"prompt": "a", "n_predict": 2, "return_tokens": True, **FIXED}),
    (
        "fields",
        "/completion",
        {"prompt": "a", "n_predict": 2, "response_fields": ["content"], **FIXED},
    ),
    ("grammar", "/completion", {"prompt": "a", "n_predict": 2, "grammar": 'root ::= "a"', **FIXED}),
    ("completion stream", "/completion", {"prompt": "a", "n_predict": 4, "stream": True, **FIXED}),
    ("completions", "/v1/completions", {"prompt": "a", "max_tokens": 3, **FIXED}),
    ("two choices", "/v1/completions", {"prompt": "a", "max_tokens": 2, "n": 2, **FIXED}),
    ("logprobs", "/v1/completions", {"prompt": "a", "max_tokens": 2, "logprobs": 2, **FIXED}),
    (
        "completions stream",
        "/v1/completions",
        {"prompt": "a", "max_tokens": 3, "stream": True, **FIXED},
    ),
    ("chat", "/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 4, **FIXED}),
    (
        "chat by alias",
        "/v1/chat/completions",
        {"model": "chat", "messages": MESSAGES, "max_tokens": 2, **FIXED},
    ),
    (
        "chat naming its model",
        "/v1/chat/completions",
        {"model": CHAT_MODEL, "messages": MESSAGES, "max_tokens": 2, **FIXED},
    ),
    (
        "chat stream",
        "/v1/chat/completions",
        {"messages": MESSAGES, "max_tokens": 4, "stream": True, **FIXED},
    ),
    (
        "chat stream with usage",
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "max_tokens": 4,
            "stream": True,
            "stream_options": {"include_usage": True},
            **FIXED,
        },
    ),
    (
        "chat as json",
        "/v1/chat/completions",
        {
            "messages": MESSAGES,
            "max_tokens": 8,
            "response_format": {"type": "json_object"},
            **FIXED,
        },
    ),
    ("chat tokens", "/v1/chat/completions/input_tokens", {"messages": MESSAGES}),
    ("chat control", "/v1/chat/completions/control", {"id": "none"}),
    ("responses", "/v1/responses", {"input": "a", "max_output_tokens": 3, **FIXED}),
    (
        "responses stream",
        "/v1/responses",
        {"input": "a", "max_output_tokens": 3, "stream": True, **FIXED},
    ),
    ("messages", "/v1/messages", {"messages": MESSAGES, "max_tokens": 3, **FIXED}),
    (
        "messages stream",
        "/v1/messages",
        {"messages": MESSAGES, "max_tokens": 3, "stream": True, **FIXED},
    ),
    ("count tokens", "/v1/messages/count_tokens", {"messages": MESSAGES}),
    ("infill", "/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 2, **FIXED}),
    ("embeddings of a chat model", "/v1/embeddings", {"input": "a"}),
    ("rerank by a chat model", "/v1/rerank", {"query": "a", "documents": ["b"]}),
    ("erase a slot", "/slots/0?action=erase", {}),
    ("unknown slot action", "/slots/0?action=fold", {}),
    ("a slot beyond the last", "/slots/77?action=erase", {}),
    ("set lora", "/lora-adapters", []),
    ("set props", "/props", {"system_prompt": "x"}),
    ("load a model", "/models/load", {"model": "x"}),
    ("use a tool", "/tools", {"tool": "x"}),
    ("transcribe", "/v1/audio/transcriptions", {"file": "x"}),
    ("no such path", "/no/such/path", {"a": 1}),
    ("prompt that is too long", "/completion", {"prompt": "word " * 9000, "n_predict": 1}),
    ("no messages", "/v1/chat/completions", {}),
    ("unknown role", "/v1/chat/completions", {"messages": [{"role": "x"}]}),
    ("bad grammar", "/completion", {"prompt": "a", "grammar": "root ::= ("}),
    ("negative slot", "/completion", {"prompt": "a", "n_predict": 1, "id_slot": 9, **FIXED}),
)

EMBEDDING_POSTS: tuple[tuple[str, str, Any], ...] = (
    ("one text", "/v1/embeddings", {"input": "a cat sits on a mat"}),
    ("three texts", "/v1/embeddings", {"input": ["a cat", "memory", "한국어 문장"]}),
    ("tokens", "/v1/embeddings", {"input": [1, 2, 3]}),
    ("lists of tokens", "/v1/embeddings", {"input": [[1, 2], [3]]}),
    ("as base64", "/v1/embeddings", {"input": "a cat", "encoding_format": "base64"}),
    ("in an unknown form", "/v1/embeddings", {"input": "a", "encoding_format": "hex"}),
    ("naming its model", "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "a"}),
    ("dimensions", "/v1/embeddings", {"input": "a", "dimensions": 8}),
    ("no text", "/v1/embeddings", {"input": []}),
    ("empty text", "/v1/embeddings", {"input": ""}),
    ("a number", "/v1/embeddings", {"input": 7}),
    ("an object", "/v1/embeddings", {"input": {"a": 1}}),
    ("no input", "/v1/embeddings", {}),
    ("too long", "/v1/embeddings", {"input": "word " * 3000}),
    ("sixty-four texts", "/v1/embeddings", {"input": [f"text {n}" for n in range(64)]}),
    ("bare", "/embedding", {"content": "a cat"}),
    ("bare, in the plural", "/embeddings", {"content": ["a cat", "a mat"]}),
    ("tokenize", "/tokenize", {"content": "a cat"}),
    ("rerank", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}),
    ("rerank, older path", "/rerank", {"query": "a", "documents": ["b"]}),
)

BAD_BODIES: tuple[tuple[str, bytes], ...] = (
    ("nothing", b""),
    ("no json", b"not json"),
    ("half of an object", b'{"prompt": "a"'),
    ("a list", b"[1]"),
    ("a text", b'"a"'),
    ("a deep list", b"[" * 200 + b"]" * 200),
    ("no utf-8", b'{"content": "\xff\xfe", "prompt": "\xff"}'),
    ("json, then more", b'{"content": "a"} x'),
    ("a byte-order mark", b'\xef\xbb\xbf{"content": "a"}'),
)
POSTS_OF_BAD_BODIES = (
    "/tokenize",
    "/detokenize",
    "/completion",
    "/v1/chat/completions",
    "/v1/messages",
)

HEADERS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("accepts gzip", (b"Accept-Encoding: gzip, deflate",)),
    ("accepts brotli", (b"Accept-Encoding: br, zstd",)),
    ("accepts nothing", (b"Accept-Encoding: identity;q=0, *;q=0",)),
    ("accepts events", (b"Accept: text/event-stream",)),
    ("asks for a range", (b"Range: bytes=0-3",)),
    ("asks for an impossible range", (b"Range: bytes=9999999-",)),
    ("asks for two ranges", (b"Range: bytes=0-1,4-5",)),
    ("has it already", (b"If-None-Match: *", b"If-Modified-Since: Wed, 01 Jan 2025 00:00:00 GMT")),
    ("cookies", (b"Cookie: a=1; b=2", b"Cookie: c=3")),
    ("comes through proxies", (b"X-Forwarded-For: 10.0.0.1", b"Via: 1.1 a", b"Forwarded: for=b")),
    ("gives an id", (b"X-Request-ID: mine-7",)),
    ("an empty value", (b"X-Empty:",)),
    ("blanks around a value", (b"X-Blank: \t a b \t ",)),
    ("latin-1", (b"X-Latin: \xe4\xf6\xfc",)),
    ("utf-8", ("X-Text: 한국어".encode(),)),
    ("a long value", (b"X-Long: " + b"a" * 7000,)),
    ("many", tuple(b"X-%d: %d" % (n, n) for n in range(60))),
    ("one name twice", (b"X-Twice: 1", b"x-twice: 2")),
    ("odd names", (b"X_Under: 1", b"!#$%&'*+.^`|~: 2")),
    ("trailers welcome", (b"TE: trailers",)),
    ("keep-alive", (b"Connection: keep-alive", b"Keep-Alive: timeout=100")),
    ("close", (b"Connection: close",)),
    ("names a hop's field", (b"Connection: X-Hop", b"X-Hop: 1")),
    ("wants another protocol", (b"Connection: Upgrade", b"Upgrade: websocket")),
    ("user agent", (b"User-Agent: curl/8.0", b"Accept: */*")),
    ("max forwards", (b"Max-Forwards: 0",)),
    ("not cached", (b"Cache-Control: no-cache", b"Pragma: no-cache")),
)

TOKENIZE = json.dumps({"content": "a cat sits on a mat"}).encode()

TYPES: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("no type", ()),
    ("text", (b"Content-Type: text/plain",)),
    ("other case", (b"content-type: Application/JSON; Charset=UTF-8",)),
    ("form", (b"Content-Type: application/x-www-form-urlencoded",)),
    ("unknown type", (b"Content-Type: x",)),
    ("multipart without a boundary", (b"Content-Type: multipart/form-data",)),
)

ENCODINGS: tuple[tuple[str, bytes, bytes], ...] = (
    ("identity", b"identity", TOKENIZE),
    ("gzip", b"gzip", gzip.compress(TOKENIZE, mtime=0)),
    ("deflate", b"deflate", zlib.compress(TOKENIZE)),
    ("no gzip in truth", b"gzip", TOKENIZE),
    ("half a gzip", b"gzip", gzip.compress(TOKENIZE, mtime=0)[:-12]),
    ("unknown", b"rot13", TOKENIZE),
    ("brotli", b"br", b"\x0b\x02\x80a\x03"),
)

END = b"0\r\n\r\n"
CHUNKINGS: tuple[tuple[str, tuple[bytes, ...]], ...] = (
    ("one chunk", (chunk(TOKENIZE), END)),
    ("a byte each", (*(chunk(bytes([b])) for b in TOKENIZE), END)),
    ("upper case", (b"%X\r\n%s\r\n" % (len(TOKENIZE), TOKENIZE), END)),
    ("leading noughts", (b"000%x\r\n%s\r\n" % (len(TOKENIZE), TOKENIZE), END)),
    ("nothing", (END,)),
)


def cases() -> Iterator[Case]:
    """Yield the whole matrix, model by model."""
    yield from _routes(CHAT_MODEL)
    yield from _posts(CHAT_MODEL, GENERATION_POSTS)
    yield from _bad_bodies()
    yield from _heads_and_framings()
    yield from _large_ones()
    yield from _routes(EMBEDDING_MODEL)
    yield from _posts(EMBEDDING_MODEL, EMBEDDING_POSTS)


def _routes(model: str) -> Iterator[Case]:
    for target in GET_TARGETS:
        for method in ("GET", "HEAD"):
            yield Case(name=f"{method} {target}", model=model, method=method, target=target)
    for method in METHODS:
        for target in ("/props", "/completion"):
            yield Case(name=f"{method} {target}", model=model, method=method, target=target)


def _posts(model: str, posts: tuple[tuple[str, str, Any], ...]) -> Iterator[Case]:
    for name, target, content in posts:
        body = json.dumps(content).encode()
        yield Case(name=name, model=model, method="POST", target=target, headers=JSON, body=body)


def _bad_bodies() -> Iterator[Case]:
    for target in POSTS_OF_BAD_BODIES:
        for name, body in BAD_BODIES:
            yield replace(_tokenize(f"{target} of {name}"), target=target, body=body)


def _heads_and_framings() -> Iterator[Case]:
    for name, headers in HEADERS:
        yield Case(name=f"GET, {name}", model=CHAT_MODEL, headers=headers)
        yield replace(_tokenize(f"POST, {name}"), headers=(*JSON, *headers))
    for name, headers in TYPES:
        yield replace(_tokenize(f"type: {name}"), headers=headers)
    for name, encoding, body in ENCODINGS:
        headers = (*JSON, b"Content-Encoding: " + encoding)
        yield replace(_tokenize(f"encoding: {name}"), headers=headers, body=body)
    for name, chunks in CHUNKINGS:
        yield replace(_tokenize(f"chunks: {name}"), framing="chunked", chunks=chunks)
    zipped = replace(_tokenize("gzip in chunks"), body=gzip.compress(TOKENIZE, mtime=0))
    yield replace(zipped, framing="chunked", headers=(*JSON, b"Content-Encoding: gzip"))
    yield replace(_tokenize("GET with a body"), method="GET", target="/props")
    yield replace(_tokenize("POST without a length"), framing="none", body=b"")
    yield replace(_tokenize("expects 100"), headers=(*JSON, b"Expect: 100-continue"))
    for headers in ((), (b"Connection: keep-alive",)):
        name = "HTTP/1.0, kept alive" if headers else "HTTP/1.0"
        older = replace(_tokenize(name), version=b"HTTP/1.0", headers=(*JSON, *headers))
        yield older
        body = json.dumps({"prompt": "a", "n_predict": 3, "stream": True, **FIXED}).encode()
        yield replace(older, name=f"{name}, a stream", target="/completion", body=body)


def _large_ones() -> Iterator[Case]:
    for name, target, content in (
        ("a megabyte", "/apply-template", {"messages": [{"role": "user", "content": "a" * 2**20}]}),
        ("a large answer", "/detokenize", {"tokens": [*range(300, 400)] * 3000}),
    ):
        large = replace(_tokenize(name), target=target, body=json.dumps(content).encode())
        yield large
        yield replace(large, name=f"{name} in chunks", framing="chunked")


def _tokenize(name: str) -> Case:
    return Case(
        name=name,
        model=CHAT_MODEL,
        method="POST",
        target="/tokenize",
        headers=JSON,
        body=TOKENIZE,
    )
