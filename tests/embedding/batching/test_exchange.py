"""What is read of a server's answer, and what is not taken for one."""

import json
from base64 import b64encode
from typing import Any

import pytest

from supervisor.embedding.batching.exchange import explained, read_vectors
from supervisor.embedding.vectors import pack

ONE, OTHER = pack([1.0, 0.5]), pack([0.25, 2.0])


def answer(*entries: tuple[int, Any]) -> bytes:
    return json.dumps({"data": [{"index": i, "embedding": each} for i, each in entries]}).encode()


def written(vector: bytes) -> str:
    return b64encode(vector).decode()


def test_vectors_are_read_as_base64_and_as_numbers_in_the_order_of_the_inputs() -> None:
    vectors, _ = read_vectors(answer((1, [0.25, 2.0]), (0, written(ONE))), 2)
    assert vectors == [ONE, OTHER]


@pytest.mark.parametrize(
    "content",
    [
        answer((0, written(ONE))),
        answer((0, written(ONE)), (0, written(OTHER))),
        answer((0, written(ONE)), (1, written(OTHER)), (1, written(ONE))),
        answer((0, written(ONE)), (2, written(OTHER))),
        answer((-1, written(ONE)), (0, written(OTHER))),
        answer((0, written(ONE)), (1, written(OTHER[:4]))),
        answer((0, written(ONE)), (1, written(OTHER[:7]))),
        answer((0, written(ONE)), (1, "")),
        answer((0, written(ONE)), (1, [])),
        answer((0, written(ONE)), (1, [1.0, None])),
        answer((0, written(ONE)), (1, [[1.0, 2.0]])),
        answer((0, written(ONE)), (1, "what is this?")),
        answer((0, written(ONE)), (1, written(pack([1.0, float("nan")])))),
        answer((0, written(ONE)), (1, [1e300, 1.0])),
        b'{"data": [{"index": 0, "embedding": "',
        b"\xff\xfe",
        b"[]",
        b"",
    ],
)
def test_what_does_not_have_a_vector_for_each_input_is_not_used(content: bytes) -> None:
    with pytest.raises((ValueError, OverflowError)):
        read_vectors(content, 2)


def test_a_servers_words_are_kept_and_tell_what_is_too_long() -> None:
    told = b'{"error": {"code": 400, "type": "exceed_context_size_error"}}'
    refused = explained("minilm", 400, told)
    assert (refused.code, refused.details) == ("input_too_long", {"status": 400})
    refused = explained("minilm", 500, b"x" * 10_000)
    assert refused.code == "embedding_failed"
    assert len(refused.message) < 600
