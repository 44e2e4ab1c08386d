"""Inputs that are long: whole where the model can, else refused, cut or divided."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from demo_models.demo_chat import TEXT_FILE

from tests.gateway.forms.conftest import Caller, cosine

LIMIT = 256
LONG = " ".join(f"number {number} of many" for number in range(100))
PAGE_WORDS = 400
"""Words on an A4 page of single-spaced text."""


@contextmanager
def live(caller: Caller, model: str) -> Iterator[None]:
    """Have another model live than the one that the other tests share."""
    caller.running.make_live(model)
    try:
        yield
    finally:
        caller.running.make_live("minilm")


def ids_of(caller: Caller, text: str) -> list[int]:
    body = {"content": text, "add_special": True}
    ids: list[int] = caller.running.json("POST", "/upstream/minilm/tokenize", body)["tokens"]
    return ids


def embed(caller: Caller, inputs: Any, **fields: Any) -> Any:
    status, headers, answer = caller.post("/embed", {"inputs": inputs, **fields})
    assert status == 200, answer
    return answer, headers


@pytest.mark.parametrize("side", ["Left", "right"])
def test_cut_text_is_that_of_its_first_or_last_tokens(caller: Caller, side: str) -> None:
    head, *body, tail = ids_of(caller, LONG)
    kept = body[: LIMIT - 2] if side == "right" else body[2 - LIMIT :]

    [cut], headers = embed(caller, LONG, truncation_direction=side)

    [expected], _ = embed(caller, [[head, *kept, tail]])
    assert cosine(cut, expected) > 0.9999
    assert headers["x-truncated"] == "1"
    assert headers["x-compute-tokens"] == str(LIMIT)


@pytest.mark.parametrize("given", ["text", "ids"])
def test_input_that_is_too_long_is_named_and_the_others_are_lost_with_it(
    caller: Caller, given: str
) -> None:
    ids = ids_of(caller, LONG)
    long = LONG if given == "text" else ids

    status, _, answer = caller.post("/v1/embeddings", {"input": ["short", long]})

    error = answer["error"]
    assert (status, error["code"], error["index"]) == (400, "input_too_long", 1)
    assert f"must have less than {LIMIT} tokens. Given: {len(ids)}" in error["message"]


def test_all_inputs_that_are_too_long_are_named(caller: Caller) -> None:
    status, _, answer = caller.post("/v1/embeddings", {"input": [LONG, "short", LONG]})
    assert (status, answer["error"]["index"], answer["error"]["too_long"]) == (400, 0, [0, 2])


def test_token_ids_that_are_cut_or_divided_keep_what_stands_around_them(caller: Caller) -> None:
    ids = ids_of(caller, LONG)
    for inputs in ([ids], [ids, "a text beside them"]):
        cut, *_ = embed(caller, inputs)[0]
        assert cosine(cut, embed(caller, LONG)[0][0]) > 0.9999

    with live(caller, "windowed"):
        _, _, of_ids = caller.post("/v1/embeddings", {"model": "windowed", "input": [ids]})
        _, _, of_text = caller.post("/v1/embeddings", {"model": "windowed", "input": [LONG]})
    vectors = [answer["data"][0]["embedding"] for answer in (of_ids, of_text)]
    assert cosine(*vectors) > 0.9999


def test_divided_input_is_the_mean_of_its_windows_weighted_by_their_tokens(caller: Caller) -> None:
    head, *body, tail = ids_of(caller, LONG)
    count = math.ceil(len(body) / (LIMIT - 2))
    bounds = [len(body) * number // count for number in range(count + 1)]
    windows = [[head, *body[begin:end], tail] for begin, end in pairwise(bounds)]
    raw, _ = embed(caller, windows, normalize=False)
    mean = [
        math.fsum(len(window) * value for window, value in zip(windows, column, strict=True))
        for column in zip(*raw, strict=True)
    ]

    with live(caller, "windowed"):
        status, headers, answer = caller.post(
            "/v1/embeddings", {"model": "windowed", "input": ["short", LONG]}
        )

    assert status == 200, answer
    vector = answer["data"][1]["embedding"]
    assert count > 1
    assert cosine(vector, mean) > 0.9999
    assert math.isclose(math.hypot(*vector), 1.0, abs_tol=1e-5)
    [short], _ = embed(caller, "short")
    assert cosine(answer["data"][0]["embedding"], short) > 0.9999
    assert headers["x-windowed"] == "1"


def test_model_without_a_tokenizer_of_its_own_has_its_server_asked(caller: Caller) -> None:
    texts = ["a cat sits on a mat", "", LONG]
    [cut], _ = embed(caller, LONG)
    [short], _ = embed(caller, texts[0])

    with live(caller, "plain"):
        refused = caller.post("/v1/embeddings", {"model": "plain", "input": ["a", LONG]})
        _, headers, answer = caller.post("/embed?model=plain", {"inputs": [texts[0], LONG]})

    assert (refused[0], refused[2]["error"]["index"]) == (400, 1)
    assert cosine(answer[0], short) > 0.9999
    assert cosine(answer[1], cut) > 0.9999
    assert headers["x-truncated"] == "1"


def test_fifty_pages_are_one_input_of_a_model_that_splits_them(caller: Caller) -> None:
    words = (TEXT_FILE.read_text(encoding="utf-8") + " ").split(" ")
    pages = " ".join((words * (1 + 50 * PAGE_WORDS // len(words)))[: 50 * PAGE_WORDS])
    with live(caller, "reader"):
        status, headers, answer = caller.post(
            "/v1/embeddings", {"model": "reader", "input": [pages, " ".join(words)]}
        )

    assert status == 200, answer
    whole, once = (each["embedding"] for each in answer["data"])
    assert 15_000 < answer["usage"]["prompt_tokens"] < 40_000
    assert cosine(whole, once) > 0.9
    assert not headers.keys() & {"x-truncated", "x-windowed"}
