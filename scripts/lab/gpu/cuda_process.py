"""A process that talks to the driver, so that one that hangs or holds memory can be ended.

    python -m lab.gpu.cuda_process hold BYTES             holds it until its input is closed
    python -m lab.gpu.cuda_process lock PID [TIMEOUT_MS]  and: checkpoint, restore, unlock, state

Answers with one line of JSON: `{"seconds": …, "state": …}`, or `{"error": …, "is_absent": …}`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from lab.gpu.check import NotHereError
from lab.gpu.libcuda import CudaError, Libcuda, NoLibcudaError
from lab.harness.command import SCRIPTS, LabError

LIBRARY_VARIABLE = "GPU_CHECK_LIBCUDA"
CALL_TIMEOUT_S = 60.0
LOCK_TIMEOUT_MS = 10_000


def main(arguments: list[str]) -> None:
    """Do what is asked, and answer."""
    action, number = arguments[0], int(arguments[1])
    try:
        driver = Libcuda(os.environ[LIBRARY_VARIABLE])
        began_at = time.monotonic()
        if action == "hold":
            driver.hold(number)
        elif action == "lock":
            driver.lock(number, LOCK_TIMEOUT_MS)
        elif action != "state":
            getattr(driver, action)(number)
        seconds = time.monotonic() - began_at
        state = None if action == "hold" else driver.state(number)
    except (NoLibcudaError, CudaError) as error:
        _answer({"error": str(error), "is_absent": isinstance(error, NoLibcudaError)})
        return
    _answer({"seconds": seconds, "state": state})
    if action == "hold":
        sys.stdin.read()


def _answer(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), flush=True)


@contextmanager
def tenant(size_bytes: int, library: str, visible: Mapping[str, str]) -> Iterator[int]:
    """Let another program hold memory of the device; yields its process id.

    Raises NotHereError without the driver's library, and LabError where it cannot hold that.
    """
    process = _start(library, "hold", str(size_bytes), visible)
    try:
        assert process.stdout is not None
        _result(process.stdout.readline())
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def call_driver(action: str, pid: int, library: str) -> dict[str, Any]:
    """Call the driver for a process: lock, checkpoint, restore, unlock or state.

    Returns its seconds, and the state after it. Raises NotHereError and LabError, also when the
    driver does not answer.
    """
    process = _start(library, action, str(pid), {})
    try:
        told, _ = process.communicate(timeout=CALL_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{action}: the driver did not answer within {error.timeout:g} s") from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    return _result(told)


def _start(
    library: str, action: str, number: str, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    path = f"{SCRIPTS}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    return subprocess.Popen(
        [sys.executable, "-m", "lab.gpu.cuda_process", action, number],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": path, LIBRARY_VARIABLE: library},
    )


def _result(line: str) -> dict[str, Any]:
    if not line:
        raise LabError("the process that calls the driver ended without an answer")
    told: dict[str, Any] = json.loads(line)
    if told.get("is_absent"):
        raise NotHereError(told["error"])
    if "error" in told:
        raise LabError(told["error"])
    return told


if __name__ == "__main__":
    main(sys.argv[1:])
