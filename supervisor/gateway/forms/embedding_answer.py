"""What every form's answer to an embedding says beside its vectors."""

from collections.abc import Sequence
from typing import Any

import msgspec

from supervisor.embedding.in_turns import in_turns
from supervisor.embedding.values import Computed
from supervisor.embedding.vectors import unpack
from supervisor.gateway.answer import Answer, as_json
from supervisor.gateway.call import SERVED_BY, Headers


async def as_numbers(vectors: Sequence[bytes]) -> list[msgspec.Raw]:
    """Write vectors as lists of numbers in JSON."""
    return await in_turns(lambda vector: msgspec.Raw(as_json(unpack(vector))), vectors)


def embedding_answer(content: Any, made: Computed, headers: Headers = ()) -> Answer:
    """Answer with content, how long its inputs waited and took, and how many were not whole."""
    return Answer(
        status=200,
        body=as_json(content),
        headers=((b"Content-Type", b"application/json"), *_headers(made), *headers),
        waited_s=made.queue_s,
    )


def _headers(made: Computed) -> Headers:
    headers: Headers = (
        (b"X-Queue-Time-Ms", b"%.1f" % (made.queue_s * 1000)),
        (b"X-Inference-Time-Ms", b"%.1f" % (made.inference_s * 1000)),
    )
    if made.served_by:
        headers = (*headers, (SERVED_BY, ",".join(made.served_by).encode()))
    if made.truncated:
        headers = (*headers, (b"X-Truncated", b"%d" % made.truncated))
    if made.windowed:
        headers = (*headers, (b"X-Windowed", b"%d" % made.windowed))
    return headers
