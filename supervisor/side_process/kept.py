"""A side process that is there from the first question on, and again when it died."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from supervisor.errors import RequestRefused
from supervisor.side_process.process import ProcessLost, SideProcess

log = structlog.get_logger()

_MAX_ATTEMPTS = 3
"""A question that has ended the process so often is not asked again."""


class KeptProcess:
    """Asks a side process, which starts with the first question.

    What it had not answered when it died is asked again of the next one, so that every request must
    bear to be repeated.
    """

    def __init__(self, what: str, program: Sequence[str], failure_code: str) -> None:
        """`what` it is, for the log and errors; `program`: its module, and arguments.

        `failure_code` is of the refusals where it cannot be started, or does not stay.
        """
        self._what = what
        self._program = program
        self._failure_code = failure_code
        self._starting = asyncio.Lock()
        self._process: SideProcess | None = None
        self._is_closed = False

    @property
    def running(self) -> SideProcess | None:
        """The process that was started last; None before the first."""
        return self._process

    async def ask(self, request: Any, kind: Any) -> Any:
        """Return what a request is answered with, as a value of `kind`. Raises RequestRefused."""
        for _ in range(_MAX_ATTEMPTS):
            process = await self._live()
            try:
                content = await process.ask(request)
            except ProcessLost:
                continue
            return msgspec.msgpack.decode(content, type=kind)
        raise RequestRefused(
            self._failure_code,
            f"{self._what} ended {_MAX_ATTEMPTS} times at one operation "
            f"({type(request).__name__}); it was started with {' '.join(self._program)}",
        )

    async def rest(self) -> None:
        """End the process unless it is busy; the next question starts another."""
        process = self._process
        if process is not None and not process.is_lost and not process.is_busy:
            self._process = None
            await process.stop(0)

    async def close(self, grace_s: float) -> None:
        """Have the process end, killed after `grace_s` seconds; nothing is asked any more."""
        self._is_closed = True
        async with self._starting:
            if self._process is not None:
                await self._process.stop(grace_s)

    async def _live(self) -> SideProcess:
        """Return the process; starts one where none runs. Raises RequestRefused."""
        process = self._process
        if process is not None and not process.is_lost and not self._is_closed:
            return process
        async with self._starting:
            if self._is_closed:
                raise RequestRefused("shutting_down", "the controller is shutting down")
            if self._process is None or self._process.is_lost:
                self._process = await self._start(self._process)
            return self._process

    async def _start(self, former: SideProcess | None) -> SideProcess:
        if former is not None:
            log.warning("side_process.died", what=self._what, pid=former.pid)
            await former.stop(0)
        try:
            process = await SideProcess.start(self._program, os.environ)
        except OSError as error:
            raise RequestRefused(
                self._failure_code, f"{self._what} cannot be started: {error}"
            ) from error
        log.info("side_process.started", what=self._what, pid=process.pid)
        return process
