"""No request reaches the server but those that were sent, whatever the bytes look like.

Each shape is sent to a controller whose server writes down what it sees.
"""

import base64
import contextlib
import json
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.patience import PATIENCE_S
from tests.relay.conftest import Running, serving
from tests.relay.shapes import HALF_CLOSE, REFUSED, Shape, shapes
from tests.relay.wire import Connection, Incomplete, ask

SERVER = Path(__file__).with_name("recording_server.py")

"""Seconds that an answer, or the end of a connection, is waited for."""

BODY_TIMEOUT_S = 3.0
"""`server.body_timeout_s`: a chunk whose extension never ends brings nothing of a body."""


@dataclass(slots=True, kw_only=True)
class Recorded:
    """A controller whose server records, and how much of the record has been read."""

    running: Running
    record: Path
    _lines_read: int = field(default=0)

    def new_requests(self) -> list[dict[str, Any]]:
        """Return what the server has seen since the last call."""
        # Whatever was sent to the server before is read by it before this one is answered.
        ask(self.running.connect, "GET", b"GET /fence HTTP/1.1\r\nHost: localhost\r\n\r\n")
        lines = self.record.read_text().splitlines()
        new, self._lines_read = lines[self._lines_read :], len(lines)
        return [each for each in map(json.loads, new) if each.get("target") != "/fence"]


@pytest.fixture(scope="session")
def recorded(
    door: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Recorded]:
    """One controller for all shapes, through each door in turn."""
    folder = tmp_path_factory.mktemp("smuggling")
    record, binary = folder / "seen.jsonl", folder / "llama-server"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {SERVER} {record} "$@"\n')
    binary.chmod(0o700)
    server = {**door, "body_timeout_s": BODY_TIMEOUT_S}
    with serving(folder, server=server, engines={"llama_server_bin": str(binary)}) as running:
        running.make_live("demo-chat")
        yield Recorded(running=running, record=record)


@pytest.mark.parametrize("shape", tuple(shapes()), ids=lambda shape: shape.name)
def test_shape_ends_as_it_must(recorded: Recorded, shape: Shape) -> None:
    recorded.new_requests()

    statuses, is_closed = outcome(recorded.running, shape)
    seen = [(each.get("target"), body_of(each)) for each in recorded.new_requests()]

    answers, relayed = shape.answers, shape.seen
    if shape.may_be_refused and 400 <= statuses[0] < 500:
        answers, relayed = (REFUSED,), ()
    assert seen == list(relayed)
    assert len(statuses) == len(answers), statuses
    for status, (lowest, highest) in zip(statuses, answers, strict=True):
        assert lowest <= status <= highest
    assert is_closed or not shape.closes


def outcome(running: Running, shape: Shape) -> tuple[list[int], bool]:
    """Send a shape. Returns the statuses of the answers, and whether the connection was closed."""
    with running.connect() as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(peer, PATIENCE_S)
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            for part in shape.parts:
                if part is HALF_CLOSE:
                    peer.shutdown(socket.SHUT_WR)
                else:
                    connection.send(part)
        statuses: list[int] = []
        with contextlib.suppress(Incomplete, TimeoutError):
            statuses.extend(connection.read_answer("GET").status for _ in shape.answers)
        return statuses, shape.closes and connection.is_closed_within(PATIENCE_S)


def body_of(seen: Mapping[str, Any]) -> bytes:
    """Return a recorded request's body."""
    return base64.b64decode(seen.get("body", ""))
