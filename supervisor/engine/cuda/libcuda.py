"""The few entry points of NVIDIA's driver library that checkpoints need, through ctypes.

Loading it into a process that creates a context costs device memory, so that only processes of
their own do it (`driver_process.py`). Source: CUDA Driver API reference, "CUDA Checkpointing"
(driver 570 and newer).
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
        self.call("cuInit", 0)

    def lock(self, pid: int, timeout_ms: int) -> None:
        """Let the process make no further CUDA call. Raises CudaError, also when out of time."""
        arguments = LockArguments(timeout_ms=timeout_ms)
        self.call("cuCheckpointProcessLock", pid, ctypes.byref(arguments))

    def checkpoint(self, pid: int) -> None:
        """Move the device memory of a locked process to the host. Raises CudaError."""
        self.call("cuCheckpointProcessCheckpoint", pid, None)

    def restore(self, pid: int) -> None:
        """Move it back; the process stays locked. Raises CudaError."""
        self.call("cuCheckpointProcessRestore", pid, None)

    def unlock(self, pid: int) -> None:
        """Let the process go on. Raises CudaError."""
        self.call("cuCheckpointProcessUnlock", pid, None)

    def state(self, pid: int) -> str:
        """Return the state of a process, one of `STATES`. Raises CudaError."""
        state = ctypes.c_int()
        self.call("cuCheckpointProcessGetState", pid, ctypes.byref(state))
        return STATES[state.value] if 0 <= state.value < len(STATES) else f"state {state.value}"

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises CudaError where it fails, or is not there."""
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
