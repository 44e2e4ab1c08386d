"""The embedding service: one core for every form in which callers ask.

EmbeddingRequest -> prepared inputs -> pieces in batches -> vectors of pieces -> Embeddings
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, pairwise
from pathlib import Path

from supervisor.core.machine.values import Target
from supervisor.embedding.batching.batcher import Batcher
from supervisor.embedding.in_turns import in_turns
from supervisor.embedding.intake import require_dimensions
from supervisor.embedding.preparing import Preparer
from supervisor.embedding.values import (
    RUNNING,
    ComputedPieces,
    EmbeddingRequest,
    Embeddings,
    Prepared,
    PreparedInput,
)
from supervisor.embedding.vectors import cut, joined, length, normalized
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused


class EmbeddingService:
    """Embeds inputs by whatever model they are for."""

    def __init__(self, targets: Targets, preparer: Preparer, batcher: Batcher) -> None:
        self._targets = targets
        self._preparer = preparer
        self._batcher = batcher

    def target(self, wanted: Target | None, path: str) -> Target:
        """Return the model that a path means: the one that is wanted, else the default one.

        Raises RequestRefused where none is clear, or where it makes no vectors.
        """
        return self._targets.able(wanted, ModelTask.EMBEDDING, path)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Embed the inputs of a request, in their order.

        Waits for the model's turn where it is not live. Raises RequestRefused with the reason;
        `index` in its details names the input that is at fault, where one is.
        """
        came_at = time.monotonic()
        try:
            return await self._embed(request, came_at)
        except RequestRefused as error:
            running = error.details.get(RUNNING)
            if running is None:
                raise
        # Another file is configured for the model than its server runs: its own tokens are wanted.
        return await self._embed(request, came_at, Path(running))

    async def _embed(
        self, request: EmbeddingRequest, came_at: float, running: Path | None = None
    ) -> Embeddings:
        """Embed inputs; `running`: the model's file that is live in place of the configured one."""
        began_at = time.monotonic()
        prepared = await self._preparer.prepare(request, running)
        tokenization_s = time.monotonic() - began_at
        inputs = prepared.inputs
        tokens = [each.tokens for each in inputs]
        _require_tokens(request, tokens)
        computed, vectors = await self._compute(request, prepared, came_at)
        if inputs[0].is_guess:
            tokens = apportioned(computed.counted_tokens, tokens)
        return Embeddings(
            vectors=await self._cut(request, vectors),
            tokens=tokens,
            truncated=sum([each.was_truncated for each in inputs]),
            windowed=sum([len(each.pieces) > 1 for each in inputs]),
            tokenization_s=tokenization_s,
            queue_s=computed.queue_s,
            inference_s=computed.inference_s,
            served_by=computed.served_by,
        )

    async def _compute(
        self, request: EmbeddingRequest, prepared: Prepared, came_at: float
    ) -> tuple[ComputedPieces, Sequence[bytes]]:
        """Have all pieces computed; return that, and one vector for each input."""
        pieces = [piece for each in prepared.inputs for piece in each.pieces]
        is_whole = len(pieces) == len(prepared.inputs)
        try:
            computed = await self._batcher.compute(
                request.target,
                pieces,
                normalize=request.normalize and is_whole,
                priority=request.priority,
                model_path=prepared.model_path,
                waits_since=came_at,
            )
        except RequestRefused as error:
            name_input(error, prepared.inputs)
            raise
        if is_whole:
            return computed, computed.vectors
        normalize = request.normalize
        return computed, await _joined_windows(
            prepared.inputs, computed.vectors, normalize=normalize
        )

    async def _cut(self, request: EmbeddingRequest, vectors: Sequence[bytes]) -> Sequence[bytes]:
        """Cut vectors to the dimensions that are asked for, where that is not what they have.

        Raises RequestRefused where their model's cannot be cut to that.
        """
        dimensions = request.dimensions
        if dimensions is None or dimensions == length(vectors[0]):
            return vectors
        require_dimensions(self._targets.resolved(request.target), dimensions, length(vectors[0]))
        cuts = [cut(vector, dimensions) for vector in vectors]
        return await in_turns(normalized, cuts) if request.normalize else cuts


def apportioned(total: int, shares: Sequence[int]) -> list[int]:
    """Divide tokens by shares, none of them lost: those up to each share are rounded."""
    whole = sum(shares)
    bounds = [round(total * upto / whole) for upto in accumulate(shares, initial=0)]
    return [end - begin for begin, end in pairwise(bounds)]


def name_input(error: RequestRefused, prepared: Sequence[PreparedInput]) -> None:
    """Have an error that names a piece (`index` in its details) name the input that it is of."""
    if "index" in error.details:
        inputs = [index for index, each in enumerate(prepared) for _ in each.pieces]
        error.details["index"] = inputs[error.details["index"]]


async def _joined_windows(
    prepared: Sequence[PreparedInput], vectors: Sequence[bytes], *, normalize: bool
) -> Sequence[bytes]:
    """Return one vector for each input, of the vectors of all pieces, none of them normalised."""
    rest = iter(vectors)
    joint: list[bytes] = []
    for each in prepared:
        joint.append(_joined(each, rest))
        if len(each.pieces) > 1:
            await asyncio.sleep(0)  # others have a turn
    return await in_turns(normalized, joint) if normalize else joint


def _joined(prepared: PreparedInput, rest: Iterator[bytes]) -> bytes:
    pieces = prepared.pieces
    own = list(islice(rest, len(pieces)))
    return joined(own, [piece.tokens for piece in pieces]) if len(own) > 1 else own[0]


def _require_tokens(request: EmbeddingRequest, tokens: Sequence[int]) -> None:
    if request.max_tokens is not None and sum(tokens) > request.max_tokens:
        raise RequestRefused(
            "bad_request",
            f"the inputs have {sum(tokens)} tokens together, and may have {request.max_tokens} in "
            "one request; send several",
        )
