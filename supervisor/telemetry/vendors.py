"""The vendors whose GPUs are known, and what follows from having several of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from supervisor.telemetry.amd.vendor import AMD
from supervisor.telemetry.nvidia.vendor import NVIDIA
from supervisor.telemetry.port import HOST, DeviceInfo
from supervisor.telemetry.vendor import Vendor

VENDORS: Mapping[str, Vendor] = {vendor.name: vendor for vendor in (NVIDIA, AMD)}
"""By name, in the order in which their devices are numbered."""


def find_vendors(root: Path = Path("/")) -> tuple[str, ...]:
    """Name the vendors whose devices may be here, by what costs nothing to look at."""
    return tuple(name for name, vendor in VENDORS.items() if vendor.may_be_here(root))


def visibility_variables() -> tuple[str, ...]:
    """Name every variable that decides which devices are seen."""
    names = (name for vendor in VENDORS.values() for name in vendor.visibility.variables)
    return tuple(dict.fromkeys(names))


def hiding_variables() -> tuple[str, ...]:
    """Name the variables by which a program is shown some devices and not the others."""
    names = (name for vendor in VENDORS.values() for name in vendor.visibility.hiding)
    return tuple(dict.fromkeys(names))


def child_environment(shown: Sequence[str], devices: Sequence[DeviceInfo]) -> dict[str, str]:
    """Return the variables that show a child these devices, in this order, and no others.

    `devices` are all. A child on the host's memory sees none of them.
    """
    infos = {info.device: info for info in devices}
    values: dict[str, list[str]] = {}
    for device in shown:
        for name, value in infos[device].visible_as if device in infos else ():
            values.setdefault(name, []).append(value)
    if not values and HOST not in shown:
        return {}
    here = (VENDORS[info.vendor] for info in devices if info.vendor in VENDORS)
    hidden = {name: value for vendor in here for name, value in vendor.visibility.hidden_as}
    return hidden | {name: ",".join(each) for name, each in values.items()}
