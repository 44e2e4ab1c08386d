"""Through the relay, each request gets the answer that the server itself gives, byte by byte.

Left out are the fields of one hop, those that we set (docs/reference/http.md), and what differs
between two answers of the server itself: ids, times, counters.
"""

import contextlib
import fnmatch
import json
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.form_routes import form_of, forms_at
from tests.relay.cases import CHAT_MODEL, Case, cases
from tests.relay.conftest import Running, serving
from tests.relay.wire import Answer, Connect, Connection, Incomplete, until

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "trailer", "upgrade"}
OURS = {"date", "x-request-id"}
CORS = "access-control-"  # answered by the controller alone

VOLATILE = re.compile(
    rb'("(?:id|item_id|response_id|created|created_at|completed_at|id_slot|id_task|'
    rb'n_erased|cache_read_input_tokens|input_tokens|[a-z_]*_ms|[a-z_]*_per_second|t_[a-z_]*)": ?)'
    rb'("[^"]*"|[-+.0-9e]+)'
)
GZIP = b"\x1f\x8b"
COUNTERS = re.compile(rb"(?m)^(llamacpp:\S+) .*$")

RESERVED = {"/health", "/v1/models", "/models"}
"""Targets that are the controller's own, unless they stand behind /upstream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Cases, by a pattern over their names, whose answers differ; in which fields, and why."""

    cases: str
    ways: frozenset[str] = frozenset({"plain", "upstream"})
    fields: frozenset[str]
    reason: str


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        cases="BREW *",
        fields=frozenset({"headers", "body"}),
        reason="a method that HTTP does not register is refused with 400 at the door",
    ),
    Difference(
        cases="load a model",
        ways=frozenset({"plain"}),
        fields=frozenset({"headers", "body"}),
        reason="a body that names an unknown model gets our 404, which names the known ones",
    ),
    *(
        Difference(
            cases=cases,
            ways=frozenset({"plain"}),
            fields=frozenset({"status", "reason", "headers", "body"}),
            reason="what no model can do is refused with 422, which says what they lack",
        )
        for cases in ("rerank*", "transcribe")
    ),
    *(
        Difference(
            cases=cases,
            ways=frozenset({"plain"}),
            fields=frozenset({"status", "reason", "headers", "body"}),
            reason="what is in no form that its path knows is refused with 422",
        )
        for cases in ("encoding: half a gzip", "chunks: nothing")
    ),
    Difference(
        cases="HTTP/1.0*, a stream",
        fields=frozenset({"framing"}),
        reason="the server sends chunks to a client of HTTP/1.0, which knows none; we close",
    ),
)


@pytest.fixture(scope="session", params=["llama-server", "embedded"])
def running(
    request: pytest.FixtureRequest,
    door: Mapping[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    """One controller for all cases, on each engine and through each door in turn."""
    with serving(tmp_path_factory.mktemp("matrix"), engine=request.param, server=door) as served:
        yield served


@pytest.mark.parametrize("case", tuple(cases()), ids=lambda case: f"{case.model}: {case.name}")
def test_answer_is_that_of_the_server_itself(running: Running, case: Case) -> None:
    child = running.make_live(case.model)
    direct = answer_to(child.connect, case, "", f"Authorization: Bearer {child.api_key}".encode())
    ways = {"upstream": f"/upstream/{case.model}"}
    if case.target not in RESERVED and not is_in_a_form_of_ours(case):
        ways["plain"] = ""

    for way, prefix in ways.items():
        relayed = answer_to(running.connect, case, prefix)
        different = dict(differences(direct, relayed))
        reasons = {
            field: known.reason
            for known in DIFFERENCES
            if way in known.ways and fnmatch.fnmatchcase(case.name, known.cases)
            for field in known.fields
        }
        assert different.keys() == reasons.keys(), "\n".join(
            [f"on the {way} way", *different.values(), *reasons.values()]
        )


@pytest.mark.parametrize("seed", range(4))
def test_one_connection_carries_requests_of_every_kind_in_turn(running: Running, seed: int) -> None:
    """What was sent before, and how it was answered, changes nothing for the next one."""
    child = running.make_live(CHAT_MODEL)
    key = f"Authorization: Bearer {child.api_key}".encode()
    plain = [case for case in cases() if case.model == CHAT_MODEL and keeps_open(case)]
    with running.connect() as peer:
        connection = Connection(peer)
        for case in random.Random(seed).sample(plain, 40):
            prefix = f"/upstream/{CHAT_MODEL}"
            connection.send(case.request(prefix))
            relayed = connection.read_answer(case.method)
            direct = answer_to(child.connect, case, "", key)
            assert not list(differences(direct, relayed)), case.name


def is_in_a_form_of_ours(case: Case) -> bool:
    """Whether it is asked of the embedding service, or not clearly of the server."""
    forms = forms_at(case.method, case.target)
    if not forms:
        return False
    body = case.body
    with contextlib.suppress(zlib.error):
        body = zlib.decompress(body, zlib.MAX_WBITS | 32)  # of either form
    try:
        return form_of(forms, body).handler is not None
    except RequestRefused:
        return not case.body.startswith(GZIP)


def keeps_open(case: Case) -> bool:
    """Whether nothing in a case asks for, or may cause, the end of its connection."""
    lines = b"\n".join(case.headers).lower()
    is_known = any(fnmatch.fnmatchcase(case.name, known.cases) for known in DIFFERENCES)
    return not is_known and case.version == b"HTTP/1.1" and b"connection:" not in lines


def test_every_difference_names_a_case() -> None:
    names = [case.name for case in cases()]

    assert all(fnmatch.filter(names, known.cases) for known in DIFFERENCES)


@pytest.mark.parametrize("way", ["/upstream/demo-chat", ""], ids=["upstream", "plain"])
@pytest.mark.parametrize("moment", ["in the head", "in the body", "at once", "in the stream"])
def test_client_that_leaves_leaves_nothing_behind(running: Running, moment: str, way: str) -> None:
    child = running.make_live(CHAT_MODEL)
    body = json.dumps({"prompt": "a", "n_predict": 4000, "ignore_eos": True, "stream": True})
    case = Case(
        name=moment,
        model=CHAT_MODEL,
        method="POST",
        target="/completion",
        headers=(b"Content-Type: application/json",),
        body=body.encode(),
    )
    request = case.request(way)

    with running.connect() as peer:
        connection = Connection(peer)
        connection.send(request[: {"in the head": 30, "in the body": -8}.get(moment)])
        if moment == "in the stream":
            connection.read_until(b"data: ")

    slots = Case(name="slots", model=CHAT_MODEL, target="/slots")
    key = f"Authorization: Bearer {child.api_key}".encode()

    def is_idle() -> bool:
        answer = answer_to(child.connect, slots, "", key)
        return isinstance(answer, Answer) and b'"is_processing":true' not in answer.body

    # A connection that is opened later: by its answer, the controller has met the one that left.
    assert isinstance(answer_to(running.connect, slots, way), Answer)
    until(is_idle)
    until(lambda: bool(running.json("GET", "/status")["requests"]["in_flight"] == 0))


def answer_to(connect: Connect, case: Case, prefix: str, *headers: bytes) -> Answer | str:
    """Return the answer to a case, or how the connection ended instead."""
    with connect() as peer:
        connection = Connection(peer)
        try:
            connection.send(case.request(prefix, *headers))
            return connection.read_answer(case.method)
        except Incomplete as ended:
            return f"closed after {ended.args[0]!r}"
        except (ConnectionError, TimeoutError) as ended:
            return type(ended).__name__


def differences(direct: Answer | str, relayed: Answer | str) -> Iterator[tuple[str, str]]:
    """Yield each field of the answer that differs, with both of its values in one line."""
    if isinstance(direct, str) or isinstance(relayed, str):
        if direct != relayed:
            yield "end", f"end: {direct}\n  != {relayed}"
        return
    compared: tuple[tuple[str, object, object], ...] = (
        ("status", direct.status, relayed.status),
        ("reason", direct.reason, relayed.reason),
        ("framing", direct.framing, relayed.framing),
        ("headers", lasting_headers(direct), lasting_headers(relayed)),
    )
    for field, one, other in compared:
        if one != other:
            yield field, f"{field}: {one}\n  != {other}"
    body, relayed_body = masked(direct.body), masked(relayed.body)
    if body != relayed_body:
        pairs = enumerate(zip(body, relayed_body, strict=False))
        at = next((number for number, (one, other) in pairs if one != other), 0)
        part = slice(max(0, at - 60), at + 60)
        yield "body", f"body at {at}: {body[part]!r}\n  != {relayed_body[part]!r}"


def lasting_headers(answer: Answer) -> list[tuple[str, str]]:
    """Return the fields to compare; the length of a body with volatile parts is not among them."""
    left_out = HOP_BY_HOP | OURS
    if masked(answer.body) != answer.body:
        left_out |= {"content-length"}
    return [
        (name, value)
        for name, value in answer.headers
        if name.lower() not in left_out and not name.lower().startswith(CORS)
    ]


def masked(body: bytes) -> bytes:
    """Return the body with its volatile parts replaced."""
    return COUNTERS.sub(rb"\1 *", VOLATILE.sub(rb"\1*", body))
