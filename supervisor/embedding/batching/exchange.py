"""A batch as a server is asked for it, and what its answers mean."""

import math
from collections.abc import Callable, Sequence

import msgspec

from supervisor.embedding.batching.batches import Batch
from supervisor.embedding.vectors import NUMBER_BYTES, normalized, pack
from supervisor.engine.port import Abilities
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request, post_json
from supervisor.errors import RequestRefused

_TOO_LONG = ("exceed_context_size", "too large to process", "input is too large")
"""What llama-server's errors say of an input that is longer than its context, or its batch."""

_SHOWN_CHARACTERS = 500
_OF_NORMALIZED, _OF_RAW = 2, -1


class _Entry(msgspec.Struct):
    embedding: bytes | list[float]
    """In JSON, bytes are base64."""
    index: int


class _Answer(msgspec.Struct):
    data: list[_Entry]


_decode = msgspec.json.Decoder(_Answer).decode


class BatchFailed(Exception):
    """A server's answer to a batch has no vectors that can be used. `refusal` says why."""

    def __init__(self, refusal: RequestRefused) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


async def ask_for_vectors(
    backend: Backend, batch: Batch, on_end: Callable[[], None]
) -> Sequence[bytes]:
    """Have a batch computed. `on_end` is called once the server is done with it.

    Raises BackendUnreachable, and BatchFailed where not every piece got its vector.
    """
    abilities = backend.launch.abilities
    async with backend.exchange(request_for(batch, abilities, backend.model)) as answer:
        answer.on_end(on_end)
        status, content = answer.status, await answer.read()
    if status != 200:
        raise BatchFailed(explained(backend.model, status, content))
    try:
        vectors = read_vectors(content, len(batch))
    except (ValueError, RecursionError, OverflowError) as error:
        raise BatchFailed(
            RequestRefused(
                "embedding_failed",
                f"the server of '{backend.model}' answered what cannot be used: {error}",
            )
        ) from error
    if batch.normalize and not abilities.takes_embd_normalize:
        return [normalized(vector) for vector in vectors]
    return vectors


def request_for(batch: Batch, abilities: Abilities, model: str) -> Request:
    """Write a batch as a request in OpenAI's form."""
    body: dict[str, object] = {
        "model": model,
        "input": [caller.pieces[index].content for caller, index in batch.items],
    }
    if abilities.embeds_base64:
        body["encoding_format"] = "base64"
    if abilities.takes_embd_normalize:
        body["embd_normalize"] = _OF_NORMALIZED if batch.normalize else _OF_RAW
    return post_json("/v1/embeddings", body)


def read_vectors(content: bytes, count: int) -> list[bytes]:
    """Return the vectors of an answer in the order of what was asked.

    Raises ValueError unless there is one for each, all of them of one length and of finite numbers:
    else nobody could say whose they are.
    """
    entries = _decode(content).data
    if len(entries) != count:
        raise ValueError(f"{len(entries)} vectors for {count} inputs")
    by_index = {entry.index: entry.embedding for entry in entries}
    if len(by_index) != count or min(by_index) != 0 or max(by_index) != count - 1:
        raise ValueError("its indexes are not those of the inputs")
    vectors = [_vector(by_index[index]) for index in range(count)]
    if len({len(vector) for vector in vectors}) != 1:
        raise ValueError("its vectors are of different lengths")
    return vectors


def _vector(written: bytes | list[float]) -> bytes:
    vector = written if isinstance(written, bytes) else pack(written)
    if not vector or len(vector) % NUMBER_BYTES:
        raise ValueError(f"{len(vector)} bytes are no vector of 4-byte numbers")
    if not math.isfinite(sum(memoryview(vector).cast("f"))):
        raise ValueError("a vector has numbers that are not finite")
    return vector


def explained(model: str, status: int, content: bytes) -> RequestRefused:
    """Say what a server's error means for the input that it is about."""
    told = content.decode(errors="replace")[:_SHOWN_CHARACTERS]
    is_too_long = any(words in told for words in _TOO_LONG)
    return RequestRefused(
        "input_too_long" if is_too_long else "embedding_failed",
        f"the server of '{model}' answered {status}: {told}",
        {"status": status},
    )
