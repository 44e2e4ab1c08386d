"""Searching what is stored, collections and documents, by HTTP."""

import base64
import json
import math
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest
import yaml

from supervisor.config.settings import VectorSettings
from supervisor.errors import RequestRefused
from supervisor.gateway.stored_vectors import CollectionParameters, StoredVectors
from supervisor.vector_store.opening import StoreOpener
from supervisor.vector_store.port import point_id
from tests.conftest import ROOT
from tests.relay.conftest import Running, serving
from tests.relay.wire import until

TEXTS = {
    "cats": "Cats are small carnivorous animals that purr.",
    "trains": "The express train leaves the station at noon.",
    "soup": "Boil the vegetables for an hour to make a soup.",
}


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A controller with a model for embeddings, and three texts in the collection `texts`."""
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "profiles" / "models.yaml").read_text())
    shipped["models"]["minilm"] |= {"prompts": {"query": ""}}
    files = {"models.yaml": shipped | {"default_model": None}}
    with serving(tmp_path_factory.mktemp("stored"), server={}, files=files) as running:
        running.make_live("minilm")
        for text in TEXTS.values():
            running.json("POST", "/embed", {"text": text, "collection": "texts"})
        yield running


def search(controller: Running, query: str, **fields: Any) -> Any:
    return controller.json("POST", "/search", {"query": query, "collection": "texts", **fields})


def point(index: int, *numbers: float, document: str = "a", **payload: Any) -> dict[str, Any]:
    """Return a point as the route takes it."""
    return {
        "id": point_id(document=document, model="m", chunker="c", index=index),
        "document": document,
        "kind": "chunk",
        "generation": "1",
        "vector": base64.b64encode(array("f", numbers).tobytes()).decode(),
        "payload": payload,
    }


def put(
    controller: Running,
    collection: str,
    *points: dict[str, Any],
    model: str = "m",
    dimension: int = 2,
) -> Any:
    body = {"model": model, "dimension": dimension, "points": points}
    return controller.json("POST", f"/collections/{collection}/points", body)


def test_a_question_finds_the_chunk_that_answers_it(controller: Running) -> None:
    found = search(controller, "When does the railway service depart?", limit=2)
    assert (found["collection"], found["model"]) == ("texts", "minilm")
    assert found["hits"][0]["text"] == TEXTS["trains"]
    scores = [hit["score"] for hit in found["hits"]]
    assert len(scores) == 2
    assert 1 > scores[0] > scores[1]


def test_a_filter_leaves_the_document_that_is_named(controller: Running) -> None:
    [hit] = search(controller, "an animal", limit=1)["hits"]
    assert hit["text"] == TEXTS["cats"]
    only = {"document": hit["document"]}
    assert [each["text"] for each in search(controller, "train", filter=only)["hits"]] == [
        TEXTS["cats"]
    ]
    found = search(controller, "train", kind="document", filter=only)["hits"]
    assert [each["document"] for each in found] == [hit["document"]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"query": ""}, "query"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"kind": "page"}, "kind"),
        ({"filter": {"page": True}}, "`filter`: page must be a text, a whole number"),
        ({"filter": {"page": {"above": 3}}}, "bounds on a number (gt, gte, lt, lte)"),
        ({"filter": {"page": [1, "2"]}}, "page needs texts alone, or whole numbers, in its list"),
        ({"filter": {"page": []}}, "page needs texts alone"),
        ({"filter": {"metadata..x": 1}}, "'metadata..x' is no path of a field"),
        ({"filter": {'a"b': 1}}, "is no path of a field"),
        ({"filter": {"a\\b": 1}}, "is no path of a field"),
        ({"filter": {"n": 2**63}}, "n has 9223372036854775808, and whole numbers may have 64 bits"),
        ({"filter": {"n": [1, 2**64]}}, "whole numbers may have 64 bits"),
        ({"colection": "x"}, "colection"),
        ({"collection": "../secret"}, "cannot be the name of a collection"),
    ],
)
def test_what_cannot_be_searched_for_is_named(
    controller: Running, fields: dict[str, Any], said: str
) -> None:
    answer = search(controller, **{"query": "x", **fields})
    assert answer["error"]["code"] == "bad_request"
    assert said in answer["error"]["message"]


def test_a_collection_that_is_not_there_is_not_found(controller: Running) -> None:
    assert search(controller, "x", collection="none")["error"]["code"] == "collection_not_found"
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/points"), ("POST", "/optimize")):
        answer = controller.json(method, f"/collections/none{path}")
        assert answer["error"]["code"] == "collection_not_found"


def test_collections_tell_what_they_hold(controller: Running) -> None:
    expected = {
        "name": "texts",
        "model": "minilm",
        "dimension": 384,
        "chunks": 3,
        "documents": 3,
        "indexed": 0,
    }
    assert expected in controller.json("GET", "/collections")["collections"]
    assert controller.json("GET", "/collections/texts") == expected


def test_points_come_out_as_they_may_be_put_in_elsewhere(controller: Running) -> None:
    given = [point(index, 1, index, page=index) for index in range(3)]
    assert put(controller, "pages", *given)["written"] == 3
    first = controller.json("GET", "/collections/pages/points?limit=2")
    rest = controller.json("GET", f"/collections/pages/points?start={first['next']}")
    read = [*first["points"], *rest["points"]]
    assert rest["next"] is None
    assert sorted(each["payload"]["page"] for each in read) == [0, 1, 2]
    put(controller, "copies", *read)
    assert controller.json("GET", "/collections/copies/points")["points"] == read


def test_points_of_an_alias_are_those_of_its_model(controller: Running) -> None:
    put(controller, "aliased", model="all-MiniLM-L6-v2:latest", dimension=384)
    assert put(controller, "aliased", model="minilm", dimension=384)["written"] == 0
    assert controller.json("GET", "/collections/aliased")["model"] == "minilm"
    text = {"text": TEXTS["cats"], "collection": "aliased"}
    assert controller.json("POST", "/embed", text)["stored"] is True


def test_points_from_what_is_no_id_on_are_refused(controller: Running) -> None:
    put(controller, "pages", point(0, 1, 0))
    answer = controller.json("GET", "/collections/pages/points?start=zzz")
    assert answer["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"id": "7"}, "bad_request"),
        ({"kind": "page"}, "bad_request"),
        ({"vector": "…"}, "bad_request"),
        ({"vector": "AAAA"}, "collection_mismatch"),
        ({"vector": base64.b64encode(b"123456789").decode()}, "collection_mismatch"),
        (point(0, 1, math.inf), "bad_request"),
        (point(0, math.nan, 1), "bad_request"),
        ({"generation": None}, "bad_request"),
    ],
)
def test_points_that_cannot_be_stored_are_refused(
    controller: Running, changes: dict[str, Any], code: str
) -> None:
    assert put(controller, "refusing", point(0, 1, 0) | changes)["error"]["code"] == code
    shown = controller.json("GET", "/collections/refusing")
    assert shown["error"]["code"] == "collection_not_found"  # nothing was made for them


def test_a_collection_refuses_vectors_of_another_length(controller: Running) -> None:
    put(controller, "short", point(0, 1, 0))
    answer = put(controller, "short", point(0, 1, 0, 0), dimension=3)
    assert answer["error"]["code"] == "collection_mismatch"
    assert "DELETE /collections/short" in answer["error"]["message"]
    assert controller.json("DELETE", "/collections/short")["deleted"] is True
    assert put(controller, "short", point(0, 1, 0, 0), dimension=3)["written"] == 1


def test_a_collection_of_a_model_that_has_gone_says_so(controller: Running) -> None:
    put(controller, "orphans", point(0, 1, 0))
    assert search(controller, "x", collection="orphans")["error"]["code"] == "model_not_found"


def test_a_document_is_shown_and_deleted_whatever_its_name(controller: Running) -> None:
    stored = controller.json("POST", "/embed", {"text": "지울 글", "collection": "texts"})
    path = f"/documents/{stored['id']}?collection=texts"
    shown = controller.json("GET", path)
    assert (shown["id"], shown["chunks"], shown["text"]) == (stored["id"], 1, "지울 글")
    assert controller.json("DELETE", path)["deleted"] is True
    for method in ("GET", "DELETE"):
        assert controller.json(method, path)["error"]["code"] == "document_not_found"
    name = "책/1장?.pdf"
    put(controller, "names", point(0, 1, 0, document=name) | {"kind": "document"})
    shown = controller.json("GET", f"/documents/{quote(name)}?collection=names")
    assert shown["id"] == name


def test_an_index_is_built_behind_the_answer(controller: Running) -> None:
    answer = controller.json("POST", "/collections/texts/optimize")
    assert answer == {"collection": "texts", "location": "/collections/texts"}
    until(lambda: "store.optimized" in controller.log_path.read_text())
    assert search(controller, "soup")["hits"][0]["text"] == TEXTS["soup"]


@pytest.mark.parametrize("cancelled", [["job-1"], []])
async def test_a_collection_is_deleted_where_nothing_can_be_written_before_that(
    tmp_path: Path, cancelled: Sequence[str]
) -> None:
    opener = StoreOpener(VectorSettings(), lambda: tmp_path)
    store = await opener.store()
    await store.ensure_collection("night", "m", 2)

    async def withdraw(_: str, __: str | None) -> Sequence[str]:
        if (await store.collections()).collections:
            raise RequestRefused("storage_full", "the queue of jobs cannot be written")
        return cancelled

    stored = StoredVectors(cast("Any", None), cast("Any", None), opener, withdraw)
    try:
        answer = await stored.drop_collection(CollectionParameters(collection="night"))
        assert json.loads(answer.body)["cancelled_jobs"] == cancelled
        assert (await store.collections()).collections == []
    finally:
        await opener.close()
