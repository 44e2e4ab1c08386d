"""What is a Qdrant server's own: keys, collections of others, and that it may be away."""

import asyncio

import pytest
from qdrant_client import AsyncQdrantClient, models

from supervisor.errors import RequestRefused
from supervisor.vector_store import server
from supervisor.vector_store.server import ServerStore
from tests.vector_store.conftest import API_KEY
from tests.vector_store.points import DIMENSION, MODEL, chunk, vector


async def test_a_wrong_key_is_told(qdrant_url: str) -> None:
    store = ServerStore(qdrant_url, "another key")
    with pytest.raises(RequestRefused, match="Invalid API key") as refused:
        await store.collections()
    assert refused.value.code == "store_failed"
    await store.close()


async def test_a_server_that_is_away_is_told_by_its_url() -> None:
    store = ServerStore("http://127.0.0.1:9", None)
    with pytest.raises(RequestRefused, match=r"at http://127\.0\.0\.1:9 failed") as refused:
        await store.ensure_collection("notes", MODEL, DIMENSION)
    assert refused.value.code == "store_failed"
    await store.close()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
async def test_collections_of_others_are_left_alone(qdrant_url: str) -> None:
    client = AsyncQdrantClient(url=qdrant_url, api_key=API_KEY, check_compatibility=False)
    params = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
    await client.create_collection("theirs", vectors_config=params)
    store = ServerStore(qdrant_url, API_KEY)
    assert "theirs" not in {each.name for each in (await store.collections()).collections}
    for refused in (
        store.ensure_collection("theirs", MODEL, DIMENSION),
        store.upsert("theirs", [chunk("a", 0, 1)]),
        store.search("theirs", vector(1), limit=1),
        store.drop_collection("theirs"),
    ):
        with pytest.raises(RequestRefused, match="was not made here") as error:
            await refused
        assert error.value.code == "collection_mismatch"
    assert await client.collection_exists("theirs")
    await store.close()
    await client.close()


async def test_a_collection_that_many_want_at_once_is_made_once(qdrant_url: str) -> None:
    store = ServerStore(qdrant_url, API_KEY)
    wanted = (store.ensure_collection("wanted", MODEL, DIMENSION) for _ in range(5))
    await asyncio.gather(*wanted)
    assert (await store.collection("wanted")).chunks == 0
    await store.close()


async def test_a_collection_that_others_made_for_another_model_is_not_written_to(
    qdrant_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_SPACE_HOLDS_S", 0.0)
    ours, theirs = ServerStore(qdrant_url, API_KEY), ServerStore(qdrant_url, API_KEY)
    await ours.ensure_collection("handed-on", MODEL, DIMENSION)
    await theirs.drop_collection("handed-on")
    await theirs.ensure_collection("handed-on", "another", DIMENSION)
    with pytest.raises(RequestRefused) as refused:
        await ours.ensure_collection("handed-on", MODEL, DIMENSION)
    assert refused.value.code == "collection_mismatch"
    assert (await ours.space("handed-on")).model == "another"
    await ours.close()
    await theirs.close()


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
async def test_a_collection_that_others_deleted_is_made_again(qdrant_url: str) -> None:
    store = ServerStore(qdrant_url, API_KEY)
    await store.ensure_collection("fleeting", MODEL, DIMENSION)
    client = AsyncQdrantClient(url=qdrant_url, api_key=API_KEY, check_compatibility=False)
    await client.delete_collection("fleeting")
    with pytest.raises(RequestRefused):
        await store.upsert("fleeting", [chunk("a", 0, 1)])
    await store.ensure_collection("fleeting", MODEL, DIMENSION)
    await store.upsert("fleeting", [chunk("a", 0, 1)])
    assert (await store.collection("fleeting")).chunks == 1
    await store.close()
    await client.close()
