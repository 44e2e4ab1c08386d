"""What NVML's errors mean, each with what to do about it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pynvml

from supervisor.errors import TelemetryError

_SEE_ALSO = "see `nvidia-smi` and the kernel log (NVRM, Xid)"

_EXPLANATIONS: Mapping[int, str] = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "the NVIDIA kernel driver is not loaded; load it (`modprobe nvidia`), or start the "
        "container with access to the GPU"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the driver's library and its kernel module have different versions, as after an update "
        "of the running system; reboot the node, or restart the pod if the node was rebooted"
    ),
    pynvml.NVML_ERROR_UNKNOWN: (
        "the driver gave an unknown error, as it does in a container that lost its devices when "
        "the host's systemd was reloaded; restart the container, and if that does not help "
        f"{_SEE_ALSO}"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the GPU is lost: it has fallen off the bus; reboot the node or reset the GPU, and "
        f"{_SEE_ALSO}"
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: (
        "the GPU needs a reset; stop what uses it and run `nvidia-smi --gpu-reset`"
    ),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "permission denied; give this user access to /dev/nvidiactl and /dev/nvidia*, and on a "
        "GPU in MIG mode name the MIG device in CUDA_VISIBLE_DEVICES"
    ),
}


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn an NVML error into TelemetryError, with its reason and what to do about it."""
    try:
        yield
    except pynvml.NVMLError as exc:
        raise explain(doing, exc) from exc


def explain(doing: str, error: pynvml.NVMLError) -> TelemetryError:
    """Return what an NVML error means: what could not be done, why, and what to do about it."""
    reason = _EXPLANATIONS.get(error.value, f"{error} (NVML error {error.value}); {_SEE_ALSO}")
    return TelemetryError(f"cannot {doing}: {reason}")
