"""An answer of ours: whole, or piece by piece. What a backend answers is passed on as it comes."""

import json
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from supervisor.gateway.call import Headers

SERVER_NAME = b"llama-supervisor"
"""What an answer of ours calls its server."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Status, headers and JSON body of an answer."""

    status: int
    body: bytes
    headers: Headers = ()

    waited_s: float = 0.0
    """How long it waited for its turn, for the closing line."""


class PiecewiseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that is not held in memory: a file, as it is read.

    `size_bytes`: of all pieces together.
    """

    headers: Headers
    size_bytes: int
    pieces: AsyncGenerator[bytes, None]


def json_answer(content: Any, *, status: int = 200, headers: Headers = ()) -> Answer:
    """Answer with content that JSON can express."""
    return Answer(
        status=status,
        body=as_json(content),
        headers=((b"Content-Type", b"application/json"), *headers),
    )


def as_json(content: Any) -> bytes:
    """Return content as JSON; what a client sent and is not UTF-8 is shown as `?`."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(content), ensure_ascii=False)
        return text.encode("utf-8", "replace")
