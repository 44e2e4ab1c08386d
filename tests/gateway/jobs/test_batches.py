"""Batches as OpenAI's API has them: files in, files out, each line answered once."""

import time
from typing import Any

import pytest

from tests.gateway.forms.conftest import cosine
from tests.gateway.jobs.conftest import Caller, line, text
from tests.relay.wire import until

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


def chat(custom_id: str, **fields: Any) -> Any:
    body = {"model": "bench-chat", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    return line(custom_id, CHAT, body | fields)


def test_texts_are_embedded_as_their_route_does(caller: Caller) -> None:
    lines = [text(f"t{n}", f"text number {n}") for n in range(300)]
    lines += [text("many", ["one", "two"], encoding_format="base64"), text("ids", [101, 2023, 102])]
    begun = caller.begin(lines, EMBEDDINGS, metadata={"night": "first"})
    assert begun["object"] == "batch"
    assert begun["status"] == "validating"
    assert begun["completion_window"] == "24h"
    assert begun["expires_at"] - begun["created_at"] == 86_400

    ended = caller.ended(begun["id"])

    assert ended["status"] == "completed", ended
    assert ended["request_counts"] == {"total": 302, "completed": 302, "failed": 0}
    assert ended["model"] == "minilm"
    assert ended["metadata"] == {"night": "first"}
    assert ended["error_file_id"] is None
    assert ended["created_at"] <= ended["in_progress_at"] <= ended["completed_at"]
    output = caller.lines_of(ended["output_file_id"])
    assert list(output) == [each["custom_id"] for each in lines]
    for custom_id, content in (("t7", "text number 7"), ("many", ["one", "two"])):
        answer = output[custom_id]["response"]
        assert answer["status_code"] == 200
        asked = {"model": "minilm", "input": content}
        same = caller.json("POST", EMBEDDINGS, asked)
        assert answer["body"]["usage"] == same["usage"]
        assert len(answer["body"]["data"]) == len(same["data"])
    alone = caller.json("POST", EMBEDDINGS, {"model": "minilm", "input": "text number 7"})
    together = output["t7"]["response"]["body"]
    vectors = [each["data"][0]["embedding"] for each in (alone, together)]
    assert cosine(*vectors) > 0.9999
    assert isinstance(output["many"]["response"]["body"]["data"][1]["embedding"], str)
    sums = sum(each["response"]["body"]["usage"]["total_tokens"] for each in output.values())
    assert ended["usage"] == {"input_tokens": sums, "output_tokens": 0, "total_tokens": sums}


def test_a_batch_is_work_that_lets_others_pass(caller: Caller) -> None:
    begun = caller.begin([text(f"t{n}", f"text {n} " * 40) for n in range(2000)], EMBEDDINGS)

    def queued() -> int:
        models = caller.json("GET", "/status")["embedding"]
        return int(models["minilm"]["queued"]["batch"]["inputs"]) if "minilm" in models else 0

    until(lambda: queued() > 0, within_s=60)
    caller.json("POST", EMBEDDINGS, {"model": "minilm", "input": "somebody looks on"})
    assert caller.batch(begun["id"])["status"] == "in_progress"
    caller.json("POST", f"/v1/batches/{begun['id']}/cancel")
    assert caller.ended(begun["id"])["status"] == "cancelled"


def test_chats_are_answered_by_their_model(caller: Caller) -> None:
    lines = [chat(f"c{n}") for n in range(5)]
    ended = caller.ended(caller.begin(lines, CHAT)["id"])
    assert ended["status"] == "completed", ended
    output = caller.lines_of(ended["output_file_id"])
    assert len(output) == 5
    for answer in output.values():
        assert answer["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
        assert answer["response"]["request_id"]
        assert answer["error"] is None
    assert ended["usage"]["output_tokens"] == 20


def test_what_cannot_be_answered_is_in_the_error_file(caller: Caller) -> None:
    lines = [
        text("good"),
        text("long", "word " * 3000),
        text("nobody", model="nobody"),
        text("empty", []),
        text("one of two", ["fine", "word " * 3000]),
        text("also good"),
    ]
    ended = caller.ended(caller.begin(lines, EMBEDDINGS)["id"])
    assert ended["status"] == "completed", ended
    assert ended["request_counts"] == {"total": 6, "completed": 2, "failed": 4}
    assert list(caller.lines_of(ended["output_file_id"])) == ["good", "also good"]
    errors = caller.lines_of(ended["error_file_id"])
    told = {
        name: (each["response"]["status_code"], each["response"]["body"]["error"]["code"])
        for name, each in errors.items()
    }
    assert told == {
        "long": (400, "input_too_long"),
        "nobody": (404, "model_not_found"),
        "empty": (400, "bad_request"),
        "one of two": (400, "input_too_long"),
    }
    assert errors["one of two"]["response"]["body"]["error"]["index"] == 1


def test_what_failed_is_answered_after_a_retry(caller: Caller) -> None:
    ended = caller.ended(caller.begin([text("a"), text("b", model="later")], EMBEDDINGS)["id"])
    assert ended["request_counts"]["failed"] == 1
    again = caller.json("POST", f"/jobs/{ended['id']}/retry")
    assert (again["state"], again["round"]) == ("in_progress", 2)
    ended = caller.ended(ended["id"])
    assert ended["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert list(caller.lines_of(ended["output_file_id"])) == ["a"]
    assert list(caller.lines_of(ended["error_file_id"])) == ["b"]


@pytest.mark.parametrize(
    ("lines", "code", "number"),
    [
        ([], "empty_file", None),
        ([b"\n \n"], "empty_file", None),
        ([text("a"), b"{no json"], "invalid_json_line", 2),
        ([text("a"), text("b"), text("a")], "duplicate_custom_id", 3),
        ([b"", text("a"), chat("b")], "mismatched_url", 3),
        ([line("a", EMBEDDINGS, {"input": {}})], "invalid_body", 1),
        ([text("a") | {"method": "GET"}], "invalid_method", 1),
        ([text("a", ["x"] * 50_001)], "too_many_inputs", 1),
    ],
)
def test_a_file_that_is_wrong_fails_as_a_whole(
    caller: Caller, lines: Any, code: str, number: int | None
) -> None:
    ended = caller.ended(caller.begin(lines, EMBEDDINGS)["id"])
    assert ended["status"] == "failed"
    assert ended["failed_at"] >= ended["created_at"]
    [problem] = ended["errors"]["data"]
    assert (problem["code"], problem["line"]) == (code, number)
    assert ended["output_file_id"] is None
    status, refused = caller.refused("POST", f"/jobs/{ended['id']}/retry")
    assert (status, refused) == (409, "job_not_retryable")


def test_a_cancelled_batch_keeps_what_was_done(caller: Caller) -> None:
    begun = caller.begin([text("a")], EMBEDDINGS, not_before=time.time() + 1000)
    cancelled = caller.json("POST", f"/v1/batches/{begun['id']}/cancel")
    assert cancelled["status"] == "cancelling"
    ended = caller.ended(begun["id"])
    assert ended["status"] == "cancelled"
    assert ended["cancelling_at"] <= ended["cancelled_at"]
    assert ended["output_file_id"] is None
    errors = caller.lines_of(ended["error_file_id"])
    assert {name: each["error"]["code"] for name, each in errors.items()} in (
        {"a": "batch_cancelled"},
        {},  # it was cancelled before its lines were read
    )


def test_a_batch_ends_when_its_window_is_over(caller: Caller) -> None:
    begun = caller.begin(
        [text("a"), text("b")], EMBEDDINGS, not_before=time.time() + 1, completion_window="1ms"
    )
    ended = caller.ended(begun["id"])
    assert ended["status"] == "expired"
    assert ended["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    errors = caller.lines_of(ended["error_file_id"])
    assert {name: each["error"]["code"] for name, each in errors.items()} == {
        "a": "batch_expired",
        "b": "batch_expired",
    }
    assert all(each["response"] is None for each in errors.values())
    again = caller.json("POST", f"/jobs/{begun['id']}/retry")
    assert again["lines"]["left"] == 2


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"endpoint": "/v1/images"}, 400, "bad_request"),
        ({"input_file_id": "file-nobody"}, 404, "file_not_found"),
        ({"completion_window": "soon"}, 400, "bad_request"),
        ({"completion_window": "0s"}, 400, "bad_request"),
        ({"completion_window": f"{'9' * 400}s"}, 400, "bad_request"),
        ({"output_expires_after": {"seconds": "inf"}}, 400, "bad_request"),
        ({"metadata": {"a" * 65: "b"}}, 400, "bad_request"),
        ({"metadata": {str(n): "b" for n in range(17)}}, 400, "bad_request"),
        ({"priority": "urgent"}, 400, "bad_request"),
        ({"unknown": 1}, 400, "bad_request"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_at_once(
    caller: Caller, fields: Any, status: int, code: str
) -> None:
    file_id = caller.upload(b"{}")["id"]
    asked = {"input_file_id": file_id, "endpoint": EMBEDDINGS, "completion_window": "24h"}
    assert caller.refused("POST", "/v1/batches", asked | fields) == (status, code)


def test_batches_are_listed_in_pages(caller: Caller) -> None:
    made = [caller.begin([text("a")], EMBEDDINGS)["id"] for _ in range(3)]
    first = caller.json("GET", "/v1/batches?limit=2")
    assert [each["id"] for each in first["data"]] == [made[2], made[1]]
    assert first["has_more"]
    rest = caller.json("GET", f"/v1/batches?limit=2&after={first['last_id']}")
    assert rest["data"][0]["id"] == made[0]
    listed = caller.json("GET", "/jobs?limit=1")["data"]
    assert [(each["id"], each["kind"]) for each in listed] == [(made[2], "batch")]
    assert caller.refused("GET", "/v1/batches?after=nobody") == (404, "job_not_found")
    assert caller.refused("GET", "/v1/batches/nobody") == (404, "job_not_found")
    assert caller.refused("POST", "/jobs/nobody/cancel") == (404, "job_not_found")


def test_an_ended_batch_is_counted_and_cannot_be_cancelled(caller: Caller) -> None:
    def completed() -> int:
        counts = caller.json("GET", "/status")["jobs"]["counts"]
        return int(counts.get("batch", {}).get("completed", 0))

    before = completed()
    ended = caller.ended(caller.begin([text("a")], EMBEDDINGS)["id"])
    assert completed() > before
    refused = caller.refused("POST", f"/v1/batches/{ended['id']}/cancel")
    assert refused == (409, "job_not_cancellable")
    assert caller.refused("POST", f"/jobs/{ended['id']}/retry") == (409, "job_not_retryable")


def test_vectors_of_a_batch_are_kept_where_it_says(caller: Caller) -> None:
    lines = [text("cats", "a cat sits on a mat"), text("memory", ["memory is free", "a GPU"])]
    for _ in range(2):  # the same again changes nothing
        begun = caller.begin(lines, EMBEDDINGS, store={"collection": "night"})
        assert begun["store"] == {"collection": "night"}
        ended = caller.ended(begun["id"])
        assert ended["request_counts"]["completed"] == 2, ended
    [collection] = caller.json("GET", "/collections")["collections"]
    assert (collection["name"], collection["chunks"], collection["documents"]) == ("night", 3, 2)
    asked = {"query": "cats on mats", "collection": "night", "limit": 1}
    [hit] = caller.json("POST", "/search", asked)["hits"]
    assert hit["document"] == "cats"


@pytest.mark.parametrize(
    ("endpoint", "store"), [(CHAT, {"collection": "a"}), (EMBEDDINGS, {"collection": "/"})]
)
def test_vectors_that_could_not_be_kept_are_refused_at_once(
    caller: Caller, endpoint: str, store: Any
) -> None:
    file_id = caller.upload(b"{}")["id"]
    asked = {"input_file_id": file_id, "endpoint": endpoint, "store": store}
    assert caller.refused("POST", "/v1/batches", asked) == (400, "bad_request")
