"""The form of the service that this one replaces: `POST /embed {"text", "store", "collection"}`."""

import hashlib
from typing import Any

import msgspec

from supervisor.documents.storing import store_document
from supervisor.documents.undivided import undivided
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.values import EmbeddingRequest
from supervisor.embedding.vectors import length, unpack
from supervisor.gateway.answer import Answer
from supervisor.gateway.call import Call
from supervisor.gateway.forms.embedding_answer import embedding_answer
from supervisor.gateway.forms.inputs import read_body, read_inputs
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import DEFAULT_COLLECTION


class EmbedBody(msgspec.Struct, frozen=True):
    """The body. It stores unless it is told not to; null is what was not given."""

    text: str
    store: bool | None = None
    collection: str | None = None


_decoder = msgspec.json.Decoder(EmbedBody)


class OlderForm:
    """The handler of its route."""

    def __init__(self, service: EmbeddingService, opener: StoreOpener) -> None:
        self._service = service
        self._opener = opener

    async def embed(self, call: Call) -> Answer:
        """Embed one text, and store it as a document of one chunk."""
        body = read_body(_decoder, call.body)
        store = None if body.store is False else await self._opener.store()
        collection = DEFAULT_COLLECTION if body.collection is None else body.collection
        target = self._service.target(call.wanted, call.head.path)
        inputs = read_inputs(body.text, "text")
        made = await self._service.embed(
            EmbeddingRequest(target=target, inputs=inputs, priority=call.priority)
        )
        content: dict[str, Any] = {
            "embedding": unpack(made.vectors[0]),
            "dimensions": length(made.vectors[0]),
            "model": target.model,
            "tokens": made.tokens[0],
        }
        if store is not None:
            # The same text is the same document.
            name = f"text-{hashlib.sha256(body.text.encode()).hexdigest()[:32]}"
            document = undivided(name, target.model, inputs, made)
            async with self._opener.replacing(collection):
                await store_document(store, collection, document)
            content |= {"stored": True, "id": document.id, "collection": collection}
        return embedding_answer(content, made)
