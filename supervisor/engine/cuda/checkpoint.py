"""Checkpoints of a process, one call of the driver after the other, each in a process of its own.

Its device memory moves to the host, where it is the process's own, and back; it keeps all that is
in it, such as a KV cache. Meanwhile the process is locked: it lives, and none of its calls to the
driver returns, so that it could not end by itself.
"""

import asyncio
import contextlib
import json
import os
from dataclasses import dataclass
from typing import Any

from supervisor.engine.cuda.libcuda import DEFAULT_LIBRARY
from supervisor.errors import SupervisorError
from supervisor.own_process import command_of, python_path

CALL_TIMEOUT_S = 60.0


class CheckpointError(SupervisorError):
    """The driver refused a step, or did not answer. `is_absent`: there is no such driver here."""

    def __init__(self, message: str, *, is_absent: bool = False) -> None:
        self.is_absent = is_absent
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverAnswer:
    """What a call took, and the state of the process after it, one of `libcuda.STATES`."""

    seconds: float
    state: str


async def call_driver(action: str, pid: int, library: str = DEFAULT_LIBRARY) -> DriverAnswer:
    """Call the driver for a process: lock, checkpoint, restore, unlock or state.

    Raises CheckpointError, also when the driver does not answer.
    """
    try:
        caller = await asyncio.create_subprocess_exec(
            *command_of("supervisor.engine.cuda.driver_process", library, action, str(pid)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path()},
        )
    except OSError as error:
        message = f"{action}: the process that calls the driver cannot be started: {error}"
        raise CheckpointError(message) from error
    try:
        async with asyncio.timeout(CALL_TIMEOUT_S):
            told, _ = await caller.communicate()
    except TimeoutError as error:
        message = f"{action}: the driver did not answer within {CALL_TIMEOUT_S:g} s"
        raise CheckpointError(message) from error
    finally:
        with contextlib.suppress(ProcessLookupError):
            caller.kill()
    return _read(action, told)


def _read(action: str, told: bytes) -> DriverAnswer:
    if not told:
        raise CheckpointError(f"{action}: the process that calls the driver ended without a word")
    answer: dict[str, Any] = json.loads(told)
    if "error" in answer:
        raise CheckpointError(answer["error"], is_absent=answer["is_absent"])
    return DriverAnswer(**answer)


async def checkpoint(pid: int) -> None:
    """Move a process's device memory to the host. Raises CheckpointError, the process unlocked."""
    await call_driver("lock", pid)
    try:
        await call_driver("checkpoint", pid)
    except CheckpointError:
        with contextlib.suppress(CheckpointError):
            await call_driver("unlock", pid)
        raise


async def restore(pid: int) -> None:
    """Move it back, and let the process go on. Raises CheckpointError."""
    await call_driver("restore", pid)
    await call_driver("unlock", pid)
