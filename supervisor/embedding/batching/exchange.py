"""A batch as a server is asked for it, and what its answers mean."""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from supervisor.embedding.batching.batches import Batch
from supervisor.embedding.vectors import NUMBER_BYTES, normalized, pack
from supervisor.engine.port import Abilities
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Head, Request, post_json
from supervisor.errors import BackendUnreachable, RequestRefused

_TOO_LONG = ("exceed_context_size", "too large to process", "input is too large")
"""What llama-server's errors say of an input that is longer than its context, or its batch."""

_SHOWN_CHARACTERS = 500
_OF_NORMALIZED, _OF_RAW = 2, -1


class _Entry(msgspec.Struct):
    embedding: bytes | list[float]
    """In JSON, bytes are base64."""
    index: int


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Entry]
    usage: _Usage = msgspec.field(default_factory=_Usage)


_decode = msgspec.json.Decoder(_Answer).decode

Outcome = Sequence[bytes] | RequestRefused | BackendUnreachable
"""A vector for each piece; else why an answer has none, or that there is none."""


class Cancellable(Protocol):
    """What is with the server."""

    def cancel(self) -> None:
        """Cut it; nothing is heard of it any more."""


class _Collected:
    """Takes an answer as it comes (`Receiver`), and tells at its end what came of the batch."""

    __slots__ = ("_backend", "_batch", "_on_end", "_pieces", "_status")

    def __init__(self, backend: Backend, batch: Batch, on_end: Callable[[Outcome], None]) -> None:
        self._backend = backend
        self._batch = batch
        self._on_end = on_end
        self._pieces: list[bytes] = []
        self._status = 0

    def take(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        """See `Receiver`."""
        if head is not None:
            self._status = head.form.status
        if data:
            self._pieces.append(data)
        if is_end:
            content = b"".join(self._pieces)
            self._on_end(outcome_of(self._backend, self._batch, self._status, content))

    def failed(self, error: BackendUnreachable) -> None:
        """See `Receiver`."""
        self._on_end(error)


def send_batch(backend: Backend, batch: Batch, on_end: Callable[[Outcome], None]) -> Cancellable:
    """Have a batch computed. `on_end` is called once, after this has returned, with the outcome.

    In callbacks, as the relay: no task is made, and nothing is awaited.
    """
    request = request_for(batch, backend.launch.abilities, backend.model)
    return backend.send(request, _Collected(backend, batch, on_end))


def outcome_of(backend: Backend, batch: Batch, status: int, content: bytes) -> Outcome:
    """Read a server's answer to a batch."""
    if status != 200:
        return explained(backend.model, status, content)
    try:
        vectors, batch.counted = read_vectors(content, len(batch))
    except (ValueError, RecursionError, OverflowError) as error:
        return unusable(backend.model, str(error))
    if batch.normalize and not backend.launch.abilities.takes_embd_normalize:
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


def read_vectors(content: bytes, count: int) -> tuple[list[bytes], int]:
    """Return the vectors of an answer in the order of what was asked, and the tokens it tells.

    Raises ValueError unless there is one for each, all of them of one length and of finite numbers:
    else nobody could say whose they are.
    """
    answer = _decode(content)
    entries = answer.data
    if len(entries) != count:
        raise ValueError(f"{len(entries)} vectors for {count} inputs")
    by_index = {entry.index: entry.embedding for entry in entries}
    if len(by_index) != count or min(by_index) != 0 or max(by_index) != count - 1:
        raise ValueError("its indexes are not those of the inputs")
    vectors = [_vector(by_index[index]) for index in range(count)]
    if len({len(vector) for vector in vectors}) != 1:
        raise ValueError("its vectors are of different lengths")
    return vectors, answer.usage.prompt_tokens


def _vector(written: bytes | list[float]) -> bytes:
    vector = written if isinstance(written, bytes) else pack(written)
    if not vector or len(vector) % NUMBER_BYTES:
        raise ValueError(f"{len(vector)} bytes are no vector of 4-byte numbers")
    if not math.isfinite(sum(memoryview(vector).cast("f"))):
        raise ValueError("a vector has numbers that are not finite")
    return vector


def unusable(model: str, why: str) -> RequestRefused:
    """Say that a server answered well, and not what can be used."""
    message = f"the server of '{model}' answered what cannot be used: {why}"
    return RequestRefused("embedding_failed", message)


def explained(model: str, status: int, content: bytes) -> RequestRefused:
    """Say what a server's error means for the input that it is about."""
    told = content.decode(errors="replace")[:_SHOWN_CHARACTERS]
    is_too_long = any(words in told for words in _TOO_LONG)
    return RequestRefused(
        "input_too_long" if is_too_long else "embedding_failed",
        f"the server of '{model}' answered {status}: {told}",
        {"status": status},
    )
