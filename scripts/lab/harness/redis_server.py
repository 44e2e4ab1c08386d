"""A Redis server of our own, on a port of its own, that keeps what it is told through a kill."""

import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.harness.command import LabError
from lab.harness.processes import die_with_runner
from lab.harness.servers import POLL_S, START_TIMEOUT_S, Endpoint

PACKAGE = "redis-server"
"""The program, and Debian's package that brings it; scripts/test installs it."""


class RedisServer:
    """Runs while its context lasts. `kill()` and `start()` in between: its data is in `folder`.

    Each write is on the disk before it is answered (`appendfsync always`): as durable as it gets.
    """

    def __init__(self, folder: Path) -> None:
        """Raises LabError where no redis-server is installed."""
        if shutil.which(PACKAGE) is None:
            raise LabError(f"there is no {PACKAGE}; install it: apt-get install {PACKAGE}")
        self._folder = folder
        self._endpoint = Endpoint.on_free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._endpoint.port}/0"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, on the data that it has. Raises LabError when it does not answer in time."""
        log = self._folder / "redis.log"
        settings = {
            "bind": "127.0.0.1",
            "port": str(self._endpoint.port),
            "dir": str(self._folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "logfile": str(log),
        }
        argv = [PACKAGE, *(w for name, value in settings.items() for w in (f"--{name}", value))]
        self._process = subprocess.Popen(
            argv,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=die_with_runner,  # noqa: PLW1509 - one call of the C library
        )
        deadline_at = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_at:
                tail = log.read_text(errors="replace")[-1000:] if log.exists() else ""
                raise LabError(f"{PACKAGE} does not answer; its last lines:\n{tail}")
            time.sleep(POLL_S)

    def kill(self) -> None:
        """End it with SIGKILL, as a machine that fails does. Safe twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with self._endpoint.connect(1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
