"""What clients send never breaks the log: one JSON object a line, and nothing that was secret."""

import contextlib
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.relay.conftest import serving
from tests.relay.wire import until

REQUESTS = 1000
SECRETS = (b"a-secret-key", b"a-private-prompt")
BEGUN = b" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer a-secret-key\r\n"
REQUESTED = (
    b"POST /completion" + BEGUN + b'Content-Length: 26\r\n\r\n{"prompt":"a-private-prompt"}',
    b"POST /completion" + BEGUN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\na-private-prompt\r\n",
    b"GET /props" + BEGUN + b"Bad Header: a-secret-key\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET /%1b%0a{}" + BEGUN + b"\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(99)),
)


def test_malformed_requests_leave_lines_of_json_without_what_they_held(
    door: Mapping[str, Any], tmp_path: Path
) -> None:
    with serving(tmp_path, server=door) as running:
        for request in malformed():
            with running.connect() as peer, contextlib.suppress(OSError):
                peer.settimeout(0.02)
                peer.sendall(request)
                peer.recv(9999)
        running.json("GET", "/switches/the-last-line")
        until(lambda: b"/switches/the-last-line" in running.log_path.read_bytes())
        logged = running.log_path.read_bytes()

    lines = [json.loads(line) for line in logged.splitlines()]
    refused = [each for each in lines if each.get("path") == "-"]
    assert len(refused) > REQUESTS / 4
    assert {(each["event"], each["status"]) for each in refused} == {("request.done", 400)}
    assert "library.message" not in {each["event"] for each in lines}
    assert not [secret for secret in SECRETS if secret in logged]


def malformed() -> Iterator[bytes]:
    """Yield requests with up to three bytes of each changed, put in or taken out."""
    chance = random.Random(1)  # the same each time
    for number in range(REQUESTS):
        request = bytearray(REQUESTED[number % len(REQUESTED)])
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(request))
            request[at : at + chance.randrange(2)] = chance.randbytes(chance.randrange(2))
        yield bytes(request)
