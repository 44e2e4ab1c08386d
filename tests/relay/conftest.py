"""A controller in a process of its own, and the server that it runs, each called on raw sockets."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import write_configuration
from tests.relay.wire import Connect, ask, to_port, to_unix, until

COMMAND = Path(sys.executable).with_name("llama-supervisor")

DOORS: Mapping[str, Mapping[str, Any]] = {
    "fast lane": {"fast_lane": True},
    "aiohttp": {"fast_lane": False},
}
"""The ways into the controller: by name, what stands under `server:` in supervisor.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """The live server itself: how to reach it, and the key that it takes."""

    model: str
    connect: Connect
    api_key: str


@dataclass(slots=True, kw_only=True)
class Running:
    """A controller that serves."""

    port: int
    pid: int
    log_path: Path
    _live: Child | None = None

    @property
    def connect(self) -> Connect:
        """Connects to the controller."""
        return to_port(self.port)

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """Call a route of the controller and return its JSON."""
        content = json.dumps(body).encode() if body is not None else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
        return json.loads(ask(self.connect, method, request).body)

    def make_live(self, model: str) -> Child:
        """Switch to a model unless it is live. Returns its server."""
        if self._live is None or self._live.model != model:
            report = self.json("POST", "/switch-backend", {"model_name": model})
            assert report.get("outcome") == "switched", report
            (backend,) = self.json("GET", "/status")["backends"]
            self._live = _child(model, psutil.Process(backend["pid"]))
        return self._live


def _child(model: str, process: psutil.Process) -> Child:
    words = process.cmdline()
    address = words[words.index("--host") + 1]
    is_socket = address.endswith(".sock")
    return Child(
        model=model,
        connect=to_unix(address) if is_socket else to_port(int(words[words.index("--port") + 1])),
        api_key=process.environ()["LLAMA_API_KEY"],
    )


@contextmanager
def serving(
    folder: Path,
    *,
    engine: str = "llama-server",
    server: Mapping[str, Any],
    engines: Mapping[str, Any] | None = None,
    queue: Mapping[str, Any] | None = None,
    files: Mapping[str, Any] | None = None,
    data: Path | None = None,
) -> Iterator[Running]:
    """Run a controller on the shipped profiles, with no model loaded.

    `engine`: what auto means. `server`, `engines` and `queue` are sections of supervisor.yaml,
    `files` other YAML files by name. `data`: its folder; None: one that ends with it.
    """
    root = Path(__file__).parents[2]
    settings = {
        "server": {"log_format": "json", **server},
        "engines": dict(engines or {}),
        "queue": dict(queue or {}),
        "devices": {"host": {"exclusive": True}},
        "scheduler": {"auto_switch": False},  # the server that is compared with stays
    }
    write_configuration(
        folder, root / "profiles", None, {"supervisor.yaml": settings, **(files or {})}
    )
    log_path = folder / "serve.log"
    with tempfile.TemporaryDirectory(prefix="relay-") as own, log_path.open("wb") as log:
        folders = {
            "--profiles": str(folder),
            "--models": str(root / "models"),
            "--data": str(data or own),
        }
        arguments = [word for pair in folders.items() for word in pair]
        with subprocess.Popen(
            [COMMAND, "serve", "--port", "0", "--engine", engine, *arguments],
            stdout=log,
            stderr=log,
        ) as process:
            try:
                port = _port_of(process, log_path)
                yield Running(port=port, pid=process.pid, log_path=log_path)
            finally:
                process.terminate()


def _port_of(process: subprocess.Popen[bytes], log_path: Path) -> int:
    """Wait until the controller says where it listens."""

    def lines() -> list[str]:
        assert process.poll() is None, log_path.read_text()
        return [line for line in log_path.read_text().splitlines() if "listening" in line]

    until(lambda: bool(lines()) and lines()[0].endswith("}"))
    return int(json.loads(lines()[0])["url"].rpartition(":")[2])


@pytest.fixture(scope="session", params=[*DOORS])
def door(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    """Each way into the controller in turn."""
    return DOORS[request.param]
