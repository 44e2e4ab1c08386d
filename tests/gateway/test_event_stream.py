"""How a stream of events that breaks off ends, for clients of each API."""

import json

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.event_stream import last_event
from supervisor.observability.request_log import RequestRecord

DIED = RequestRefused("backend_unreachable", "the server died")


def event_of(path: str) -> bytes:
    record = RequestRecord(method="POST", path=path, request_id="1", client="")
    record.headers = ((b"Content-Type", b"text/event-stream"),)
    return last_event(record, DIED)


def test_chats_end_with_an_event_of_the_same_kind_as_before() -> None:
    event = event_of("/v1/chat/completions")
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "the server died"


@pytest.mark.parametrize("path", ["/v1/messages", "/upstream/demo-chat/v1/messages"])
def test_anthropics_clients_are_told_by_the_name_of_the_event(path: str) -> None:
    """They pass over events without one."""
    name, data, *_ = event_of(path).split(b"\n")
    told = json.loads(data.removeprefix(b"data: "))
    assert name == b"event: error"
    assert told["type"] == "error"
    assert (told["error"]["type"], told["error"]["message"]) == ("server_error", "the server died")
