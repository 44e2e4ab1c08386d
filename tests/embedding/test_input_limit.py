"""The longest input that is let through is the longest that the server takes."""

import pytest

from tests.embedding.conftest import Embedder


@pytest.mark.parametrize(
    ("model", "limit"),
    [
        ("whole", 512),  # the model's own context
        ("narrow", 64),  # its micro-batch
        ("divided", 256),  # its slot's share of the context
        ("pooling-mean", 512),  # its micro-batch, although it has a KV cache
        ("splitting", 1023),  # its context, over several micro-batches
    ],
)
def test_one_token_more_is_refused_by_the_service_as_by_the_server(
    embedder: Embedder, model: str, limit: int
) -> None:
    ids = [7] * (limit + 1)
    assert embedder.embed(model, [ids[:-1]])["usage"]["prompt_tokens"] == limit
    assert "error" in embedder.ask_server(model, [ids])

    error = embedder.embed(model, [[7], ids])["error"]
    assert (error["code"], error["index"]) == ("input_too_long", 1)
    assert f"`inputs` must have less than {limit} tokens. Given: {limit + 1}" in error["message"]
