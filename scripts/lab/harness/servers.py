"""Servers that a run starts: the controller, and the bare child with the same command line.

The bare child gets the arguments and the environment that the controller gave to its own child, as
the kernel shows them; only the address differs, and there is neither an API key nor a folder for
saved prompts.
"""

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lab.harness.command import LabError
from lab.harness.setting import Setting

POLL_S = 0.001
"""Pause between two looks at a starting server: the resolution of every start-up time here."""

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 20.0
ANSWER_TIMEOUT_S = 120.0
LOG_TAIL_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server listens: a port, of this machine unless said otherwise, or a unix socket."""

    port: int | None = None
    socket_path: Path | None = None
    host: str = "127.0.0.1"

    @classmethod
    def on_free_port(cls) -> Self:
        """Choose a loopback port that nobody listens on now."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            return cls(port=probe.getsockname()[1])

    def connect(self, timeout_s: float) -> socket.socket:
        """Open a blocking connection. Raises OSError while nobody listens."""
        if self.socket_path is None:
            return socket.create_connection((self.host, self.port or 0), timeout_s)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self.socket_path))
        except OSError:
            connection.close()
            raise
        return connection

    def flags(self) -> tuple[str, ...]:
        """Return the arguments that make llama-server listen here."""
        if self.socket_path is not None:
            return ("--host", str(self.socket_path))
        return ("--host", "127.0.0.1", "--port", str(self.port))


class Server:
    """A started process that answers `/health`; its context begins then, and ends it."""

    def __init__(
        self,
        argv: tuple[str, ...],
        endpoint: Endpoint,
        log: Path,
        env: Mapping[str, str],
        **process: Any,
    ) -> None:
        """Start it, with further arguments of `subprocess.Popen` where any are given."""
        self.endpoint = endpoint
        self.log = log
        self.start_s = 0.0
        self._started_at = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(env),
                **process,
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        try:
            self.wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> float:
        """End the process and return the seconds from SIGTERM until it is reaped. Safe twice."""
        started_at = time.monotonic()
        if self.process.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                ended = select.poll()
                ended.register(pidfd, select.POLLIN)
                self.process.terminate()
                if not ended.poll(STOP_GRACE_S * 1000):
                    self.process.kill()
            finally:
                os.close(pidfd)
        self.process.wait()
        return time.monotonic() - started_at

    def call(self, method: str, path: str, content: object = None) -> Any:
        """Send a request with a JSON body, or none, and return the JSON of the answer.

        Raises LabError for any status but 200, and when there is no answer.
        """
        status, answer = self.ask(method, path, content)
        if status != 200:
            raise self._failure(f"{method} {path} answered {status}: {answer}")
        return answer

    def upload(self, path: str, content: bytes) -> Any:
        """Post a body as it is, and return the JSON of the answer. Raises LabError as `call`."""
        with self._answer("POST", path, content, {}) as answer:
            told = json.loads(answer.read())
            if answer.status not in {200, 202}:
                raise self._failure(f"POST {path} answered {answer.status}: {told}")
            return told

    def download(self, path: str) -> bytes:
        """Return a body as it is. Raises LabError as `call`."""
        with self._answer("GET", path, None, {}) as answer:
            content: bytes = answer.read()
            if answer.status != 200:
                raise self._failure(f"GET {path} answered {answer.status}")
            return content

    def ask(self, method: str, path: str, content: object = None) -> tuple[int, Any]:
        """Ask what may be refused; return the status and the JSON of the answer.

        Raises LabError where there is no answer.
        """
        with self._answer(method, path, content, {}) as answer:
            return answer.status, json.loads(answer.read())

    def stream(
        self, path: str, content: object, headers: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """Post a request with a JSON body, and give the answer as it comes.

        Raises LabError for any status but 200, and when the answer breaks off.
        """
        with self._answer("POST", path, content, headers or {}) as answer:
            if answer.status != 200:
                raise self._failure(f"POST {path} answered {answer.status}: {answer.read()!r}")
            while chunk := answer.read1():
                yield chunk

    @contextmanager
    def _answer(
        self, method: str, path: str, content: object, headers: Mapping[str, str]
    ) -> Iterator[HTTPResponse]:
        if content is None or isinstance(content, bytes):
            body, typed = content, {}
        else:
            body, typed = json.dumps(content).encode(), {"Content-Type": "application/json"}
        connection = HTTPConnection("localhost", timeout=ANSWER_TIMEOUT_S)
        try:
            connection.sock = self.endpoint.connect(ANSWER_TIMEOUT_S)
            with closing(connection):
                connection.request(method, path, body, {**typed, **headers})
                yield connection.getresponse()
        except (OSError, HTTPException) as error:
            raise self._failure(f"{method} {path} got no whole answer: {error!r}") from error

    def resident_bytes(self) -> int:
        """Return the physical memory of this process, without its children (`VmRSS`, proc(5))."""
        with Path(f"/proc/{self.pid}/status").open(encoding="ascii") as lines:
            kib = next(line.split()[1] for line in lines if line.startswith("VmRSS:"))
        return int(kib) * 1024

    def wait_until_healthy(self, within_s: float = START_TIMEOUT_S) -> None:
        """Wait for its first 200; `start_s` is the time since its start then. Raises LabError."""
        while not _answers_health(self.endpoint):
            if self.process.poll() is not None:
                raise self._failure(f"it ended at once, with {self.process.returncode}")
            if time.monotonic() > self._started_at + within_s:
                raise self._failure(f"it did not become healthy within {within_s:.0f} s")
            time.sleep(POLL_S)
        self.start_s = self.start_s or time.monotonic() - self._started_at

    def _failure(self, what: str) -> LabError:
        tail = self.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return LabError("\n  ".join((f"{self.log.name}: {what}; its last lines:", *tail)))


def serve_command(endpoint: Endpoint, engine: str, **folders: Path) -> tuple[str, ...]:
    """Return the command that starts the product, as shipped; folders are by their option."""
    return (
        str(Path(sys.executable).with_name("llama-supervisor")),
        *("serve", "--engine", engine, *endpoint.flags()),
        *(word for name, path in folders.items() for word in (f"--{name}", str(path))),
    )


class Controller(Server):
    """The product, as shipped, on a port of its own and with an empty data folder."""

    def __init__(self, setting: Setting) -> None:
        endpoint = Endpoint.on_free_port()
        folders = {name: getattr(setting, name) for name in ("profiles", "models")}
        super().__init__(
            serve_command(endpoint, setting.engine, **folders, data=setting.work_dir / "data"),
            endpoint,
            setting.work_dir / "controller.log",
            os.environ,
        )

    def status(self) -> Any:
        """Return `GET /status`."""
        return self.call("GET", "/status")

    def wait_until_settled(self) -> None:
        """Wait for the switch that runs, such as the default model's at start, to end."""
        self._wait(lambda status: status["state"] != "switching", "a switch did not end")

    def wait_until_alone(self) -> None:
        """Wait until one backend is left: what was replaced may drain and stop after a switch."""
        self._wait(lambda status: len(status["backends"]) == 1, "there is not one backend alone")

    def wait_until_comparable(self) -> None:
        """Wait until it is known by what the twins of live models are compared with them."""
        self._wait(
            lambda status: not any(each["reason"] for each in status["twins"]),
            "a twin cannot be compared",
        )

    def _wait(self, is_so: Callable[[Any], bool], otherwise: str) -> None:
        deadline_at = time.monotonic() + START_TIMEOUT_S
        while not is_so(self.status()):
            if time.monotonic() > deadline_at:
                raise self._failure(f"{otherwise} within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.02)

    def switch_to(self, model: str, profile: str | None = None) -> dict[str, Any]:
        """Make the model live, with a profile other than its own if one is named.

        Returns the report.
        """
        order = {"model_name": model} | ({"profile": profile} if profile else {})
        report: dict[str, Any] = self.call("POST", "/switch-backend", order)
        return report

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event so far, where `server.log_format` is `json`."""
        return events_in(self.log, event)

    def load(self, model: str) -> "ChildCommand":
        """Make the model live, whatever runs now, and return how its server was started."""
        self.wait_until_settled()
        self.switch_to(model)
        return self.child_command()

    def child_command(self) -> "ChildCommand":
        """Return how the live backend's server was started."""
        return ChildCommand.of(self.child_pid())

    def child_pid(self) -> int:
        """Return the process of the backend that was switched to last."""
        live = [each for each in self.status()["backends"] if each["state"] == "ready"]
        pid: int = live[-1]["pid"]
        return pid


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCommand:
    """How the controller started a child, without what is of that controller alone.

    That is its address, its key, and the folder of the prompts that are kept over a switch.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]

    @classmethod
    def of(cls, pid: int) -> Self:
        """Read it from a running child (`cmdline` and `environ`, proc(5))."""
        words = iter(_null_separated(Path(f"/proc/{pid}/cmdline")))
        argv = []
        for word in words:
            if word in {"--host", "--port", "--slot-save-path"}:
                next(words)
            else:
                argv.append(word)
        entries = (e.partition("=") for e in _null_separated(Path(f"/proc/{pid}/environ")))
        env = {name: value for name, _, value in entries if name != "LLAMA_API_KEY"}
        return cls(argv=tuple(argv), env=env)

    def start(self, endpoint: Endpoint, setting: Setting) -> Server:
        """Start the same server without a controller, listening at `endpoint`."""
        log = setting.work_dir / "bare.log"
        return Server((*self.argv, *endpoint.flags()), endpoint, log, self.env)


def events_in(log: Path, event: str) -> list[dict[str, Any]]:
    """Return the JSON lines of a log that tell of an event; other lines may be anything."""
    with log.open(encoding="utf-8", errors="replace") as lines:
        found = [json.loads(line) for line in lines if f'"{event}"' in line]
    return [line for line in found if line["event"] == event]


def _answers_health(endpoint: Endpoint) -> bool:
    """Ask once, on a connection of its own, as cheaply as can be: it is asked every millisecond."""
    try:
        with endpoint.connect(1.0) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def _null_separated(path: Path) -> list[str]:
    return path.read_bytes().decode(errors="surrogateescape").rstrip("\0").split("\0")
