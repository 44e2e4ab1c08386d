"""The command line in a process of its own, on a copy of the shipped configuration."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import aiohttp
import psutil
import pytest
import yaml

from tests.patience import PATIENCE_S

COMMAND = Path(sys.executable).with_name("llama-supervisor")


class Served:
    """A running `llama-supervisor serve`, its log, and a client to call it with."""

    def __init__(self, process: subprocess.Popen[bytes], log_file: Path) -> None:
        self.process = process
        self.log_file = log_file

    def log(self) -> str:
        return self.log_file.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log events of a name so far; half a line at the end is left out."""
        lines = self.log().rpartition("\n")[0].splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [event for event in told if event["event"] == name]

    async def until(self, condition: Callable[[], Any], *, within_s: float = PATIENCE_S) -> Any:
        """Wait until a condition holds; returns its value."""
        deadline = time.monotonic() + within_s
        while not (value := condition()):
            assert self.process.poll() is None, f"the controller ended early:\n{self.log()}"
            assert time.monotonic() < deadline, f"the condition did not come true:\n{self.log()}"
            await asyncio.sleep(0.01)
        return value

    async def until_logged(self, name: str, *, within_s: float = PATIENCE_S) -> dict[str, Any]:
        """Wait for a log event of this name; returns the last one."""
        events = await self.until(lambda: self.events(name), within_s=within_s)
        return cast("dict[str, Any]", events[-1])

    async def url(self) -> str:
        """Wait until it listens; returns where."""
        return str((await self.until_logged("controller.listening"))["url"])

    async def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Call a route; returns status and JSON."""
        async with (
            aiohttp.ClientSession() as client,
            client.request(method, await self.url() + path, json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def child(self) -> psutil.Process:
        """Wait until a model is live; returns its server's process."""
        await self.until_logged("backend.ready")
        _, status = await self.json("GET", "/status")
        [backend] = status["backends"]
        return psutil.Process(backend["pid"])

    async def exit_code(self, *, within_s: float = PATIENCE_S) -> int:
        """Wait until the controller has ended."""
        deadline = time.monotonic() + within_s
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, f"the controller did not end:\n{self.log()}"
            await asyncio.sleep(0.01)
        return code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended; whoever adopted it may not have reaped it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture
def profiles(tmp_path: Path, profiles_dir: Path) -> Path:
    """A copy of the shipped configuration folder that logs JSON."""
    folder = tmp_path / "profiles"
    shutil.copytree(profiles_dir, folder)
    change(
        folder / "supervisor.yaml", lambda settings: settings["server"].update(log_format="json")
    )
    return folder


def change(path: Path, edit: Callable[[Any], Any]) -> None:
    """Edit a YAML file as values."""
    content = yaml.safe_load(path.read_text())
    edit(content)
    path.write_text(yaml.safe_dump(content))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A data folder whose path is short enough for the sockets to stand in it."""
    with tempfile.TemporaryDirectory(prefix="data-") as folder:
        yield Path(folder) / "data"


Serve = Callable[..., Served]


@pytest.fixture
def serve(
    tmp_path: Path, data_dir: Path, profiles: Path, models_dir: Path, llama_server_bin: Path
) -> Iterator[Serve]:
    """Starts `llama-supervisor serve --port 0` with further arguments and options of Popen.

    `through`: the words of a program that runs it.
    """
    with ExitStack() as stack:

        def start(
            *arguments: str,
            env: Mapping[str, str] | None = None,
            log_file: Path | None = None,
            through: tuple[str, ...] = (),
            **options: Any,
        ) -> Served:
            log_path = log_file or tmp_path / "serve.log"
            log = stack.enter_context(log_path.open("wb"))
            folders = {"--profiles": profiles, "--models": models_dir, "--data": data_dir}
            named = [str(word) for pair in folders.items() for word in pair]
            process = subprocess.Popen(
                [*through, COMMAND, "serve", "--port", "0", *named, *arguments],
                env=os.environ | {"LLAMA_SERVER_BIN": str(llama_server_bin)} | dict(env or {}),
                stderr=log,
                stdout=log,
                **options,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Served(process, log_path)

        yield start


StreamOf = Callable[..., Awaitable[aiohttp.ClientResponse]]


@pytest.fixture
async def stream_of() -> AsyncIterator[StreamOf]:
    """Begins a streamed completion of bench-chat, and returns when its first bytes are here."""
    async with aiohttp.ClientSession() as client:

        async def begin(served: Served, **fields: Any) -> aiohttp.ClientResponse:
            body = {"model": "bench-chat", "prompt": "on", "stream": True, "ignore_eos": True}
            url = f"{await served.url()}/v1/completions"
            answer = await client.post(url, json=body | fields)
            assert answer.status == 200
            assert await answer.content.readany()
            return answer

        yield begin
