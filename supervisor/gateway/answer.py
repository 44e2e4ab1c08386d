"""An answer of ours: whole and in JSON. What a backend answers is passed on as it comes."""

from typing import Any

import msgspec

from supervisor.gateway.call import Headers


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """Status, headers and JSON body of an answer."""

    status: int
    body: bytes
    headers: Headers = ()


def json_answer(content: Any, *, status: int = 200, headers: Headers = ()) -> Answer:
    """Answer with content that JSON can express."""
    return Answer(
        status=status,
        body=msgspec.json.encode(content),
        headers=((b"Content-Type", b"application/json"), *headers),
    )
