"""One sampler process as the controller sees it: spawned, asked, and killed when it hangs."""

import asyncio
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from msgspec import DecodeError

from supervisor.errors import TelemetryError
from supervisor.own_process import command_of, python_path
from supervisor.telemetry.messages import Answer, Failed, Request, decode_answer, encode
from supervisor.telemetry.port import VendorAbsentError
from supervisor.telemetry.vendors import VENDORS

_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class _Question:
    answer: asyncio.Future[Answer]
    deadline_s: float


class SamplerProcess(asyncio.Protocol):
    """A process with one vendor's library (sampler.py), and the questions that it has to answer.

    A deadline counts from when the process turns to a question. One that is missed ends the
    process: a call into a driver cannot be interrupted in any other way.
    """

    def __init__(self, vendor: str, popen: subprocess.Popen[bytes], reap_s: float) -> None:
        self._vendor = vendor
        self._popen = popen
        self._reap_s = reap_s
        self._loop = asyncio.get_running_loop()
        self._questions: deque[_Question] = deque()
        self._rest = b""
        self._deadline: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport
        self.pid = popen.pid
        self.lost: asyncio.Future[str] = self._loop.create_future()
        """Has the reason once the process answers no more; cancelled where it was asked to stop."""

    @classmethod
    async def spawn(
        cls, vendor: str, environ: Mapping[str, str], *, reap_s: float
    ) -> "SamplerProcess":
        """Start the process; it has loaded nothing of the vendor's yet.

        Call it on the event loop's thread, for as long as which the process may live: the kernel
        ends it with the thread that spawned it. Raises TelemetryError when that fails.
        """
        try:
            ours, popen = _start_program(vendor, environ)
        except OSError as exc:
            raise TelemetryError(f"cannot start a sampler for {vendor}: {exc}") from exc
        try:
            _, process = await asyncio.get_running_loop().create_unix_connection(
                lambda: cls(vendor, popen, reap_s), sock=ours
            )
        except BaseException:  # cancelled: nobody would end it
            ours.close()
            popen.kill()
            popen.wait()  # it has not come to a driver yet, so that this does not take long
            raise
        return process

    @property
    def is_reaped(self) -> bool:
        """Whether the process is gone; one in an uninterruptible call stays after SIGKILL."""
        return self._popen.poll() is not None

    async def ask(self, request: Request, deadline_s: float) -> Answer:
        """Send a request and give its answer, which is never Failed.

        Raises VendorAbsentError where the process says so, and TelemetryError with the reason
        where it cannot answer, does not in `deadline_s` seconds, or has ended.
        """
        if self.lost.done():
            raise TelemetryError(self._reason())
        question = _Question(self._loop.create_future(), deadline_s)
        self._questions.append(question)
        if self._ending is None:  # else the reason of its end, which is found out now, answers it
            if len(self._questions) == 1:
                self._await_next()
            self._transport.write(encode(request) + b"\n")
        answer = await question.answer
        if isinstance(answer, Failed):
            raise (VendorAbsentError if answer.is_absent else TelemetryError)(answer.reason)
        return answer

    async def stop(self, grace_s: float) -> None:
        """Let the process end by itself, and kill it after `grace_s` seconds. Safe twice."""
        if self._ending is None:
            self.lost.cancel()
            self._end(grace_s)
        assert self._ending is not None  # noqa: S101 - set by _end
        await asyncio.shield(self._ending)

    async def settle(self) -> None:
        """Wait until every question is answered, or has missed its deadline."""
        if self._questions:
            await asyncio.wait([question.answer for question in self._questions])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the process."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are not derived from it

    def data_received(self, data: bytes) -> None:
        """Hand each line to the question that it answers."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                answer = decode_answer(line)
            except DecodeError:  # a library wrote there: what follows answers nothing, either
                self._fail(f"the {self._vendor} sampler gave an answer that cannot be read")
                self._end(0)
                return
            question = self._questions.popleft()
            if not question.answer.done():  # else whoever asked waits no more
                question.answer.set_result(answer)
        self._await_next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's protocol
        """Find out why the process ended, unless it is meant to."""
        if self._ending is None:
            self._end(0)

    def _await_next(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._questions:
            self._deadline = self._loop.call_later(
                self._questions[0].deadline_s, self._miss_deadline, self._questions[0].deadline_s
            )

    def _miss_deadline(self, deadline_s: float) -> None:
        if self._ending is None:
            self._fail(f"the {self._vendor} driver did not answer within {deadline_s:g} s")
            self._end(0)

    def _end(self, grace_s: float) -> None:
        self._transport.close()  # which is how the process learns that it is needed no more
        name = f"end-sampler-{self.pid}"
        self._ending = self._loop.create_task(self._finish(grace_s), name=name)

    async def _finish(self, grace_s: float) -> None:
        if not (grace_s > 0 and await self._wait_for_exit(grace_s)):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            await self._wait_for_exit(self._reap_s)
        self._fail(f"the {self._vendor} sampler ended unexpectedly ({self._exit_status()})")

    async def _wait_for_exit(self, timeout_s: float) -> bool:
        """Wait until the process has ended and reap it; give False where it does not end."""
        ended = asyncio.Event()
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # reaped already
            return True
        except OSError:  # we have run out of descriptors
            until = self._loop.time() + timeout_s
            while not self.is_reaped and self._loop.time() < until:  # noqa: ASYNC110 - so it is
                await asyncio.sleep(_POLL_S)
            return self.is_reaped
        self._loop.add_reader(pidfd, ended.set)
        try:
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
        return self.is_reaped

    def _fail(self, reason: str) -> None:
        """Answer everybody who waits, or asks later, with why there is no answer."""
        if self._deadline is not None:
            self._deadline.cancel()
        if not self.lost.done():
            words = VENDORS[self._vendor].kernel_words
            self.lost.set_result(
                f"{reason}; see the kernel log ({words}); a driver that hangs needs a GPU reset or "
                "a reboot"
            )
        while self._questions:
            question = self._questions.popleft()
            if not question.answer.done():
                question.answer.set_exception(TelemetryError(self._reason()))

    def _reason(self) -> str:
        if self.lost.cancelled():
            return f"the {self._vendor} sampler was stopped"
        return self.lost.result()

    def _exit_status(self) -> str:
        code = self._popen.poll()
        if code is None:
            return "it cannot be ended"
        return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _start_program(
    vendor: str, environ: Mapping[str, str]
) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start the program; returns our end of its standard input, too. Raises OSError."""
    ours, theirs = socket.socketpair()
    try:
        with theirs:
            popen = subprocess.Popen(
                command_of("supervisor.telemetry.sampler", vendor),
                env=_environment(environ),
                cwd="/",
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,  # vendors' bindings print there
                start_new_session=True,
            )
    except OSError:
        ours.close()
        raise
    return ours, popen


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the process our environment without our own settings, and the way to our packages."""
    kept = {k: v for k, v in environ.items() if not k.startswith(("LLAMA_", "AIP_"))}
    return {**kept, "PYTHONPATH": python_path()}
