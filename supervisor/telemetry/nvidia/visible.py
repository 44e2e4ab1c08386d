"""CUDA's own rules for which NVIDIA devices a program sees."""

from collections.abc import Mapping, Sequence

from supervisor.telemetry.visible_devices import (
    UUID_PREFIXES,
    apply_variable,
    find_device,
    names_in,
)

CHILD_VARIABLE = "CUDA_VISIBLE_DEVICES"
"""What shows a child its devices."""


def select_visible(uuids: Sequence[str], environment: Mapping[str, str]) -> tuple[int, ...]:
    """Choose from the NVIDIA devices with these UUIDs; give positions, in the order CUDA uses.

    CUDA_VISIBLE_DEVICES holds indices, UUIDs or the beginnings of UUIDs. As CUDA does, stop at
    the first name that fits nothing. A device that is named twice counts once, where CUDA shows
    nothing at all: each child is given a list of its own. Indices count in PCI bus order, which
    CUDA follows when CUDA_DEVICE_ORDER=PCI_BUS_ID or all devices are alike; on mixed machines name
    UUIDs.

    NVIDIA_VISIBLE_DEVICES has been applied by the container runtime already, and its indices are
    the host's: only the UUIDs in it are used, so that a privileged container, which sees every
    device, keeps to its own.

    Raises TelemetryError when CUDA_VISIBLE_DEVICES names devices and none of them is here.
    """
    given = tuple(range(len(uuids)))
    granted = [
        find_device(name, given, uuids)
        for name in names_in(environment.get("NVIDIA_VISIBLE_DEVICES", ""))
        if name.startswith(UUID_PREFIXES)
    ]
    base = tuple(position for position in granted if position is not None) or given
    return apply_variable(CHILD_VARIABLE, base, uuids, environment)
