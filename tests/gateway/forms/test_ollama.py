"""Embeddings in Ollama's form, and in that of the service before this one."""

import math
from typing import Any

import pytest

from tests.gateway.forms.conftest import Caller, cosine


def test_ollamas_answer_has_its_fields(caller: Caller) -> None:
    status, _, answer = caller.post("/api/embed", {"model": "minilm", "input": ["a", "b"]})

    assert status == 200
    assert answer["model"] == "minilm"
    assert [math.isclose(math.hypot(*v), 1.0, abs_tol=1e-5) for v in answer["embeddings"]] == [
        True,
        True,
    ]
    assert answer["total_duration"] >= answer["load_duration"] >= 0
    assert answer["prompt_eval_count"] > 2


def test_no_dimensions_are_all_for_ollama(caller: Caller) -> None:
    body = {"model": "minilm", "input": "a"}
    whole, zero = (caller.post("/api/embed", {**body, **f})[2] for f in ({}, {"dimensions": 0}))

    assert len(zero["embeddings"][0]) == len(whole["embeddings"][0])


def test_null_is_what_was_not_given_to_ollama(caller: Caller) -> None:
    body = {"model": "minilm", "input": "word " * 600}
    given, null = (caller.post("/api/embed", {**body, **f}) for f in ({}, {"truncate": None}))

    assert null[0] == given[0] == 200
    assert null[2]["embeddings"] == given[2]["embeddings"]


@pytest.mark.parametrize("name", ["minilm:latest", "all-MiniLM-L6-v2:latest"])
def test_ollamas_tag_is_no_part_of_a_name(caller: Caller, name: str) -> None:
    status, _, answer = caller.post("/api/embed", {"model": name, "input": "a"})

    assert (status, answer["model"], len(answer["embeddings"])) == (200, name, 1)


@pytest.mark.parametrize("fields", [{"input": []}, {"input": ""}, {"input": None}, {}])
def test_nothing_gets_no_vectors_from_ollama(caller: Caller, fields: dict[str, Any]) -> None:
    status, _, answer = caller.post("/api/embed", {"model": "minilm", **fields})

    assert (status, answer) == (200, {"model": "minilm", "embeddings": []})


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "nobody", "input": "a"}, 404, "there is no model 'nobody'"),
        ({"model": "demo-chat", "input": "a"}, 422, "demo-chat"),
        ({"model": "minilm", "input": [1, 2]}, 400, "$.input"),
        ({"model": "minilm", "input": "a", "dimensions": 3}, 400, "only to 64, 128"),
    ],
)
def test_ollamas_errors_are_one_sentence(
    caller: Caller, body: dict[str, Any], status: int, said: str
) -> None:
    answered, _, answer = caller.post("/api/embed", body)

    assert (answered, answer.keys()) == (status, {"error"})
    assert said in answer["error"]


def test_older_form_gives_one_vector_where_it_is_not_to_be_stored(caller: Caller) -> None:
    status, _, answer = caller.post("/embed", {"text": "a cat", "store": False})

    assert status == 200
    _, _, [vector] = caller.post("/embed", {"inputs": "a cat"})
    assert cosine(answer["embedding"], vector) > 0.9999
    assert (answer["dimensions"], answer["model"]) == (len(vector), "minilm")
    assert answer["tokens"] > 2


@pytest.mark.parametrize(
    "fields",
    [{}, {"store": None, "collection": None}, {"store": True, "collection": "notes"}],
)
def test_older_form_stores_a_text_once_unless_it_is_told_not_to(
    caller: Caller, fields: dict[str, Any]
) -> None:
    collection = fields.get("collection") or "documents"
    answers = [caller.post("/embed", {"text": "고양이 한 마리", **fields})[2] for _ in range(2)]
    caller.post("/embed", {"text": "a dog", **fields, "store": False})

    assert answers[0]["stored"] is True
    assert answers[0]["collection"] == collection
    assert answers[0] == answers[1]
    _, _, found = caller.post("/search", {"query": "고양이 한 마리", "collection": collection})
    [hit] = found["hits"]
    assert (hit["document"], hit["text"]) == (answers[0]["id"], "고양이 한 마리")
