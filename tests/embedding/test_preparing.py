"""What a server is sent of callers' inputs, by what comes back."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from supervisor.embedding.lengths import Ids
from supervisor.embedding.tokenizer import FileTokenizer
from tests.conftest import StartController
from tests.embedding.conftest import MINILM, Embedder

KOREAN = ("연남 카페 추천해줘", "서울의 봄은 짧다", "GPU 메모리가 비었는지 확인한다")


@pytest.fixture(scope="module")
def tokens(models_dir: Path) -> FileTokenizer:
    return FileTokenizer(models_dir / "minilm.tokenizer.json")


def ids_of(tokens: FileTokenizer, text: str) -> Ids:
    return asyncio.run(tokens.encode([text])).ids[0]


def first_vector(answer: Any) -> list[float]:
    vector: list[float] = answer["data"][0]["embedding"]
    return vector


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize("text", KOREAN)
def test_a_server_is_sent_the_tokens_of_the_models_own_tokenizer(
    embedder: Embedder, tokens: FileTokenizer, text: str
) -> None:
    ids = list(ids_of(tokens, text))
    answer = embedder.embed("korean", text)
    assert answer["usage"]["prompt_tokens"] == len(ids)
    right = first_vector(embedder.ask_server("korean", [ids]))
    assert cosine(first_vector(answer), right) > 0.999999
    assert cosine(first_vector(embedder.ask_server("korean", text)), right) < 0.95


def test_without_a_tokenizer_the_server_is_asked_and_many_texts_at_once(
    embedder: Embedder, tokens: FileTokenizer
) -> None:
    texts = [f"a fox and {number} dogs" for number in range(600)]
    answer = embedder.embed("asking", texts)
    assert answer["usage"]["prompt_tokens"] == sum(len(ids_of(tokens, text)) for text in texts)
    again = embedder.embed("asking", texts[5:7])
    for number, each in enumerate(again["data"]):
        assert cosine(each["embedding"], answer["data"][5 + number]["embedding"]) > 0.9999


def test_token_ids_that_the_model_does_not_have_are_refused(embedder: Embedder) -> None:
    error = embedder.embed("korean", [[7], [30_521, 30_522]])["error"]
    assert (error["code"], error["index"]) == ("bad_request", 1)
    assert "token id 30522" in error["message"]


def test_a_server_that_takes_no_ids_is_sent_the_text_that_fits(embedder: Embedder) -> None:
    words = [f"word{number}" for number in range(30)]
    answer = embedder.embed("texts-only", " ".join(words))
    used = answer["usage"]["prompt_tokens"]
    assert 10 < used <= 16
    right = first_vector(answer)
    assert np.linalg.norm(right) == pytest.approx(1, abs=1e-5)
    beginnings = [" ".join(words)[:length] for length in range(20, 60)]
    served = embedder.embed("texts-only", beginnings)
    assert max(cosine(each["embedding"], right) for each in served["data"]) > 0.999999

    error = embedder.embed("texts-only", ["a", [101, 1037, 102]])["error"]
    assert (error["code"], error["index"]) == ("bad_request", 1)
    assert "takes texts only" in error["message"]


async def test_asking_for_tokens_makes_a_model_live(start_controller: StartController) -> None:
    files = {"models.yaml": {"models": {"asking": dict(MINILM)}}}
    controller = await start_controller(files=files, auto_switch=True)
    body = {"model": "asking", "input": "a brown fox"}
    answer = await controller.json("POST", "/v1/embeddings", body)
    assert answer["usage"]["prompt_tokens"] == 5
    [switch] = (await controller.json("GET", "/switches"))["switches"]
    assert (switch["model"], switch["outcome"]) == ("asking", "switched")
