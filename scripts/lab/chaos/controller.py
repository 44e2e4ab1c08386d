"""The controller as a process of its own, killed and started again on the same folder and port."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import psutil

from lab.chaos.layout import Layout
from lab.chaos.ledger import Fault, Ledger, Weapon
from lab.chaos.machine import Machine, environment_of
from lab.chaos.setting import ORPHAN_BOUND_S, START_BOUND_S, Setting
from lab.harness import processes
from lab.harness.command import LabError
from lab.harness.servers import Endpoint, Server, serve_command

STOP_BOUND_S = 15.0
"""SIGTERM must end the controller within this: its drain, the grace of its servers, and slack."""


@dataclass(slots=True, kw_only=True)
class Life:
    """One controller process, from its start until it was reaped."""

    server: Server
    is_exclusive: bool
    began_at: float
    ended_at: float | None = None


class Controller:
    """Starts, ends and restarts the controller; `is_up` is set while it listens."""

    def __init__(
        self, setting: Setting, layout: Layout, ledger: Ledger, machine: Machine | None
    ) -> None:
        self._setting = setting
        self._machine = machine
        self._layout = layout
        self._ledger = ledger
        self._checks: set[asyncio.Task[None]] = set()
        self.mark = f"{os.getpid()}-{setting.seed}"
        self.lives: list[Life] = []
        self.outages: list[tuple[float, float]] = []
        self.is_up = asyncio.Event()
        self.port = Endpoint.on_free_port().port
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def life(self) -> Life:
        """The process that runs now, or ran last."""
        return self.lives[-1]

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.life.server.pid

    def servers(self) -> list[int]:
        """Return the pids of its llama-servers."""
        return processes.servers_of(self.pid)

    async def start(self, *, is_exclusive: bool) -> None:
        """Start it and wait until it listens. Raises LabError, with a violation, if it fails."""
        self._layout.write(is_exclusive=is_exclusive)
        endpoint = Endpoint(port=self.port)
        folders = {name: getattr(self._layout, name) for name in ("profiles", "models", "data")}
        began_at = time.time()
        server = Server(
            serve_command(endpoint, "llama-server", **folders),
            endpoint,
            self._setting.work_dir / f"controller-{len(self.lives) + 1}.log",
            {
                **os.environ,
                processes.MARK: self.mark,
                **environment_of(self._machine, self._setting.llama_server),
                "TMPDIR": str(self._layout.temporary),
            },
            cwd=self._setting.work_dir,
            start_new_session=True,
            preexec_fn=processes.die_with_runner,
        )
        self.lives.append(Life(server=server, is_exclusive=is_exclusive, began_at=began_at))
        try:
            await asyncio.to_thread(server.wait_until_healthy, START_BOUND_S)
        except LabError as error:
            self._ledger.violate("start", f"the controller did not come to listen: {error}")
            raise
        self._ledger.note(f"controller {server.pid} listens (exclusive: {is_exclusive})")
        self.is_up.set()

    async def restart(self, weapon: Weapon, aimed_at: str, *, is_exclusive: bool) -> None:
        """End it by SIGKILL or SIGTERM, and start its successor at once."""
        life = self.life
        began_at = time.time()
        self._ledger.faults.append(
            Fault(at=began_at, weapon=weapon, pid=self.pid, aimed_at=aimed_at)
        )
        self.is_up.clear()
        await self.end(weapon)
        if weapon is Weapon.CONTROLLER_TERM and life.server.process.returncode != 0:
            self._ledger.violate("exit", f"SIGTERM ended it with {life.server.process.returncode}")
        task = asyncio.create_task(self.find_orphans(), name="orphans")
        self._checks.add(task)
        await self.start(is_exclusive=is_exclusive)
        self.outages.append((began_at, time.time()))

    async def end(self, weapon: Weapon) -> None:
        """End it and reap it. One that does not obey SIGTERM in time is killed: a violation."""
        life = self.life
        kill = weapon is Weapon.CONTROLLER_KILL
        processes.send(life.server.pid, signal.SIGKILL if kill else signal.SIGTERM)
        try:
            await asyncio.to_thread(life.server.process.wait, STOP_BOUND_S)
        except subprocess.TimeoutExpired:
            self._ledger.violate("exit", f"SIGTERM did not end it within {STOP_BOUND_S:g} s")
            life.server.process.kill()
            await asyncio.to_thread(life.server.process.wait)
        life.ended_at = time.time()

    async def settle(self) -> None:
        """Wait for the searches for orphans that go on."""
        if self._checks:
            await asyncio.wait(self._checks)

    def kill_all(self) -> None:
        """Leave no process behind, whatever happened."""
        for process in processes.marked(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for life in self.lives:
            life.server.process.wait()

    def log_around(self, at: float, lines: int) -> list[str]:
        """Return the last log lines, until a moment, of the controller that ran then."""
        life = next((one for one in reversed(self.lives) if one.began_at <= at), self.lives[0])
        text = life.server.log.read_text(errors="replace").splitlines()
        stamp = datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")
        until = [line for line in text if _stamp_of(line) <= stamp]
        return [f"  {life.server.log.name}: {line[:500]}" for line in until[-lines:]]

    async def find_orphans(self) -> None:
        """Note what still lives of a controller that has ended, after the bound."""
        left = await asyncio.to_thread(
            processes.survivors, self.mark, lambda: self.pid, ORPHAN_BOUND_S
        )
        for process in left:
            self._ledger.violate("orphan", f"{processes.describe(process)} outlived its controller")


def _stamp_of(line: str) -> str:
    """Return the time of a log line as text; lines without one belong to those before them."""
    _, found, rest = line.partition('"timestamp":"')
    return rest.partition('"')[0] if found else ""
