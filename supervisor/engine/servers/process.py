"""One child process and its group: spawned so that it cannot outlive us, always reaped.

The child gets a session and process group of its own, so that whatever it starts can be ended
with it, a mark by which those are known that leave the group, and the kernel's parent-death signal,
so that a killed controller leaves nothing behind.

setpriv(1) arms that signal and becomes the program. Python could do so between `fork` and `exec`,
but a `fork` of this process holds all its clients up for 5 ms, and each switch for 12.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
import structlog

from supervisor.engine.port import Launch
from supervisor.engine.servers.descendants import (
    KEEPS_MARK,
    MARK_VARIABLE,
    adopt_orphans,
    children_of,
    descendants_of,
    has_mark,
    name_of,
    new_mark,
    orphans_of,
    reap,
    send_signal,
    state_of,
)
from supervisor.engine.servers.output import Output
from supervisor.errors import EngineError

log = structlog.get_logger()

_SECOND_SIGNAL_AFTER_S = 0.5
_SURVIVOR_POLL_S = 0.005
_LAST_OUTPUT_S = 0.5
_ORPHANS_TO_END_S = 5.0
_REAPING_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessExit:
    """How a process ended: by a code, or by a signal."""

    exit_code: int | None
    signal: int | None


class ChildProcess:
    """A spawned server. `spawn()` makes it; `wait()` returns when its whole group is reaped."""

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        on_line: Callable[[str], None],
        launch: Launch,
        mark: str,
        pidfd: int,
    ) -> None:
        self._popen = popen
        self._pidfd = pidfd
        self._stop_signal = launch.abilities.stop_signal
        self._mark = mark
        self.output = Output(on_line)
        self._descendants: set[int] = set()
        """Processes that were seen to come from it."""
        self.pid = popen.pid
        self.last_lines = self.output.last_lines
        self._reaped = asyncio.create_task(self._watch(), name=f"watch-{popen.pid}")

    @classmethod
    def spawn(cls, launch: Launch, on_line: Callable[[str], None]) -> "ChildProcess":
        """Start the process. Raises EngineError when it cannot be executed, or not be watched.

        Call it on the main thread: the parent-death signal is tied to the spawning thread.
        """
        adopt_orphans()
        mark = new_mark(launch.folder, launch.epoch)
        try:
            _require_program(launch)
            popen = subprocess.Popen(
                ends_with_us(launch.argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**KEEPS_MARK, **launch.env, MARK_VARIABLE: mark},
                start_new_session=True,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise EngineError(f"{launch.argv[0]} cannot be executed: {error}") from error
        return cls(popen, on_line, launch, mark, _watched(popen))

    @property
    def is_running(self) -> bool:
        """Whether the group still has a process that is not reaped."""
        return not self._reaped.done()

    def owns(self, pid: int) -> bool:
        """Whether a process belongs to the session, or descends from it."""
        try:
            return os.getsid(pid) == self.pid or has_mark(pid, self._mark)
        except ProcessLookupError:
            return False

    @property
    def is_ending(self) -> bool:
        """Whether it has ended, or gives its memory back; that may take a large one seconds."""
        state = state_of(self.pid)
        return not self.is_running or state is None or state.is_ending

    async def wait(self) -> ProcessExit:
        """Return how the process ended, once its whole group is gone and its output is read."""
        return await asyncio.shield(self._reaped)

    async def stop(self, grace_s: float) -> ProcessExit:
        """End the group: its stop signal, SIGKILL after `grace_s` seconds; return when reaped.

        Raises EngineError where it runs as another user, whom we may not signal.

        The signal is sent twice: where it comes while tokens are computed, llama-server's handler
        may wait for a lock that the thread it interrupted holds. Its second signal ends it at once.
        """
        try:
            first_s = min(grace_s, _SECOND_SIGNAL_AFTER_S)
            for pause_s in (first_s, grace_s - first_s):
                self._signal_all(self._stop_signal)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        return await self.wait()
            self._signal_group(signal.SIGKILL)
        except PermissionError as error:
            raise EngineError(
                f"the server (pid {self.pid}) cannot be ended: it runs as another user; end it by "
                "hand, and let its command run as the controller's user, without sudo"
            ) from error
        return await self.wait()

    def abandon(self, why: str) -> ProcessExit:
        """Kill the group and wait for nothing: a fault of ours keeps it from being watched."""
        self.last_lines.append(f"(ended by the controller: {why})")
        with contextlib.suppress(PermissionError):
            self._signal_group(signal.SIGKILL)
        return ProcessExit(exit_code=None, signal=signal.SIGKILL)

    async def _watch(self) -> ProcessExit:
        assert self._popen.stdout is not None  # noqa: S101 - spawned with a pipe
        pump = asyncio.create_task(self.output.read(self._popen.stdout), name=f"output-{self.pid}")
        await _wait_for_exit(self._pidfd, meanwhile=self._reap_orphans)
        self.output.hurry()
        return_code = self._popen.wait()  # returns at once: the pidfd said that it has ended
        await self._end_survivors()
        await self._end_orphans()
        await _finish(pump)
        is_signal = return_code < 0
        return ProcessExit(
            exit_code=None if is_signal else return_code,
            signal=-return_code if is_signal else None,
        )

    async def _end_survivors(self) -> None:
        """Kill what the child left in its group; the memory is theirs as much as its own.

        Its orphans belong to process 1 of this container, which reaps them late or never; they
        count as gone once they are dead, for then their memory is given back. Where process 1 is
        this very controller, it reaps them here. What runs as another user is named with what
        left the group.
        """
        with contextlib.suppress(PermissionError):
            while self._signal_group(signal.SIGKILL):
                is_over = not _has_living_member(self.pid)
                _reap_adopted(self.pid)
                if is_over:
                    return
                await asyncio.sleep(_SURVIVOR_POLL_S)

    async def _end_orphans(self) -> None:
        """Kill and reap what left the group; it comes to us as those above it end.

        What cannot be ended within seconds is named, and left: it runs as somebody else, or waits
        in the kernel.
        """
        deadline = asyncio.get_running_loop().time() + _ORPHANS_TO_END_S
        while orphans := self._orphans():
            for pid in orphans:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)  # our child: its pid is its own until we reap it
                self._reap(pid)
            if asyncio.get_running_loop().time() > deadline:
                self._name_left(orphans)
                return
            await asyncio.sleep(_SURVIVOR_POLL_S)

    def _orphans(self) -> set[int]:
        """Return what comes from the server and is our own child now; a zombie is remembered."""
        self._descendants |= orphans_of(self.pid, self._mark)
        return self._descendants & children_of(os.getpid()) - {self.pid}

    def _reap_orphans(self) -> None:
        """Reap those that have ended while their server runs on."""
        for pid in self._orphans():
            self._reap(pid)

    def _reap(self, pid: int) -> None:
        if reap(pid):
            self._descendants.discard(pid)  # its pid may be another's from now on

    def _name_left(self, pids: set[int]) -> None:
        named = ", ".join(f"{name_of(pid)} (pid {pid})" for pid in sorted(pids))
        self.last_lines.append(f"(the server is gone; what it started cannot be ended: {named})")
        log.warning("backend.process_left", pid=self.pid, left=named)

    def _signal_all(self, number: signal.Signals) -> None:
        """Signal the group, and what has left it but is known to come from it."""
        # Looked for first: below a server that has ended they could not be told from others.
        self._descendants |= descendants_of(self.pid) | orphans_of(self.pid, self._mark)
        self._signal_group(number)
        for pid in self._descendants:
            state = state_of(pid)
            if state is not None and state.session != self.pid:
                send_signal(pid, number, lambda each: has_mark(each, self._mark))

    def _signal_group(self, number: signal.Signals) -> bool:
        """Signal every process of the group. Returns whether there was one.

        Raises PermissionError where all that there are run as another user.
        """
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def ends_with_us(argv: Sequence[str]) -> tuple[str, ...]:
    """Return a command whose program the kernel kills once the thread that started it is gone.

    Raises EngineError where setpriv is not installed.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EngineError(
            "setpriv is not installed, without which a server would outlive a controller that is "
            "killed; it is part of util-linux (2.33 or newer)"
        )
    return setpriv, "--pdeathsig", "KILL", "--", *argv


def _require_program(launch: Launch) -> None:
    """Raise OSError where the program is not there, or no program: setpriv would only end."""
    program = launch.argv[0]
    if shutil.which(program, path=launch.env.get("PATH", os.defpath)) is None:
        code = errno.EACCES if os.path.exists(program) else errno.ENOENT  # noqa: PTH110 - may be ""
        raise OSError(code, os.strerror(code), program)


def _reap_adopted(group: int) -> None:
    """Reap the dead of a group that have become our own children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def _has_living_member(group: int) -> bool:
    """Whether a process of the group may be there that is not a zombie."""
    try:
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.Error):
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    return True
    except OSError:  # we have run out of descriptors: nothing can be seen
        return True
    return False


async def _finish(pump: asyncio.Task[None]) -> None:
    """Let the output be read to its end, unless somebody outside the group holds the pipe."""
    await asyncio.wait([pump], timeout=_LAST_OUTPUT_S)
    pump.cancel()


def _watched(popen: subprocess.Popen[bytes]) -> int:
    """Return what tells of a child's end. One that cannot be watched is ended: EngineError."""
    try:
        return os.pidfd_open(popen.pid)
    except OSError as error:
        assert popen.stdout is not None  # noqa: S101 - spawned with a pipe
        popen.stdout.close()
        with contextlib.suppress(PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
        raise EngineError(
            f"the server (pid {popen.pid}) was started and ended again, for it cannot be watched: "
            f"{error}"
        ) from error


async def _wait_for_exit(pidfd: int, meanwhile: Callable[[], None]) -> None:
    """Wait until our child has ended; it stays a zombie until somebody reaps it.

    `meanwhile` is called every half a minute. The descriptor is closed.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _REAPING_PAUSE_S)
            meanwhile()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
