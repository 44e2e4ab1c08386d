"""What reserved routes are asked is read strictly, but for probes and clients of other servers."""

from typing import Any

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.control import SwitchParameters, UnloadParameters
from supervisor.gateway.devices import HistoryParameters
from supervisor.gateway.documents import NewDocumentParameters
from supervisor.gateway.jobs import JobsParameters
from supervisor.gateway.parameters import AnyParameters, NoParameters, read_parameters
from supervisor.gateway.stored_vectors import SearchParameters
from tests.conftest import RunningController


@pytest.mark.parametrize(
    ("query", "body", "wait"),
    [
        ("", b"", True),
        ("wait=false", b"", False),
        ("wait=0", b"", False),
        ("wait=true", b"", True),
        ("wait=1", b"", True),
        ("", b'{"wait": false}', False),
        ("", b'{"wait": true}', True),
    ],
)
def test_a_flag_is_true_or_false(query: str, body: bytes, wait: bool) -> None:
    assert read_parameters(UnloadParameters, query, {}, body).wait is wait


@pytest.mark.parametrize(
    ("kind", "query", "body", "problem"),
    [
        (UnloadParameters, "wait=maybe", b"", "wait: must be true or false, not 'maybe'"),
        (UnloadParameters, "wait=yes", b"", "wait: must be true or false, not 'yes'"),
        (UnloadParameters, "wait=", b"", "wait: must be true or false, not ''"),
        (UnloadParameters, "wait=true&wait=true", b"", "more than once"),
        (UnloadParameters, "wait=true", b'{"wait": true}', "more than once"),
        (UnloadParameters, "", b'{"wait": 1}', "wait"),
        (UnloadParameters, "", b'{"wait": "true"}', "wait"),
        (UnloadParameters, "", b'{"wait": null}', "wait"),
        (SwitchParameters, "", b'{"model_name": 5}', "model_name"),
        (
            SwitchParameters,
            "",
            b'{"model_name": "a"',
            "must be a JSON object: Input data was trunc",
        ),
        (SwitchParameters, "", b"[]", "must be a JSON object: Expected `object`, got `array`"),
        (NewDocumentParameters, "", b"{}", "^give the document's `file`, or its `text`"),
        (HistoryParameters, "since=-1", b"", "since: must be seconds back from now"),
        (SwitchParameters, "", b'{"model_name": true}', "model_name"),
        (
            SwitchParameters,
            "",
            b'{"model": "a"}',
            "model: is not a known field; did you mean 'model_name' or 'model_type'",
        ),
        (JobsParameters, "limit=1000", b"", "limit: must be at most 100, not '1000'"),
        (SearchParameters, "", b'{"query": ""}', "query: must be text of at least 1 character"),
        (SearchParameters, "", b"", "query: is missing"),
        (NewDocumentParameters, "", b'{"file": "a"}', "file: must be a file, sent in a form, not"),
        (NewDocumentParameters, "", b"", "^give the document's `file`, or its `text`"),
        (NoParameters, "limit=5", b"", "limit: is not a known field; there are: none"),
        (NoParameters, "", b'{"limit": 5}', "limit"),
    ],
)
def test_what_is_not_plainly_meant_is_refused(
    kind: Any, query: str, body: bytes, problem: str
) -> None:
    with pytest.raises(RequestRefused, match=problem) as caught:
        read_parameters(kind, query, {}, body)
    assert caught.value.code == "bad_request"


def test_what_answers_whatever_is_given_does_not_look_at_it() -> None:
    read_parameters(AnyParameters, "a=1&a=2&=", {}, b"no JSON")


@pytest.mark.parametrize(
    ("route", "status"),
    [
        ("GET /health?probe=7&probe=8", 200),
        ("GET /management/health?%FF", 200),
        ("GET /ready?x", 200),
        ("GET /v1/models?api-version=2024-10-21", 200),
        ("GET /v1/models/demo-chat?api-version=2024-10-21", 200),
        ("GET /status?full=1", 400),
        ("GET /switches?limit=5", 400),
        ("GET /switches/s1?limit=5", 400),
        ("GET /gpu?device=gpu0", 400),
        ("POST /backend/restart?model=demo-chat", 400),
    ],
)
async def test_a_query_that_a_route_does_not_know(
    faulty: RunningController, route: str, status: int
) -> None:
    method, _, target = route.partition(" ")
    async with faulty.client.request(method, faulty.url + target) as answer:
        assert answer.status == status
