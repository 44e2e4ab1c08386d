"""One child process and its group: spawned so that it cannot outlive us, always reaped.

The child gets a session and process group of its own, so that whatever it starts can be ended
with it, and the kernel's parent-death signal, so that a killed controller leaves nothing behind.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from supervisor.engine.port import Launch
from supervisor.errors import EngineError

KEPT_LINES = 200
"""Lines of output that are kept for error messages."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_SECOND_SIGNAL_AFTER_S = 0.5
_SURVIVOR_POLL_S = 0.005
_LAST_OUTPUT_S = 0.5
_MAX_LINE_BYTES = 16 * 1024
_MAX_CHUNK_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


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
        stop_signal: signal.Signals,
    ) -> None:
        self._popen = popen
        self._stop_signal = stop_signal
        self._on_line = on_line
        self.pid = popen.pid
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._reaped = asyncio.create_task(self._watch(), name=f"watch-{popen.pid}")

    @classmethod
    def spawn(cls, launch: Launch, on_line: Callable[[str], None]) -> "ChildProcess":
        """Start the process. Raises EngineError when the program cannot be executed.

        Call it on the main thread: the parent-death signal is tied to the spawning thread.
        """
        parent_pid = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent_pid:  # the parent died before the signal was armed
                os._exit(1)

        try:
            popen = subprocess.Popen(
                launch.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=dict(launch.env),
                start_new_session=True,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - it makes two system calls only
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise EngineError(f"{launch.argv[0]} cannot be executed: {error}") from error
        return cls(popen, on_line, launch.abilities.stop_signal)

    @property
    def is_running(self) -> bool:
        """Whether the group still has a process that is not reaped."""
        return not self._reaped.done()

    async def wait(self) -> ProcessExit:
        """Return how the process ended, once its whole group is gone and its output is read."""
        return await asyncio.shield(self._reaped)

    async def stop(self, grace_s: float) -> ProcessExit:
        """End the group: its stop signal, SIGKILL after `grace_s` seconds; return when reaped.

        The signal is sent twice: where it comes while tokens are computed, llama-server's handler
        may wait for a lock that the thread it interrupted holds. Its second signal ends it at once.
        """
        first_s = min(grace_s, _SECOND_SIGNAL_AFTER_S)
        for pause_s in (first_s, grace_s - first_s):
            self._signal_group(self._stop_signal)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    return await self.wait()
        self._signal_group(signal.SIGKILL)
        return await self.wait()

    async def _watch(self) -> ProcessExit:
        pump = asyncio.create_task(self._pump_output(), name=f"output-{self.pid}")
        await _wait_for_exit(self.pid)
        return_code = self._popen.wait()  # returns at once: the pidfd said that it has ended
        await self._end_survivors()
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
        this very controller, it reaps them here.
        """
        while self._signal_group(signal.SIGKILL):
            is_over = not _has_living_member(self.pid)
            _reap_adopted(self.pid)
            if is_over:
                return
            await asyncio.sleep(_SURVIVOR_POLL_S)

    def _signal_group(self, number: signal.Signals) -> bool:
        """Signal every process of the group. Returns whether there was one."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    async def _pump_output(self) -> None:
        """Hand the output on line by line; a line without end is cut, never awaited.

        The pipe is read by hand: uvloop's own pipe transport closes the descriptor twice, and the
        second time it may be one that another thread has just opened.
        """
        assert self._popen.stdout is not None  # noqa: S101 - spawned with a pipe
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        lines = _Lines(self._keep)
        with self._popen.stdout as pipe:
            descriptor = pipe.fileno()
            os.set_blocking(descriptor, False)

            def read() -> None:
                with contextlib.suppress(BlockingIOError):
                    chunk = os.read(descriptor, _MAX_CHUNK_BYTES)
                    lines.feed(chunk)
                    if not chunk:
                        is_over.set()
                        loop.remove_reader(descriptor)

            loop.add_reader(descriptor, read)
            try:
                await is_over.wait()
            finally:
                loop.remove_reader(descriptor)
                lines.end()

    def _keep(self, line: bytes) -> None:
        text = line.decode("utf-8", errors="replace").rstrip()
        if text:
            self.last_lines.append(text)
            self._on_line(text)


class _Lines:
    """Cuts output into lines."""

    def __init__(self, keep: Callable[[bytes], None]) -> None:
        self._keep = keep
        self._rest = b""

    def feed(self, chunk: bytes) -> None:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        for line in lines:
            self._keep(line)

    def end(self) -> None:
        self._keep(self._rest)
        self._rest = b""


def _reap_adopted(group: int) -> None:
    """Reap the dead of a group that have become our own children."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-group, os.WNOHANG)[0]:
            pass


def _has_living_member(group: int) -> bool:
    """Whether a process of the group is there that is not a zombie."""
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False


async def _finish(pump: asyncio.Task[None]) -> None:
    """Let the output be read to its end, unless somebody outside the group holds the pipe."""
    await asyncio.wait([pump], timeout=_LAST_OUTPUT_S)
    pump.cancel()


async def _wait_for_exit(pid: int) -> None:
    """Wait until our child has ended; it stays a zombie until somebody reaps it."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    loop.add_reader(pidfd, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
