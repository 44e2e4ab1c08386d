"""What every store does: the same tests for each kind."""

import pytest

from supervisor.embedding.vectors import unpack
from supervisor.errors import RequestRefused
from supervisor.vector_store.port import Filter, Point, PointKind, Range, VectorStore, point_id
from tests.vector_store.points import DIMENSION, MODEL, chunk, vector, whole

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def texts_found(
    store: VectorStore, collection: str, *numbers: float, **options: object
) -> list[str]:
    hits = await store.search(collection, vector(*numbers), limit=10, **options)  # type: ignore[arg-type]
    return [hit.payload["text"] for hit in hits]


async def test_the_nearest_come_first_with_what_was_stored(
    store: VectorStore, collection: str
) -> None:
    await store.upsert(
        collection,
        [
            chunk("a", 0, 1, 0, page=3),
            chunk("a", 1, 0, 1),
            chunk("나", 0, 1, 1, text="서울의 카페"),
        ],
    )
    hits = await store.search(collection, vector(2, 0), limit=2)
    assert [(hit.document, hit.payload) for hit in hits] == [
        ("a", {"text": "a 0", "page": 3}),
        ("나", {"text": "서울의 카페"}),
    ]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.7071], abs=1e-3)
    assert hits[0].id == point_id(document="a", model=MODEL, chunker="c1", index=0)


async def test_whole_documents_and_chunks_never_answer_the_same_search(
    store: VectorStore, collection: str
) -> None:
    await store.upsert(collection, [whole("a", 1, 0, text="whole"), chunk("a", 0, 0, 1)])
    assert await texts_found(store, collection, 1, 0) == ["a 0"]
    assert await texts_found(store, collection, 1, 0, kind=PointKind.DOCUMENT) == ["whole"]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, {"a 0", "a 1", "b 0"}),
        ({"document": "a"}, {"a 0", "a 1"}),
        ({"page": 2}, {"a 1", "b 0"}),
        ({"page": 2, "document": "a"}, {"a 1"}),
        ({"page": Range(gte=1, lt=2)}, {"a 0"}),
        ({"metadata.lang": ["ko", "ja"]}, {"b 0"}),
        ({"metadata.tags": "x"}, {"a 0"}),
        ({"metadata.unknown": "x"}, set()),
        ({"metadata.말 [언어]": "한국어"}, {"b 0"}),
        ({"metadata.tags[1]": "y"}, {"a 0"}),
        ({"kind": "document"}, {"a 0", "a 1", "b 0"}),
    ],
    ids=lambda each: str(sorted(each) if isinstance(each, set) else each),
)
async def test_a_filter_leaves_what_meets_all_its_conditions(
    store: VectorStore, collection: str, conditions: Filter, found: set[str]
) -> None:
    await store.upsert(
        collection,
        [
            chunk("a", 0, 1, 0, page=1, metadata={"lang": "en", "tags": ["x", "y"]}),
            chunk("a", 1, 1, 0, page=2, metadata={"lang": "en"}),
            chunk("b", 0, 1, 0, page=2, metadata={"lang": "ko", "말 [언어]": "한국어"}),
        ],
    )
    assert set(await texts_found(store, collection, 1, 0, matching=conditions)) == found


async def test_the_same_again_changes_nothing(store: VectorStore, collection: str) -> None:
    points = [chunk("a", index, 1, index) for index in range(3)]
    await store.upsert(collection, points)
    before = await store.points(collection, start=None, limit=10)
    await store.upsert(collection, points)
    assert await store.points(collection, start=None, limit=10) == before


async def test_a_changed_document_keeps_no_point_of_its_older_state(
    store: VectorStore, collection: str
) -> None:
    await store.upsert(collection, [chunk("a", index, 1, 0) for index in range(3)])
    await store.upsert(collection, [chunk("b", 0, 1, 0)])
    await store.upsert(collection, [chunk("a", 0, 1, 0, generation="2", text="new")])
    await store.delete_document(collection, "a", except_generation="2")
    assert set(await texts_found(store, collection, 1, 0)) == {"new", "b 0"}


async def test_a_deleted_document_is_gone_and_the_others_stay(
    store: VectorStore, collection: str
) -> None:
    await store.upsert(
        collection, [whole("a", 1), chunk("a", 0, 1), whole("b", 1), chunk("b", 0, 1)]
    )
    await store.delete_document(collection, "a")
    await store.delete_document(collection, "a")
    assert await store.document(collection, "a") is None
    found = await store.collection(collection)
    assert (found.documents, found.chunks) == (1, 1)


async def test_a_document_is_shown_with_its_payload_and_the_number_of_its_chunks(
    store: VectorStore, collection: str
) -> None:
    points = [chunk("a/b c", index, 1) for index in range(300)]
    await store.upsert(collection, [*points, whole("a/b c", 1, generation="7", metadata={"x": 1})])
    found = await store.document(collection, "a/b c")
    assert found is not None
    assert (found.document, found.generation) == ("a/b c", "7")
    assert (found.payload, found.chunks) == ({"metadata": {"x": 1}}, 300)


async def test_all_points_are_read_page_by_page(store: VectorStore, collection: str) -> None:
    written = [chunk("a", index, 0.6, 0.8) for index in range(25)]
    await store.upsert(collection, written)
    read: list[Point] = []
    start, pages = None, 0
    while pages == 0 or start is not None:
        page = await store.points(collection, start=start, limit=10)
        read, start, pages = [*read, *page.points], page.next, pages + 1
    assert pages == 3
    assert sorted(read, key=lambda each: each.id) == sorted(written, key=lambda each: each.id)


async def test_a_collection_refuses_another_model_and_other_lengths(
    store: VectorStore, collection: str
) -> None:
    await store.ensure_collection(collection, MODEL, DIMENSION)
    for model, dimension in (("e5", DIMENSION), (MODEL, 8)):
        with pytest.raises(RequestRefused, match=f"holds vectors of '{MODEL}' with 4") as refused:
            await store.ensure_collection(collection, model, dimension)
        assert refused.value.code == "collection_mismatch"
    short = vector(1)[:8]
    with pytest.raises(RequestRefused, match="this one has 2"):
        await store.search(collection, short, limit=1)


async def test_collections_are_listed_with_their_counts(
    store: VectorStore, collection: str
) -> None:
    await store.upsert(collection, [whole("a", 1), chunk("a", 0, 1), chunk("a", 1, 1)])
    listed = {each.name: each for each in (await store.collections()).collections}
    found = listed[collection]
    assert (found.model, found.dimension) == (MODEL, DIMENSION)
    assert (found.documents, found.chunks, found.indexed) == (1, 2, 0)


async def test_a_dropped_collection_is_gone_and_its_name_is_free(
    store: VectorStore, collection: str
) -> None:
    await store.upsert(collection, [chunk("a", 0, 1)])
    await store.drop_collection(collection)
    with pytest.raises(RequestRefused) as refused:
        await store.search(collection, vector(1), limit=1)
    assert refused.value.code == "collection_not_found"
    await store.ensure_collection(collection, "e5", 8)
    assert (await store.collection(collection)).chunks == 0


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a" * 61, "a\n", "a b"])
async def test_what_cannot_be_a_folder_cannot_be_a_collection(
    store: VectorStore, name: str
) -> None:
    with pytest.raises(RequestRefused, match="cannot be the name of a collection"):
        await store.ensure_collection(name, MODEL, DIMENSION)


async def test_names_may_be_in_any_script(store: VectorStore) -> None:
    await store.ensure_collection("메모-2026.v1", MODEL, DIMENSION)
    await store.upsert("메모-2026.v1", [chunk("a", 0, 1)])
    assert (await store.collection("메모-2026.v1")).chunks == 1


async def test_vectors_come_back_at_length_one(store: VectorStore, collection: str) -> None:
    await store.upsert(collection, [chunk("a", 0, 3, 4)])
    (point,) = (await store.points(collection, start=None, limit=1)).points
    assert unpack(point.vector) == pytest.approx([0.6, 0.8, 0, 0])
