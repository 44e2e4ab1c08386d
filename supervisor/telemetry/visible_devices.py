"""Which devices the environment leaves visible to a program, and which a child shall see."""

from collections.abc import Mapping, Sequence

from supervisor.errors import TelemetryError
from supervisor.telemetry.port import HOST, DeviceInfo

_UUID_PREFIXES = ("GPU-", "MIG-")
_VARIABLES = {"NVIDIA": "CUDA_VISIBLE_DEVICES", "AMD": "HIP_VISIBLE_DEVICES"}


def select_visible(uuids: Sequence[str], environment: Mapping[str, str]) -> tuple[int, ...]:
    """Choose from the NVIDIA devices with these UUIDs; give positions, in the order CUDA uses.

    CUDA_VISIBLE_DEVICES holds indices, UUIDs or the beginnings of UUIDs. As CUDA does, stop at
    the first name that fits nothing, and show nothing at all where a device is named twice.
    Indices count in PCI bus order, which CUDA follows when CUDA_DEVICE_ORDER=PCI_BUS_ID or all
    devices are alike; on mixed machines name UUIDs.

    NVIDIA_VISIBLE_DEVICES has been applied by the container runtime already, and its indices are
    the host's: only the UUIDs in it are used, so that a privileged container, which sees every
    device, keeps to its own.

    Raises TelemetryError when CUDA_VISIBLE_DEVICES names devices and none of them is here.
    """
    given = tuple(range(len(uuids)))
    granted = [
        _find(name, given, uuids)
        for name in _names(environment.get("NVIDIA_VISIBLE_DEVICES", ""))
        if name.startswith(_UUID_PREFIXES)
    ]
    base = tuple(position for position in granted if position is not None) or given
    return _apply("CUDA_VISIBLE_DEVICES", base, uuids, environment)


def select_visible_amd(
    uuids: Sequence[str], environment: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose from the AMD devices; give the positions that ROCr leaves, and those that HIP does.

    ROCR_VISIBLE_DEVICES holds indices or UUIDs (`GPU-` and 16 hexadecimal digits). Indices in
    HIP_VISIBLE_DEVICES count within what it leaves, and so does the CUDA_VISIBLE_DEVICES that HIP
    takes where its own variable is not set. Source: ROCm documentation, "GPU isolation
    techniques".

    Raises TelemetryError when a variable of AMD's names devices and none of them is here. One of
    NVIDIA's may mean NVIDIA's devices on a machine that has both, and then shows none of AMD's.
    """
    given = tuple(range(len(uuids)))
    for_rocr = _apply("ROCR_VISIBLE_DEVICES", given, uuids, environment)
    shared = environment.get("CUDA_VISIBLE_DEVICES")
    if "HIP_VISIBLE_DEVICES" not in environment and shared is not None and _holds_indices(shared):
        return for_rocr, _choose(shared, for_rocr, uuids)
    return for_rocr, _apply("HIP_VISIBLE_DEVICES", for_rocr, uuids, environment)


def child_environment(device: str, devices: Sequence[DeviceInfo]) -> dict[str, str]:
    """Return the variables that show a child this device and no other; `devices` are all.

    A child on the host's memory sees none of them.
    """
    chosen = next((info for info in devices if info.device == device), None)
    shown = dict(chosen.visible_as) if chosen is not None else {}
    hidden = {_VARIABLES[info.vendor]: "-1" for info in devices if info.vendor in _VARIABLES}
    return hidden | shown if shown or device == HOST else {}


def _apply(
    variable: str, base: Sequence[int], uuids: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, ...]:
    """Choose those of `base` that a variable names, in its order; all where it is not set."""
    wish = environment.get(variable)
    if wish is None:
        return tuple(base)
    if _find(_names(wish)[0], base, uuids) is None and not _means_none(wish):
        known = ", ".join(uuids[position] for position in base) or "none"
        raise TelemetryError(
            f"{variable}={wish} names no device that is visible here; name one of {known}, or "
            "unset it"
        )
    return _choose(wish, base, uuids)


def _choose(wish: str, base: Sequence[int], uuids: Sequence[str]) -> tuple[int, ...]:
    """Stop at the first name that fits nothing; choose nothing where one is named twice."""
    chosen: list[int] = []
    for name in _names(wish):
        position = _find(name, base, uuids)
        if position in chosen:
            return ()
        if position is None:
            break
        chosen.append(position)
    return tuple(chosen)


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def _means_none(wish: str) -> bool:
    first = _names(wish)[0]
    return first in {"", "NoDevFiles"} or first.startswith("-")


def _holds_indices(wish: str) -> bool:
    """Whether a variable of both vendors can mean AMD devices; UUIDs in it are NVIDIA's."""
    return not any(name.startswith(_UUID_PREFIXES) for name in _names(wish))


def _find(name: str, positions: Sequence[int], uuids: Sequence[str]) -> int | None:
    if name.isdecimal():
        return positions[int(name)] if int(name) < len(positions) else None
    if not name.startswith(_UUID_PREFIXES):
        return None
    matches = [position for position in positions if uuids[position].startswith(name)]
    return matches[0] if len(matches) == 1 else None
