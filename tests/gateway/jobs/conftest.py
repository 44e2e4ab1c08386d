"""One controller whose requests may switch, and what callers of jobs do with it."""

import http.client
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from tests.relay.conftest import serving
from tests.relay.wire import until

ENDED = {"completed", "failed", "expired", "cancelled"}

SETTINGS: Mapping[str, Any] = {
    "server": {"log_format": "json"},
    "devices": {"host": {"exclusive": True}},
    "jobs": {"files_max_bytes": 5_000_000},
}

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls a controller that runs."""

    port: int

    def ask(
        self, method: str, path: str, body: bytes = b"", content_type: str = "application/json"
    ) -> tuple[int, bytes]:
        """Call a route; returns status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": content_type} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def json(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        """Call a route that answers with that status; returns its JSON."""
        content = b"" if body is None else json.dumps(body).encode()
        answered, received = self.ask(method, path, content)
        assert answered == status, received
        return json.loads(received)

    def refused(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Call a route that refuses; returns status and code."""
        content = b"" if body is None else json.dumps(body).encode()
        status, received = self.ask(method, path, content)
        return status, json.loads(received)["error"]["code"]

    def upload(self, content: bytes, *, status: int = 200, **fields: str) -> Any:
        """Upload a file of lines."""
        answered, received = self.send(
            "/v1/files", "in.jsonl", content, {"purpose": "batch", **fields}
        )
        assert answered == status, received
        return received

    def send(
        self, path: str, file_name: str, content: bytes, fields: Mapping[str, str]
    ) -> tuple[int, Any]:
        """Send a file in a form; returns status and JSON."""
        mark = secrets.token_hex(8)
        parts = [
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        ]
        head = (
            f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{file_name}"'
            "\r\n\r\n"
        )
        whole = b"".join([*parts, head.encode(), content, f"\r\n--{mark}--\r\n".encode()])
        status, received = self.ask("POST", path, whole, f"multipart/form-data; boundary={mark}")
        return status, json.loads(received)

    def begin(self, lines: Sequence[Line | bytes], endpoint: str, **fields: Any) -> Any:
        """Upload lines, and have them answered as a batch; returns it as it begins."""
        content = b"\n".join(
            each if isinstance(each, bytes) else json.dumps(each).encode() for each in lines
        )
        file_id = self.upload(content)["id"]
        asked = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h"}
        return self.json("POST", "/v1/batches", asked | fields)

    def batch(self, batch_id: str) -> Any:
        """Return a batch."""
        return self.json("GET", f"/v1/batches/{batch_id}")

    def ended(self, batch_id: str) -> Any:
        """Wait for the end of a batch; returns it."""
        until(lambda: self.batch(batch_id)["status"] in ENDED, within_s=60)
        return self.batch(batch_id)

    def lines_of(self, file_id: str | None) -> dict[str, Any]:
        """Return the lines of an output or error file by their `custom_id`, each there once."""
        if file_id is None:
            return {}
        status, content = self.ask("GET", f"/v1/files/{file_id}/content")
        assert status == 200
        lines = [json.loads(line) for line in content.splitlines()]
        by_id = {line["custom_id"]: line for line in lines}
        assert len(by_id) == len(lines)
        return by_id


def line(custom_id: str, url: str, body: Mapping[str, Any]) -> Line:
    """Return a line of an input file."""
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def text(custom_id: str, content: Any = "a cat sits on a mat", **fields: Any) -> Line:
    """Return a line that asks for an embedding."""
    return line(custom_id, "/v1/embeddings", {"model": "minilm", "input": content, **fields})


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """A caller of a controller that switches by request."""
    folder = tmp_path_factory.mktemp("jobs")
    with serving(folder, server={}, files={"supervisor.yaml": SETTINGS}) as running:
        yield Caller(running.port)
