"""An embedded document in the store: whole and in chunks, once, and nothing of an older state.

The document's own point is written after its chunks, and what is left of an older state is deleted
after that. So a document that is shown has all its chunks; and one whose storing was cut short
differs from what it should be (`is_complete`), and is stored again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from supervisor.embedding.vectors import length
from supervisor.vector_store.port import Point, PointKind, StoredDocument, VectorStore, point_id


class EmbeddedChunk(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a document. `payload`: its `text`, and where that stands (`page`, `start`, …)."""

    vector: bytes
    payload: Mapping[str, Any]


class EmbeddedDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document with its vectors.

    `model` made them, `chunker` names the way in which it was divided, `generation` its state (of
    `generation_of`). `payload`: what is known of the whole, such as `metadata`.
    """

    id: str
    model: str
    chunker: str
    generation: str
    vector: bytes
    payload: Mapping[str, Any]
    chunks: Sequence[EmbeddedChunk]


def generation_of(*parts: Any) -> str:
    """Return a word for a document's state: another one whenever one of the parts is another.

    The parts are what its points follow from: model, chunker, texts, metadata.
    """
    content = msgspec.json.encode(parts, order="deterministic")
    return hashlib.sha256(content).hexdigest()[:32]


def is_complete(found: StoredDocument | None, *, generation: str, chunks: int) -> bool:
    """Whether what the store has of a document is this state of it, whole, and nothing beside."""
    return found is not None and (found.generation, found.chunks) == (generation, chunks)


async def store_document(store: VectorStore, collection: str, document: EmbeddedDocument) -> None:
    """Store a document in place of what the store has of it; makes the collection if need be.

    The caller holds `StoreOpener.replacing` of it. Raises RequestRefused as the store does:
    `collection_mismatch`, `store_failed`.
    """
    await store_documents(store, collection, [document])


async def store_documents(
    store: VectorStore, collection: str, documents: Sequence[EmbeddedDocument]
) -> None:
    """Store documents of one model, as `store_document` does each; of those with one id, the last.

    The caller holds `StoreOpener.replacing` of it.
    """
    documents = tuple({each.id: each for each in documents}.values())
    first = documents[0]
    await store.ensure_collection(collection, first.model, length(first.vector))
    await store.upsert(collection, [point for each in documents for point in _chunk_points(each)])
    await store.upsert(collection, [_own_point(each) for each in documents])
    for each in documents:
        await store.delete_document(collection, each.id, except_generation=each.generation)


def _chunk_points(document: EmbeddedDocument) -> list[Point]:
    return [
        _point(document, index, PointKind.CHUNK, chunk.vector, {**chunk.payload, "index": index})
        for index, chunk in enumerate(document.chunks)
    ]


def _own_point(document: EmbeddedDocument) -> Point:
    return _point(document, None, PointKind.DOCUMENT, document.vector, document.payload)


def _point(
    document: EmbeddedDocument,
    index: int | None,
    kind: PointKind,
    vector: bytes,
    payload: Mapping[str, Any],
) -> Point:
    return Point(
        id=point_id(
            document=document.id, model=document.model, chunker=document.chunker, index=index
        ),
        document=document.id,
        kind=kind,
        generation=document.generation,
        vector=vector,
        payload=payload,
    )
