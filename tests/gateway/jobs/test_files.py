"""Files of batches: uploaded, listed, read and deleted as OpenAI's API has it."""

import hashlib
import json
from typing import Any

import pytest

from tests.gateway.jobs.conftest import Caller


def test_a_file_comes_back_as_it_was(caller: Caller) -> None:
    content = bytes(range(256)) * 4000
    made = caller.upload(content)
    assert made["object"] == "file"
    assert made["bytes"] == len(content)
    assert made["filename"] == "in.jsonl"
    assert made["purpose"] == "batch"
    assert made["status"] == "processed"
    assert made["sha256"] == hashlib.sha256(content).hexdigest()
    assert made["expires_at"] - made["created_at"] == 30 * 86_400
    assert caller.json("GET", f"/v1/files/{made['id']}") == made
    assert caller.ask("GET", f"/v1/files/{made['id']}/content") == (200, content)
    assert caller.ask("HEAD", f"/v1/files/{made['id']}/content") == (200, b"")


def test_a_file_may_say_when_it_expires(caller: Caller) -> None:
    expiry: dict[str, Any] = {
        "expires_after[anchor]": "created_at",
        "expires_after[seconds]": "3600",
    }
    made = caller.upload(b"a", **expiry)
    assert made["expires_at"] - made["created_at"] == 3600


def test_files_are_listed_in_pages(caller: Caller) -> None:
    made = [caller.upload(b"a")["id"] for _ in range(3)]
    first = caller.json("GET", "/v1/files?limit=2&purpose=batch")
    assert len(first["data"]) == 2
    assert first["has_more"]
    rest = caller.json("GET", f"/v1/files?after={first['last_id']}")
    ids = [each["id"] for each in (*first["data"], *rest["data"])]
    assert set(made) <= set(ids)
    assert len(ids) == len(set(ids))
    turned = caller.json("GET", "/v1/files?order=asc")
    assert [each["id"] for each in turned["data"]] == ids[::-1]
    assert caller.json("GET", "/v1/files?purpose=none")["data"] == []


def test_a_deleted_file_is_gone(caller: Caller) -> None:
    file_id = caller.upload(b"a")["id"]
    deleted = caller.json("DELETE", f"/v1/files/{file_id}")
    assert deleted == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content")):
        refused = caller.refused(method, f"/v1/files/{file_id}{path}")
        assert refused == (404, "file_not_found")


@pytest.mark.parametrize(
    ("size", "fields", "status", "code"),
    [
        (5_000_001, {}, 413, "body_too_large"),
        (1, {"purpose": "fine-tune"}, 400, "bad_request"),
        (1, {"expires_after[seconds]": "0"}, 400, "bad_request"),
        (1, {"expires_after[seconds]": "inf"}, 400, "bad_request"),
        (1, {"expires_after[seconds]": "1e400"}, 400, "bad_request"),
    ],
)
def test_a_file_that_cannot_be_taken_is_refused(
    caller: Caller, size: int, fields: dict[str, Any], status: int, code: str
) -> None:
    refused = caller.upload(b"x" * size, status=status, **fields)
    assert refused["error"]["code"] == code


def test_a_name_never_leads_out_of_the_folder(caller: Caller) -> None:
    for name in ("..%2F..%2Fjobs.sqlite", "%2Fetc%2Fpasswd", "..%2Fllama-supervisor"):
        assert caller.refused("GET", f"/v1/files/{name}/content") == (404, "file_not_found")


@pytest.mark.parametrize("path", ["/v1/files", "/v1/files?purpose=batch"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(b'{"a": 1}{"b": 2}', "application/x-www-form-urlencoded", id="curl -d"),
        pytest.param(b"{}", "application/json", id="JSON"),
        pytest.param(b"", "", id="nothing"),
    ],
)
def test_what_is_no_file_is_told_how_to_send_one(
    caller: Caller, path: str, body: bytes, content_type: str
) -> None:
    status, received = caller.ask("POST", path, body, content_type)
    assert status == 400
    assert "curl -F purpose=batch -F file=@FILE" in json.loads(received)["error"]["message"]
