"""Many requests embedded as few: what a request costs beside its texts is paid once for all."""

from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import accumulate

import msgspec

from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.values import TOO_LONG, EmbeddingRequest, Embeddings
from supervisor.errors import RequestRefused

MAX_INPUTS = 2048
"""Inputs that are embedded as one request, unless one has more."""

MAX_CHARACTERS = 1024 * 1024
"""Characters of these: far from what may wait at once (`queue.max_embedding_tokens`)."""

_CHARACTERS_PER_ID = 4

Outcome = tuple[int, Embeddings | RequestRefused]
"""Which request, and what came of it."""


async def embed_together(
    service: EmbeddingService, requests: Sequence[EmbeddingRequest]
) -> AsyncIterator[Sequence[Outcome]]:
    """Embed requests, those that want the same together; yields as outcomes are known.

    One that is at fault fails alone. `truncated` and `windowed` are of all that went together.
    """
    for group in _groups(requests):
        yield await _embed(service, [(place, requests[place]) for place in group])


def _groups(requests: Sequence[EmbeddingRequest]) -> Iterator[Sequence[int]]:
    """Yield which requests go together."""
    alike: dict[EmbeddingRequest, list[int]] = {}
    for place, request in enumerate(requests):
        alike.setdefault(msgspec.structs.replace(request, inputs=()), []).append(place)
    for places in alike.values():
        group: list[int] = []
        inputs = characters = 0
        for place in places:
            inputs += len(requests[place].inputs)
            characters += _characters(requests[place])
            if group and (inputs > MAX_INPUTS or characters > MAX_CHARACTERS):
                yield group
                group, inputs = [], len(requests[place].inputs)
                characters = _characters(requests[place])
            group.append(place)
        yield group


def _characters(request: EmbeddingRequest) -> int:
    return sum(
        len(each) if isinstance(each, str) else len(each) * _CHARACTERS_PER_ID
        for each in request.inputs
    )


async def _embed(
    service: EmbeddingService, members: list[tuple[int, EmbeddingRequest]]
) -> Sequence[Outcome]:
    outcomes: list[Outcome] = []
    while members:
        try:
            made = await service.embed(_joint([request for _, request in members]))
        except RequestRefused as error:
            guilty = _guilty(members, error)
            if not guilty:
                return [*outcomes, *((place, error) for place, _ in members)]
            for number in guilty:
                # Alone, it is told which of its own inputs is at fault.
                outcomes += await _embed(service, [members[number]])
            members = [each for number, each in enumerate(members) if number not in guilty]
        else:
            return [*outcomes, *_shares(members, made)]
    return outcomes


def _joint(requests: Sequence[EmbeddingRequest]) -> EmbeddingRequest:
    if len(requests) == 1:
        return requests[0]
    inputs = tuple(each for request in requests for each in request.inputs)
    return msgspec.structs.replace(requests[0], inputs=inputs, max_tokens=None)


def _guilty(
    members: Sequence[tuple[int, EmbeddingRequest]], error: RequestRefused
) -> frozenset[int]:
    """Return which of several members have the inputs that an error names."""
    if "index" not in error.details or len(members) == 1:
        return frozenset()
    indexes = error.details.get(TOO_LONG, [error.details["index"]])
    ends = list(accumulate(len(request.inputs) for _, request in members))
    return frozenset(bisect_right(ends, index) for index in indexes)


def _shares(
    members: Sequence[tuple[int, EmbeddingRequest]], made: Embeddings
) -> Iterator[tuple[int, Embeddings]]:
    begin = 0
    for place, request in members:
        end = begin + len(request.inputs)
        share = msgspec.structs.replace(
            made, vectors=made.vectors[begin:end], tokens=made.tokens[begin:end]
        )
        yield place, share
        begin = end
