"""Models made by the script under test, servers that run them, and a bench's shortest setting."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from lab.harness.setting import Setting

from tests.patience import PATIENCE_S

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_demo_models.py"


@pytest.fixture(scope="session")
def make_models() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the script with the given arguments; `limit_blocks` caps the size of any file."""

    def run(
        *arguments: str | Path, limit_blocks: int | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        limit = f"ulimit -f {limit_blocks or 'unlimited'}; "
        return subprocess.run(
            ["/bin/sh", "-c", limit + 'exec "$@"', "sh", sys.executable, SCRIPT, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment},
        )

    return run


@pytest.fixture(scope="session")
def wheel_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wheel")


@pytest.fixture(scope="session")
def models(
    tmp_path_factory: pytest.TempPathFactory,
    wheel_dir: Path,
    make_models: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    folder = tmp_path_factory.mktemp("models")
    finished = make_models("--models", folder, "--wheel-dir", wheel_dir)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def serve(
    llama_server_bin: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """Starts a server for a model, waits until it is ready and gives its address."""
    logs = tmp_path_factory.mktemp("logs")
    with ExitStack() as servers:

        def start(model: Path, *flags: str) -> str:
            port = _free_port()
            log = servers.enter_context((logs / f"{port}.log").open("w+"))
            process = subprocess.Popen(
                [llama_server_bin, "--model", model, "--port", str(port), *flags],
                stderr=log,
                env={k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")},
            )
            servers.callback(process.wait)
            servers.callback(process.terminate)
            _wait_until_ready(process, f"http://127.0.0.1:{port}", Path(log.name))
            return f"http://127.0.0.1:{port}"

        yield start


@pytest.fixture(scope="session")
def post() -> Callable[[str, object], Any]:
    """Sends a JSON body and gives the JSON answer."""

    def send(url: str, body: object) -> Any:
        request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urlopen(request, timeout=60) as answer:
            return json.load(answer)

    return send


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urlopen(f"{url}/health", timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.02)
    pytest.fail(f"llama-server did not become ready; its log:\n{log.read_text()}")


@pytest.fixture
def setting(
    tmp_path: Path,
    profiles_dir: Path,
    models_dir: Path,
    llama_server_bin: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Setting:
    """What a bench is measured with, as short as it can be."""
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(llama_server_bin))
    return Setting(
        profiles=profiles_dir,
        models=models_dir,
        work_dir=tmp_path,
        engine="llama-server",
        seconds=1,
        rounds=1,
        starts=1,
        switches=2,
    )
