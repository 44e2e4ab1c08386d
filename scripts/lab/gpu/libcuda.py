"""The few entry points of NVIDIA's driver library that the check calls, through ctypes.

Loading it into a process that creates a context costs device memory, so that only processes of
their own do it (`cuda_process.py`). Source: CUDA Driver API reference, "Context Management",
"Memory Management" and "CUDA Checkpointing" (driver 570 and newer).
"""

import ctypes
from typing import Any, ClassVar

DEFAULT_LIBRARY = "libcuda.so.1"
STATES = ("running", "locked", "checkpointed", "failed", "checkpointing", "restoring")
"""`CUprocessState`, by its value."""


class NoLibcudaError(Exception):
    """The driver's library is not on this machine."""


class CudaError(Exception):
    """A call failed. The message names it, and the driver's error."""


class LockArguments(ctypes.Structure):
    """`CUcheckpointLockArgs`: 64 bytes, of which all that is reserved must be zero."""

    _fields_: ClassVar = [("timeout_ms", ctypes.c_uint), ("reserved", ctypes.c_uint * 15)]


class Libcuda:
    """The driver, initialised; that alone creates no context."""

    def __init__(self, library: str = DEFAULT_LIBRARY) -> None:
        """Load and initialise it. Raises NoLibcudaError and CudaError."""
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NoLibcudaError(f"no libcuda: {error}") from error
        self._call("cuInit", 0)

    def hold(self, size_bytes: int) -> None:
        """Take so much of the first visible device, until this process ends. Raises CudaError."""
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self._call("cuCtxSetCurrent", context)
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))

    def lock(self, pid: int, timeout_ms: int) -> None:
        """Let the process make no further CUDA call. Raises CudaError, also when out of time."""
        arguments = LockArguments(timeout_ms=timeout_ms)
        self._call("cuCheckpointProcessLock", pid, ctypes.byref(arguments))

    def checkpoint(self, pid: int) -> None:
        """Move the device memory of a locked process to the host. Raises CudaError."""
        self._call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int) -> None:
        """Move it back; the process stays locked. Raises CudaError."""
        self._call("cuCheckpointProcessRestore", pid, None)

    def unlock(self, pid: int) -> None:
        """Let the process go on. Raises CudaError."""
        self._call("cuCheckpointProcessUnlock", pid, None)

    def state(self, pid: int) -> str:
        """Return the state of a process, one of `STATES`. Raises CudaError."""
        state = ctypes.c_int()
        self._call("cuCheckpointProcessGetState", pid, ctypes.byref(state))
        return STATES[state.value] if 0 <= state.value < len(STATES) else f"state {state.value}"

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError as error:
            raise CudaError(
                f"the driver has no {name}; checkpoints need driver 570 or newer"
            ) from error
        result = function(*arguments)
        if result != 0:
            raise CudaError(f"{name} failed: {self._name_of(result)} ({result})")

    def _name_of(self, result: int) -> str:
        name = ctypes.c_char_p()
        if self._library.cuGetErrorName(result, ctypes.byref(name)) != 0 or name.value is None:
            return "an error without a name"
        return name.value.decode()
