"""What a door owes its clients, where the answer is the service's own."""

import json
import socket
import struct
from typing import Any

import pytest

from supervisor.gateway.lane.lane import MAX_BODY_BYTES
from tests.gateway.forms.conftest import Caller
from tests.relay.wire import Connection, until

TEXTS = ["a cat sits on a mat", "memory is free"]


def request(body: Any, *lines: str, version: str = "1.1") -> bytes:
    """Write a request for embeddings, with further lines in its head."""
    content = json.dumps(body).encode()
    head = "".join(f"{line}\r\n" for line in ("Host: localhost", *lines))
    start = f"POST /v1/embeddings HTTP/{version}\r\n{head}Content-Length: {len(content)}\r\n\r\n"
    return start.encode() + content


def tokens(connection: Connection) -> int:
    """Read an answer, and return how many tokens its inputs had."""
    answer = connection.read_answer("POST")
    assert answer.status == 200, answer.body
    used: int = json.loads(answer.body)["usage"]["total_tokens"]
    return used


def test_requests_in_a_row_are_answered_in_their_order(caller: Caller) -> None:
    with caller.running.connect() as peer:
        connection = Connection(peer)
        connection.send(request({"input": "a"}) + request({"input": TEXTS}))

        assert [tokens(connection), tokens(connection)] == [3, 13]


def test_request_behind_one_that_is_answered_waits_for_it(caller: Caller) -> None:
    with caller.running.connect() as peer:
        connection = Connection(peer)
        connection.send(request({"input": TEXTS * 50}), request({"input": "a"}))

        assert [tokens(connection), tokens(connection)] == [650, 3]


def test_client_that_sends_no_more_gets_its_vectors(caller: Caller) -> None:
    with caller.running.connect() as peer:
        connection = Connection(peer)
        connection.send(request({"input": TEXTS}))
        peer.shutdown(socket.SHUT_WR)

        assert tokens(connection) == 13
        assert connection.read_rest() == b""


def test_older_client_gets_its_vectors_and_the_end_of_the_connection(caller: Caller) -> None:
    with caller.running.connect() as peer:
        connection = Connection(peer)
        connection.send(request({"input": TEXTS}, version="1.0"))

        assert tokens(connection) == 13
        assert connection.read_rest() == b""


def test_client_that_closes_the_connection_is_told_so(caller: Caller) -> None:
    with caller.running.connect() as peer:
        connection = Connection(peer)
        connection.send(request({"input": TEXTS}, "Connection: close"))

        assert tokens(connection) == 13
        assert connection.read_rest() == b""


def test_body_of_more_than_a_megabyte_is_read(caller: Caller) -> None:
    text = "word " * (MAX_BODY_BYTES // 20)
    status, headers, answer = caller.post("/embed", {"inputs": [text] * 5})

    assert (status, len(answer)) == (200, 5)
    assert headers["x-truncated"] == "5"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", b'{"input": "a"}'),
        ("/api/embed", b'{"input": "a"}'),
        ("/embed", b'{"inputs": "a"}'),
        ("/embed", b'{"text": "a", "store": false}'),
        ("/tokenize", b'{"content": "a"}'),
        ("/unload", b'{"model_name": "bench-chat"}'),
    ],
)
def test_byte_order_mark_before_a_body_is_skipped(caller: Caller, path: str, body: bytes) -> None:
    status, _, answer = caller.post(path, b"\xef\xbb\xbf" + body)

    assert status == 200, answer


@pytest.mark.parametrize(
    ("path", "fields", "kind"),
    [
        ("/v1/embeddings", {"error"}, dict),
        ("/api/embed", {"error"}, str),
        ("/embed", {"error", "error_type"}, str),
        ("/rerank", {"error", "error_type"}, str),
    ],
)
def test_body_in_an_encoding_that_is_not_read_is_refused_in_its_form(
    caller: Caller, path: str, fields: set[str], kind: type
) -> None:
    status, headers, answer = caller.post(path, {"input": "a"}, {"Content-Encoding": "zstd"})

    assert (status, headers["accept-encoding"]) == (415, "gzip, deflate")
    assert (answer.keys(), type(answer["error"])) == (fields, kind)
    assert "zstd is not supported here, only gzip and deflate" in str(answer["error"])


def test_client_that_leaves_has_its_inputs_dropped(caller: Caller) -> None:
    """What was sent to the server ends there; nothing more is sent, and the line says 499."""

    def queued() -> int:
        queues = caller.running.json("GET", "/status")["embedding"]["minilm"]["queued"]
        return sum(each["inputs"] for each in queues.values())

    caller.post("/v1/embeddings", {"input": "a"})  # from then on, its queue is shown
    peer = caller.running.connect()
    many = [
        f"{number} of many texts, each with words enough to take a while" for number in range(2048)
    ]
    body = {"input": many}
    peer.sendall(request(body, "X-Request-ID: leaves-early", "X-Priority: batch"))
    until(lambda: queued() > 0)

    at_once = struct.pack("ii", 1, 0)  # a reset: else it might wait for its answer still
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
    peer.close()

    assert caller.post("/v1/embeddings", {"input": "a"})[0] == 200  # passes what is left of it
    assert queued() == 0
    caller.post("/v1/embeddings", {"input": "a"})  # whose line is the last one
    line = caller.closing_line("leaves-early")
    assert (line["status"], line["model"]) == (499, "minilm")
