"""What a body names is read as the backends read it, whatever its headers say."""

import gzip
import json
import zlib
from typing import Any

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.body_fields import BrokenFields, inflated, read_fields
from tests.conftest import RunningController
from tests.gateway.conftest import raw_request

BODY = json.dumps({"prompt": "a" * 100, "model": "minilm"}).encode()
FORM = (
    b'--xx\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\n\x00\xff\r\n'
    b'--xx\r\nContent-Disposition: form-data; name="model"\r\n\r\nminilm\r\n--xx--\r\n'
)
MIB = 1024 * 1024


def content_type(value: str) -> bytes:
    return value.encode()


@pytest.mark.parametrize(
    ("given_type", "body"),
    [
        pytest.param(b"", BODY, id="no content type"),
        pytest.param(content_type("text/plain"), BODY, id="text"),
        pytest.param(content_type("Application/JSON"), BODY, id="another spelling"),
        pytest.param(content_type("application/x-www-form-urlencoded"), BODY, id="curl -d"),
        pytest.param(b"", b"\xef\xbb\xbf" + BODY, id="byte order mark"),
        pytest.param(b"", b" \r\n" + BODY + b"\0rest", id="a NUL ends it"),
        pytest.param(b"", b" \n" * 100 + BODY, id="behind many blanks"),
        pytest.param(content_type('multipart/form-data; boundary="xx"'), FORM, id="multipart"),
        pytest.param(
            content_type("Multipart/Form-Data; Boundary=xx"), FORM, id="the same, unquoted"
        ),
        pytest.param(b"", b'{"model": "a", "model": "minilm"}', id="the last one counts"),
    ],
)
def test_model_is_read_from_every_body_that_a_backend_reads(given_type: bytes, body: bytes) -> None:
    assert read_fields(given_type, body).model == "minilm"


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"\x00\xff", b'{"model": ""}', b'{"model": null}', b"{}"]
)
def test_other_bodies_name_no_model(body: bytes) -> None:
    assert read_fields(b"", body).model is None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model": ["x"]}', id="a list"),
        pytest.param(b'{"model": 5}', id="a number"),
        pytest.param(b'{"model": "\xff"}', id="not UTF-8"),
        pytest.param(
            b'{"a": ' + b"[" * 1000 + b"]" * 1000 + b', "model": "x"}', id="deeply nested"
        ),
    ],
)
def test_model_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        read_fields(b"", body)

    assert refused.value.code == "bad_request"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"model": "minilm", "x": "\\ud83d"}', id="half of a surrogate pair"),
        pytest.param(b'{"model": "minilm", "x": NaN}', id="not a number"),
        pytest.param(b'{"model": "minilm", "x": "\t"}', id="a tab in a text"),
    ],
)
def test_model_is_read_from_what_only_some_backends_take_for_json(body: bytes) -> None:
    assert read_fields(b"", body).model == "minilm"


@pytest.mark.parametrize("body", [b'{"model": ', b'{"model": "minilm"', b"{" + b" " * 2 * MIB])
def test_what_is_cut_short_is_known_to_be_broken(body: bytes) -> None:
    fields = read_fields(b"", body)

    assert isinstance(fields, BrokenFields)
    assert fields.model is None


def test_form_of_endless_parts_is_refused() -> None:
    with pytest.raises(RequestRefused, match="more than 1000 parts"):
        read_fields(b"multipart/form-data; boundary=a", b"--a" * 10_000)


def unbounded(_: int) -> None:
    """Let a body take what it takes."""


async def test_what_a_body_takes_inflated_is_told_as_it_grows() -> None:
    told: list[int] = []
    body = gzip.compress(bytes(MIB))

    await inflated(b"gzip", body, MIB, told.append)

    assert told == sorted(told)
    assert told[-1] == len(body) + MIB


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:10]) + gzip.compress(BODY[10:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate, gzip", gzip.compress(zlib.compress(BODY))),
        ("identity", BODY),
    ],
    ids=("gzip", "upper case", "older name", "two members", "deflate", "both", "identity"),
)
async def test_body_is_inflated_for_a_look_at_it(encoding: str, body: bytes) -> None:
    assert await inflated(encoding.encode(), body, MIB, unbounded) == BODY


@pytest.mark.parametrize(("encoding", "body"), [("br", BODY), ("gzip", b"not gzip")])
async def test_body_that_cannot_be_inflated_is_left_to_the_backend(
    encoding: str, body: bytes
) -> None:
    assert await inflated(encoding.encode(), body, MIB, unbounded) == body


async def test_body_that_inflates_beyond_the_limit_is_refused() -> None:
    with pytest.raises(RequestRefused) as refused:
        await inflated(b"gzip", gzip.compress(bytes(MIB + 1)), MIB, unbounded)

    assert refused.value.code == "body_too_large"


async def test_many_tiny_gzip_members_are_refused() -> None:
    with pytest.raises(RequestRefused, match="gzip members"):
        await inflated(b"gzip", gzip.compress(b"") * 2000, MIB, unbounded)


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/echo?model=minilm", b"", "model_not_live"),
        ("/echo?model=demo-chat", b'{"model": "minilm"}', "bad_request"),
        ("/echo?model=", b"", None),
        ("/echo", b'{"model": ["minilm"]}', "bad_request"),
        ("/echo", BODY, "model_not_live"),
    ],
)
async def test_named_model_is_answered_by_no_other(
    faulty: RunningController, path: str, body: bytes, code: str | None
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    async with raw_request(faulty, head.encode() + body) as (reader, _):
        answer_head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(answer_head.lower().partition("content-length: ")[2].partition("\r\n")[0])
        answer: dict[str, Any] = json.loads(await reader.readexactly(length))

    assert answer.get("error", {}).get("code") == code
