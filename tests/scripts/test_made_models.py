"""The models that tests make for themselves do on the native server what they are made for."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from demo_models.demo_chat import TEXT_FILE

Post = Callable[[str, object], Any]
Serve = Callable[..., str]

LONGEST_TOKENS = 32_768
LONG_CONTEXT = ("--embeddings", "--ctx-size", "33024", "--parallel", "8", "--kv-unified")


@pytest.mark.parametrize(
    ("query", "documents"),
    [
        (
            "train station",
            [
                "The train leaves the station at nine.",
                "The oven is hot, the train is late.",
                "The soup is too salty.",
            ],
        ),
        (
            "What is deep learning?",
            [
                "Deep learning is a kind of machine learning with many layers.",
                "What is it?",
                "Cheese is made of milk.",
            ],
        ),
    ],
)
def test_reranker_orders_texts_by_the_words_that_they_share_with_the_query(
    query: str, documents: list[str], reranker: Path, serve: Serve, post: Post
) -> None:
    address = serve(reranker, "--rerank")

    answer = post(f"{address}/rerank", {"query": query, "documents": documents})

    scores = {each["index"]: each["relevance_score"] for each in answer["results"]}
    assert sorted(scores, key=lambda index: -scores[index]) == [0, 1, 2]
    assert scores[0] > 0 > scores[2]


def test_long_reader_takes_32768_tokens_though_its_micro_batch_is_512(
    long_reader: Path, serve: Serve, post: Post
) -> None:
    address = serve(long_reader, *LONG_CONTEXT, "--batch-size", "512", "--ubatch-size", "512")
    words = post(f"{address}/tokenize", {"content": TEXT_FILE.read_text(encoding="utf-8")})

    whole, half, other = (
        post(f"{address}/v1/embeddings", {"input": tokens})
        for tokens in (
            (words["tokens"] * 20)[:LONGEST_TOKENS],
            words["tokens"],
            list(range(300, 3300)),
        )
    )

    assert whole["usage"]["prompt_tokens"] == LONGEST_TOKENS
    assert cosine(whole, half) > 0.9 > cosine(whole, other)


def test_micro_batch_of_long_reader_does_not_change_its_vectors(
    long_reader: Path, serve: Serve, post: Post
) -> None:
    tokens = list(range(300, 3300))
    small, large = (
        post(f"{address}/v1/embeddings", {"input": tokens})
        for address in (
            serve(long_reader, *LONG_CONTEXT, "--batch-size", size, "--ubatch-size", size)
            for size in ("512", "2048")
        )
    )
    assert cosine(small, large) >= 0.9999


def cosine(one: Any, other: Any) -> float:
    a, b = (unit(answer["data"][0]["embedding"]) for answer in (one, other))
    return float(a @ b)


def unit(values: Sequence[float]) -> Any:
    return np.array(values) / np.linalg.norm(values)
