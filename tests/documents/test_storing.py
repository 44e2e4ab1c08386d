"""Documents in the store, through changes and ends in the middle."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.documents.storing import (
    EmbeddedChunk,
    EmbeddedDocument,
    generation_of,
    is_complete,
    store_document,
    store_documents,
)
from supervisor.vector_store.edge import EdgeStore
from supervisor.vector_store.port import Point, PointKind
from tests.vector_store.points import vector


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EdgeStore]:
    store = EdgeStore(tmp_path)
    yield store
    await store.close()


class Ended(Exception):
    """The process that stores has ended."""


class Ending(EdgeStore):
    """The same store for one that ends after so many operations that write points."""

    def __init__(self, store: EdgeStore, writes: int) -> None:
        self.__dict__ = store.__dict__.copy()
        self.writes = writes

    async def upsert(self, collection: str, points: Sequence[Point]) -> None:
        await super().upsert(collection, points)
        self.writes -= 1
        if self.writes == 0:
            raise Ended


def document(*texts: str, name: str = "book") -> EmbeddedDocument:
    return EmbeddedDocument(
        id=name,
        model="minilm",
        chunker="c1",
        generation=generation_of("minilm", "c1", texts),
        vector=vector(1),
        payload={"metadata": {"lang": "ko"}},
        chunks=[EmbeddedChunk(vector=vector(1), payload={"text": text}) for text in texts],
    )


async def chunks_of(store: EdgeStore) -> list[tuple[int, str]]:
    hits = await store.search("notes", vector(1), limit=100)
    return sorted((hit.payload["index"], hit.payload["text"]) for hit in hits)


async def test_a_document_is_stored_whole_and_in_chunks(store: EdgeStore) -> None:
    given_document = document("하나", "둘")
    assert not await is_there(store, given_document)
    await store_document(store, "notes", given_document)
    assert await chunks_of(store) == [(0, "하나"), (1, "둘")]
    [whole] = await store.search("notes", vector(1), limit=9, kind=PointKind.DOCUMENT)
    assert (whole.document, whole.payload) == ("book", {"metadata": {"lang": "ko"}})
    assert await is_there(store, given_document)


@pytest.mark.parametrize("texts", [("a",), ("a", "b", "c"), ("a", "x", "c", "d")])
async def test_a_changed_document_takes_the_place_of_its_older_state(
    store: EdgeStore, texts: Sequence[str]
) -> None:
    await store_document(store, "notes", document("other", name="other"))
    await store_document(store, "notes", document("a", "b", "c"))
    await store_document(store, "notes", document(*texts))
    assert await chunks_of(store) == sorted([*enumerate(texts), (0, "other")])


async def test_of_two_states_that_are_stored_at_once_the_last_one_stays(store: EdgeStore) -> None:
    await store_documents(store, "notes", [document("a", "b"), document("c")])
    assert await chunks_of(store) == [(0, "c")]
    assert await is_there(store, document("c"))


async def test_what_was_cut_short_is_not_taken_for_stored(store: EdgeStore) -> None:
    await store_document(store, "notes", document("a", "b", "c"))
    shorter = document("a")
    for wrote in range(1, 3):
        with pytest.raises(Ended):
            await store_document(Ending(store, wrote), "notes", shorter)
        assert not await is_there(store, shorter)
    await store_document(store, "notes", shorter)
    assert await is_there(store, shorter)
    assert await chunks_of(store) == [(0, "a")]


async def is_there(store: EdgeStore, wanted: EmbeddedDocument) -> bool:
    await store.ensure_collection("notes", wanted.model, 4)
    found = await store.document("notes", wanted.id)
    return is_complete(found, generation=wanted.generation, chunks=len(wanted.chunks))


parts = st.lists(st.text(max_size=5), max_size=4)


@given(parts, parts)
def test_a_generation_tells_states_apart(one: list[str], other: list[str]) -> None:
    assert (generation_of("m", one) == generation_of("m", other)) == (one == other)


def test_the_order_of_metadata_makes_no_other_generation() -> None:
    assert generation_of({"a": 1, "b": 2}) == generation_of({"b": 2, "a": 1})
