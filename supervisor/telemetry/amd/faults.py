"""What AMD SMI's errors mean, each with what to do about it."""

from collections.abc import Mapping
from typing import Any

_SEE_ALSO = "see `amd-smi list` and the kernel log (amdgpu)"
_GIVE_ACCESS = (
    "give this user access to /dev/kfd and /dev/dri/renderD* (the groups `render` and `video`; "
    "in Kubernetes `supplementalGroups`)"
)

# amdsmi_status_t of amdsmi.h
_EXPLANATIONS: Mapping[int, str] = {
    2: f"the driver does not offer this; update the amdgpu driver and ROCm, and {_SEE_ALSO}",
    6: f"the driver refuses calls on its device node; {_GIVE_ACCESS}",
    8: f"the driver did not answer AMD SMI in time; {_SEE_ALSO}",
    10: f"permission denied; {_GIVE_ACCESS}",
    12: f"reading the card failed; {_SEE_ALSO}",
    14: "the driver's files cannot be opened; mount /sys readable, and load amdgpu",
    18: f"AMD SMI found no driver that it can use; load amdgpu (`modprobe amdgpu`), {_GIVE_ACCESS}",
    30: "the card is busy with a reset or a change of its partitions; wait until that is over",
    31: f"the card is no longer there: it was removed or lost; reboot the node, and {_SEE_ALSO}",
    34: (
        "the amdgpu kernel driver is not loaded; load it (`modprobe amdgpu`), or start the "
        "container with /dev/kfd and /dev/dri"
    ),
    54: "amdgpu could not be restarted; reboot the node, and see the kernel log (amdgpu)",
    # The kernel answers ENODEV for a card off the bus, which AMD SMI has no name for.
    0xFFFFFFFF: (
        "the driver gave an unknown error, as it does for a card that has fallen off the bus; "
        f"reset it (`amd-smi reset --gpureset`) or reboot the node, and {_SEE_ALSO}"
    ),
}


def explain(error: Exception) -> str:
    """Give the reason and the remedy for an AmdSmiException, in one line."""
    code: Any = getattr(error, "err_code", None)  # the bindings' own complaints have none
    if code in _EXPLANATIONS:
        return _EXPLANATIONS[code]
    text = " ".join(str(error).split()) or type(error).__name__  # the bindings write two lines
    return f"{text}; {_SEE_ALSO}"
