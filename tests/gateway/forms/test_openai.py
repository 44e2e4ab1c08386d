"""Embeddings in OpenAI's form, as its clients ask for them."""

import base64
import gzip
import json
import math
import struct
from typing import Any

import pytest

from tests.gateway.forms.conftest import Caller, cosine

TEXTS = ["a cat sits on a mat", "memory is free", "the third text of three"]


def vectors(caller: Caller, given: Any, path: str = "/v1/embeddings", **fields: Any) -> Any:
    """Return the vectors of what is given."""
    status, _, answer = caller.post(path, {"model": "minilm", "input": given, **fields})
    assert status == 200, answer
    return [each["embedding"] for each in answer["data"]]


def error(caller: Caller, given: Any, **fields: Any) -> tuple[int, str, str]:
    """Return the status, code and sentence with which what is given is refused."""
    status, _, answer = caller.post("/v1/embeddings", {"input": given, **fields})
    return status, answer["error"]["code"], answer["error"]["message"]


def test_each_text_of_an_array_gets_its_own_vector_in_its_place(caller: Caller) -> None:
    together = vectors(caller, TEXTS)

    apart = [vectors(caller, text)[0] for text in TEXTS]
    for one, other in zip(together, apart, strict=True):
        assert cosine(one, other) > 0.9999
        assert math.isclose(math.hypot(*one), 1.0, abs_tol=1e-5)
    assert cosine(apart[0], apart[1]) < 0.9


def test_answer_has_the_form_that_openai_documents(caller: Caller) -> None:
    _, headers, answer = caller.post("/v1/embeddings", {"model": "minilm", "input": TEXTS})

    assert headers["content-type"] == "application/json"
    assert answer["object"] == "list"
    assert answer["model"] == "minilm"
    assert [(each["object"], each["index"]) for each in answer["data"]] == [
        ("embedding", index) for index in range(len(TEXTS))
    ]
    usage = answer["usage"]
    assert usage["prompt_tokens"] == usage["total_tokens"] > 0
    assert float(headers["x-inference-time-ms"]) > 0
    assert float(headers["x-queue-time-ms"]) >= 0


def test_base64_holds_the_same_numbers(caller: Caller) -> None:
    [floats] = vectors(caller, TEXTS[0])
    [encoded] = vectors(caller, TEXTS[0], encoding_format="base64")

    content = base64.b64decode(encoded)
    assert list(struct.unpack(f"<{len(content) // 4}f", content)) == floats


def test_null_is_what_was_not_given(caller: Caller) -> None:
    """LiteLLM sends it."""
    [expected] = vectors(caller, TEXTS[0])
    assert vectors(caller, TEXTS[0], encoding_format=None) == [expected]


def test_token_ids_are_taken_as_they_are(caller: Caller) -> None:
    ids = caller.running.json(
        "POST", "/upstream/minilm/tokenize", {"content": TEXTS[0], "add_special": True}
    )["tokens"]

    [of_text], [of_ids] = vectors(caller, TEXTS[0]), vectors(caller, ids)
    several = vectors(caller, [ids, TEXTS[1], ids])

    assert cosine(of_text, of_ids) > 0.9999
    assert cosine(several[2], of_text) > 0.9999
    assert cosine(several[1], vectors(caller, TEXTS[1])[0]) > 0.9999


def test_compressed_body_is_read(caller: Caller) -> None:
    content = gzip.compress(json.dumps({"input": TEXTS[0]}).encode())

    status, _, answer = caller.post("/v1/embeddings", content, {"Content-Encoding": "gzip"})

    assert (status, len(answer["data"])) == (200, 1)


def test_purpose_is_told_by_the_route_or_a_field(caller: Caller) -> None:
    [query], [document] = (vectors(caller, f"{p}: capital") for p in ("query", "passage"))

    for path, fields in (
        ("/v1/embeddings/query", {}),
        ("/v1/embeddings", {"input_type": "query"}),
        ("/v1/embeddings", {"input_type": "search_query"}),
        ("/v1/embeddings", {"prompt_name": "query"}),
    ):
        assert cosine(vectors(caller, "capital", path, **fields)[0], query) > 0.9999
    for path, fields in (
        ("/v1/embeddings/document", {}),
        ("/v1/embeddings", {"input_type": "passage"}),
    ):
        assert cosine(vectors(caller, "capital", path, **fields)[0], document) > 0.9999
    assert cosine(query, document) < 0.999


def test_shorter_vectors_have_length_1_again(caller: Caller) -> None:
    [whole], [short] = vectors(caller, TEXTS[0]), vectors(caller, TEXTS[0], dimensions=64)

    assert len(short) == 64
    assert math.isclose(math.hypot(*short), 1.0, abs_tol=1e-5)
    assert cosine(short, whole[:64]) > 0.9999
    assert vectors(caller, TEXTS[0], dimensions=len(whole)) == [whole]


@pytest.mark.parametrize(
    ("given", "fields", "said"),
    [
        ([], {}, "`input` is empty"),
        ("", {}, "`input` cannot be empty"),
        (["a", ""], {}, "`input` cannot be empty: `input[1]` is"),
        ("a", {"encoding_format": "int8"}, "`encoding_format` must be float or base64"),
        (["a", "", "b"], {}, "`input[1]` is"),
        (["a", []], {}, "`input[1]` is"),
        (["a", 7], {}, "`input[1]` is a number among texts"),
        (["a"] * 2049, {}, "2049 entries"),
        (7, {}, "$.input"),
        ({"text": "a"}, {}, "$.input"),
        ([{"text": "a"}], {}, "$.input"),
        ("a", {"dimensions": 100}, "only to 64, 128"),
        ("a", {"dimensions": 0}, "only to 64, 128"),
        ("a", {"prompt_name": "poem"}, "has no prompt 'poem'; there are: document, query"),
        ("a", {"input_type": "poem"}, "`input_type` must be one of query"),
    ],
)
def test_what_is_wrong_is_named(
    caller: Caller, given: Any, fields: dict[str, Any], said: str
) -> None:
    status, code, message = error(caller, given, **fields)

    assert (status, code) == (400, "bad_request")
    assert said in message


def test_body_that_cannot_be_read_is_refused(caller: Caller) -> None:
    for content in (b"", b"no json", b'{"input": "a"', b"[" * 5000, b'{"input": "\xff"}'):
        status, headers, answer = caller.post("/v1/embeddings", content)
        assert (status, answer["error"]["code"]) == (400, "bad_request"), content
        assert headers["x-should-retry"] == "false"


def test_model_that_makes_no_vectors_is_refused(caller: Caller) -> None:
    assert error(caller, "a", model="demo-chat")[:2] == (422, "model_type_mismatch")
    assert error(caller, "a", model="nobody")[:2] == (404, "model_not_found")


def test_request_that_names_no_model_gets_the_default_one(caller: Caller) -> None:
    _, _, answer = caller.post("/v1/embeddings", {"input": "a"})

    assert answer["model"] == "minilm"


def test_closing_line_names_the_model(caller: Caller) -> None:
    _, headers, _ = caller.post("/v1/embeddings", {"input": "a"})
    caller.post("/v1/embeddings", {"input": "b"})  # whose line is the last one

    line = caller.closing_line(headers["x-request-id"])
    assert (line["model"], line["status"]) == ("minilm", 200)


def test_only_posts_are_the_services(caller: Caller) -> None:
    """What is asked in another way is asked of the server, as on any path that is not ours."""
    assert caller.running.json("GET", "/v1/embeddings")["error"]["message"] == "File Not Found"
