"""From a question to the chunks that answer it: embedded as the collection's vectors were."""

from collections.abc import Sequence

import msgspec

from supervisor.core.scheduling.values import Priority
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.values import EmbeddingRequest, Embeddings
from supervisor.engine.targets import Targets
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import Filter, Hit, PointKind, require_usable

QUERY_PROMPT = "query"
"""The prompt before a question, where its model has one of that name."""


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked for. `kind`: chunks, or whole documents."""

    query: str
    collection: str
    limit: int
    kind: PointKind = PointKind.CHUNK
    matching: Filter = {}
    priority: Priority = Priority.INTERACTIVE


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, the nearest first, and how the question became a vector."""

    model: str
    hits: Sequence[Hit]
    embedded: Embeddings


class Searcher:
    """Searches collections."""

    def __init__(self, service: EmbeddingService, targets: Targets, opener: StoreOpener) -> None:
        self._service = service
        self._targets = targets
        self._opener = opener

    async def search(self, request: SearchRequest) -> Found:
        """Search a collection. Waits for its model's turn where that is not live.

        Raises RequestRefused as the store and the embedding service do, and `model_not_found`
        where the collection's model is not in the catalogue any more.
        """
        require_usable(request.matching)
        store = await self._opener.store()
        space = await store.space(request.collection)
        target = self._targets.target(space.model)
        prompts = self._targets.resolved(target).prompts
        embedded = await self._service.embed(
            EmbeddingRequest(
                target=target,
                inputs=(request.query,),
                prompt_name=QUERY_PROMPT if QUERY_PROMPT in prompts else None,
                priority=request.priority,
            )
        )
        hits = await store.search(
            request.collection,
            embedded.vectors[0],
            limit=request.limit,
            kind=request.kind,
            matching=request.matching,
        )
        return Found(model=space.model, hits=hits, embedded=embedded)
