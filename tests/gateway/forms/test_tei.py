"""Embeddings in text-embeddings-inference's form, as its clients ask for them."""

import json
import math
from typing import Any

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.forms.tei import tei_error
from tests.gateway.forms.conftest import Caller, cosine

TEXTS = ["a cat sits on a mat", "memory is free", "the third text of three"]
HEADERS = (
    *("x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens"),
    *("x-total-time", "x-tokenization-time", "x-queue-time", "x-inference-time"),
)


def embed(caller: Caller, inputs: Any, path: str = "/embed", **fields: Any) -> Any:
    """Return the vectors of inputs."""
    status, _, answer = caller.post(path, {"inputs": inputs, **fields})
    assert status == 200, answer
    return answer


def test_answer_is_an_array_of_arrays_for_one_text_and_for_many(caller: Caller) -> None:
    [one], many = embed(caller, TEXTS[0]), embed(caller, TEXTS)

    assert [len(each) for each in many] == [len(one)] * len(TEXTS)
    assert cosine(one, many[0]) > 0.9999
    assert math.isclose(math.hypot(*one), 1.0, abs_tol=1e-5)


def test_its_eight_headers_are_there(caller: Caller) -> None:
    _, headers, _ = caller.post("/embed", {"inputs": TEXTS})

    assert headers.keys() >= set(HEADERS)
    assert headers["x-compute-type"] == "cpu"
    assert int(headers["x-compute-characters"]) == sum(map(len, TEXTS))
    assert int(headers["x-compute-tokens"]) > len(TEXTS)


def test_fields_of_a_request_are_heeded(caller: Caller) -> None:
    [plain] = embed(caller, TEXTS[0])

    [raw] = embed(caller, TEXTS[0], normalize=False)
    assert math.hypot(*raw) > 1.1
    assert cosine(raw, plain) > 0.9999
    [short] = embed(caller, TEXTS[0], dimensions=64)
    assert cosine(short, plain[:64]) > 0.9999
    [short_raw] = embed(caller, TEXTS[0], dimensions=64, normalize=False)
    assert short_raw == raw[:64]
    [query] = embed(caller, TEXTS[0], prompt_name="query")
    assert cosine(query, embed(caller, f"query: {TEXTS[0]}")[0]) > 0.9999


def test_model_is_named_by_the_query(caller: Caller) -> None:
    assert embed(caller, TEXTS[0], "/embed?model=all-MiniLM-L6-v2") == embed(caller, TEXTS[0])

    status, _, answer = caller.post("/embed?model=nobody", {"inputs": "a"})
    assert (status, answer["error_type"]) == (404, "Validation")


def test_address_itself_tells_texts_from_sentences_to_compare(caller: Caller) -> None:
    [one] = embed(caller, TEXTS[0], "/")
    sentences = {"source_sentence": TEXTS[0], "sentences": [TEXTS[1], TEXTS[0]]}

    other, same = embed(caller, sentences, "/", parameters={})

    assert same > 0.9999
    assert math.isclose(other, cosine(one, embed(caller, TEXTS[1])[0]), abs_tol=1e-4)
    assert embed(caller, sentences, "/", parameters=None) == pytest.approx([other, same], abs=1e-4)
    assert embed(caller, sentences, "/similarity") == pytest.approx([other, same], abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "kind", "said"),
    [
        ("/embed", {"inputs": []}, "Empty", "`inputs` cannot be empty"),
        ("/embed", {"inputs": ""}, "Validation", "`inputs` cannot be empty"),
        (
            "/embed",
            {"inputs": ["a"] * 2049},
            "Validation",
            "batch size 2049 > maximum allowed batch size 2048",
        ),
        ("/embed", {"inputs": 7}, "Validation", "$.inputs"),
        (
            "/embed",
            {"inputs": "a", "truncation_direction": "Up"},
            "Validation",
            "`truncation_direction` must be Left or Right",
        ),
        ("/embed", {"inputs": "a", "dimensions": 7}, "Validation", "only to 64, 128"),
        ("/embed", {"inputs": "a", "prompt_name": "poem"}, "Validation", "no prompt 'poem'"),
        ("/", {}, "Validation", "inputs"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": []}},
            "Empty",
            "`inputs.sentences` cannot be empty",
        ),
        ("/rerank", {"query": "a", "texts": ["a"]}, "Validation", "minilm"),
    ],
)
def test_errors_have_its_form(caller: Caller, path: str, body: Any, kind: str, said: str) -> None:
    query = "?model=minilm" if path == "/rerank" and "texts" in body else ""

    answered, headers, answer = caller.post(path + query, body)

    assert (answered, answer["error_type"]) == ({"Empty": 400, "Validation": 422}[kind], kind)
    assert answer.keys() == {"error", "error_type"}
    assert said in answer["error"]
    assert headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/embed", {}, "`inputs`, `text`; it has none of them"),
        ("/embed", {"inputs": "a", "text": "a"}, "it has `inputs` and `text`"),
        ("/rerank", {"query": "a"}, "`texts`, `documents`; it has none of them"),
        ("/tokenize", {}, "`inputs`, `content`; it has none of them"),
        ("/tokenize", b'{"content": "a"', "it cannot be read: Input data was truncated"),
        ("/embed", b'{"inputs": "\xff"', "it cannot be read"),
        ("/rerank", b"[1]", "it cannot be read: Expected `object`, got `array`"),
        ("/rerank", b"", "it cannot be read"),
        ("/tokenize", {"inputs": "a", "content": "a"}, "it has `inputs` and `content`"),
        ("/embed", {"inputs": None, "text": None}, "it has none of them"),
    ],
)
def test_body_in_no_form_or_in_two_is_refused_in_the_form_of_the_first(
    caller: Caller, path: str, body: Any, said: str
) -> None:
    status, _, answer = caller.post(path, body)

    assert (status, answer["error_type"]) == (422, "Validation")
    assert said in answer["error"]


@pytest.mark.parametrize(
    ("path", "field", "other"),
    [("/embed", "inputs", "text"), ("/", "inputs", "texts"), ("/tokenize", "inputs", "content")],
)
def test_null_is_what_was_not_given(caller: Caller, path: str, field: str, other: str) -> None:
    status, _, answer = caller.post(path, {field: "a", other: None})

    assert status == 200, answer
    assert answer == caller.post(path, {field: "a"})[2]


@pytest.mark.parametrize("model", ["minilm", "plain"])
def test_tokens_of_a_text_are_told(caller: Caller, model: str) -> None:
    caller.running.make_live(model)
    try:
        path = f"/tokenize?model={model}"
        status, _, [tokens, other] = caller.post(path, {"inputs": ["Hello you", "a"]})
        bare = caller.post(path, {"inputs": "Hello", "add_special_tokens": False})[2][0]
        body = {"content": "Hello you", "add_special": True}
        own = caller.running.json("POST", "/tokenize", {"model": model, **body})["tokens"]
    finally:
        caller.running.make_live("minilm")

    assert status == 200
    assert [each["id"] for each in tokens] == own == [101, 7592, 2017, 102]
    assert len(other) == 3
    assert [each["id"] for each in bare] == [7592]
    if model == "minilm":
        assert [each["text"] for each in tokens] == ["[CLS]", "Hello", "you", "[SEP]"]
        assert [each["special"] for each in tokens] == [True, False, False, True]
        assert [(each["start"], each["stop"]) for each in tokens[1:3]] == [(0, 5), (6, 9)]


def test_text_that_is_too_long_beside_its_query_is_cut(caller: Caller) -> None:
    long = "the panda is a bear " + "and more " * 2000
    caller.running.make_live("reranker")
    try:
        body = {"query": "what is a panda", "texts": ["hi there", long]}
        status, headers, ranked = caller.post("/rerank", body)
        refused = caller.post("/rerank", {**body, "truncate": False})
    finally:
        caller.running.make_live("minilm")

    assert (status, sorted(each["index"] for each in ranked)) == (200, [0, 1])
    assert headers.keys() >= set(HEADERS)
    assert headers["x-truncated"] == "1"
    assert int(headers["x-compute-tokens"]) > 256
    assert refused[0] == 422
    assert "input 1 is too long" in refused[2]["error"]


def test_texts_are_ranked_the_best_first(caller: Caller) -> None:
    caller.running.make_live("reranker")
    query, texts = "what is a panda", ["hi there", "the panda is a bear", "a what"]
    try:
        _, _, ranked = caller.post("/rerank", {"query": query, "texts": texts})
        body = {"query": query, "texts": texts, "raw_scores": True, "return_text": True}
        _, _, raw = caller.post("/rerank", body)
        _, _, with_empty = caller.post("/rerank", {"query": query, "texts": ["", "a panda"]})
        documents = {"query": query, "documents": texts}
        _, _, own = caller.post("/rerank?model=reranker", documents)
        many = [f"{number} panda" for number in range(100)]
        _, _, all_ranked = caller.post("/rerank", {"query": query, "texts": many})
        at_address = caller.post("/", {"query": query, "texts": texts})
        told = caller.post("/tokenize?model=reranker", {"inputs": "panda"})
    finally:
        caller.running.make_live("minilm")

    assert ranked[0]["index"] == 1
    assert at_address[2] == ranked
    assert told[0] == 200
    assert any("panda" in each["text"] for each in told[2][0])
    assert [each["score"] for each in ranked] == sorted((r["score"] for r in ranked), reverse=True)
    assert all(0 <= each["score"] <= 1 for each in ranked)
    assert [each["text"] for each in raw] == [texts[each["index"]] for each in raw]
    assert [1 / (1 + math.exp(-each["score"])) for each in raw] == pytest.approx(
        [each["score"] for each in ranked], rel=1e-3
    )
    scores = {each["index"]: each["relevance_score"] for each in own["results"]}
    assert {each["index"]: each["score"] for each in raw} == pytest.approx(scores, rel=1e-3)
    assert sorted(each["index"] for each in all_ranked) == list(range(100))
    assert [each["index"] for each in with_empty] == [1, 0]


@pytest.mark.parametrize(
    ("code", "status", "kind", "said"),
    [
        ("embedding_queue_full", 429, "Overloaded", "Model is overloaded: so it is"),
        ("embedding_failed", 424, "Backend", "so it is"),
        ("extra_missing", 501, "Backend", "so it is"),
        ("shutting_down", 503, "Unhealthy", "so it is"),
        ("input_too_long", 422, "Validation", "so it is"),
        ("body_too_large", 413, "Validation", "so it is"),
    ],
)
def test_errors_have_the_kinds_that_its_clients_know(
    code: str, status: int, kind: str, said: str
) -> None:
    answer = tei_error(RequestRefused(code, "so it is"))

    assert answer.status == status
    assert json.loads(answer.body) == {"error": said, "error_type": kind}


def test_info_tells_of_a_model(caller: Caller) -> None:
    info = caller.running.json("GET", "/info")

    assert info["served_model_name"] == "minilm"
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert info["model_dtype"] == "f16"
    assert info["max_input_length"] == 256
    assert info["auto_truncate"] is True
    ranker = caller.running.json("GET", "/info?model=reranker")
    assert ranker["model_type"].keys() == {"reranker"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("model=demo-chat", "demo-chat"),
        ("model=nobody", "nobody"),
        ("verbose=1", "verbose: is not a known field"),
    ],
)
def test_info_refuses_in_its_form(caller: Caller, query: str, said: str) -> None:
    answer = caller.running.json("GET", f"/info?{query}")

    assert answer.keys() == {"error", "error_type"}
    assert answer["error_type"] == "Validation"
    assert said in answer["error"]
