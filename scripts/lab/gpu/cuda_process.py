"""A process that holds memory of a device, as another program would.

    python -m lab.gpu.cuda_process BYTES      holds it until its input is closed

Answers with one line of JSON: `{}`, or `{"error": …, "is_absent": …}`.
"""

import asyncio
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lab.gpu.check import NotHereError
from lab.harness.command import SCRIPTS, LabError
from supervisor.engine.cuda import checkpoint
from supervisor.engine.cuda.checkpoint import CheckpointError, DriverAnswer
from supervisor.engine.cuda.libcuda import CudaError, Libcuda, NoLibcudaError

LIBRARY_VARIABLE = "GPU_CHECK_LIBCUDA"


def main(arguments: list[str]) -> None:
    """Hold so many bytes of the first visible device."""
    try:
        _hold(Libcuda(os.environ[LIBRARY_VARIABLE]), int(arguments[0]))
    except (NoLibcudaError, CudaError) as error:
        _answer({"error": str(error), "is_absent": isinstance(error, NoLibcudaError)})
        return
    _answer({})
    sys.stdin.read()


def _hold(driver: Libcuda, size_bytes: int) -> None:
    """Take it in a context of this process. Raises CudaError.

    Source: CUDA Driver API reference, "Context Management" and "Memory Management".
    """
    device, context = ctypes.c_int(), ctypes.c_void_p()
    driver.call("cuDeviceGet", ctypes.byref(device), 0)
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    driver.call("cuCtxSetCurrent", context)
    pointer = ctypes.c_uint64()
    driver.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))


def _answer(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), flush=True)


@contextmanager
def tenant(size_bytes: int, library: str, visible: Mapping[str, str]) -> Iterator[int]:
    """Let another program hold memory of the device; yields its process id.

    Raises NotHereError without the driver's library, and LabError where it cannot hold that.
    """
    path = f"{SCRIPTS}:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    process = subprocess.Popen(
        [sys.executable, "-m", "lab.gpu.cuda_process", str(size_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **visible, "PYTHONPATH": path, LIBRARY_VARIABLE: library},
    )
    try:
        assert process.stdout is not None
        _expect_no_error(process.stdout.readline())
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def call_driver(action: str, pid: int, library: str) -> DriverAnswer:
    """Call the driver for a process as the product does, and wait for it.

    Raises NotHereError and LabError, also when the driver does not answer.
    """
    try:
        return asyncio.run(checkpoint.call_driver(action, pid, library))
    except CheckpointError as error:
        raise (NotHereError if error.is_absent else LabError)(str(error)) from error


def require_checkpoints(library: str) -> None:
    """Ask for the state of this process, to learn whether the driver knows checkpoints at all.

    Raises NotHereError where it does not; one that knows them may refuse the process.
    """
    try:
        call_driver("state", os.getpid(), library)
    except LabError as error:
        if "the driver has no" in str(error):
            raise NotHereError(str(error)) from error


def _expect_no_error(line: str) -> None:
    if not line:
        raise LabError("the process that holds memory ended without an answer")
    told: dict[str, Any] = json.loads(line)
    if told.get("is_absent"):
        raise NotHereError(told["error"])
    if "error" in told:
        raise LabError(told["error"])


if __name__ == "__main__":
    main(sys.argv[1:])
