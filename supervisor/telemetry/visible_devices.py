"""Which NVIDIA devices the environment leaves visible to a CUDA program."""

from collections.abc import Mapping, Sequence

from supervisor.errors import TelemetryError

_UUID_PREFIXES = ("GPU-", "MIG-")


def select_visible(uuids: Sequence[str], environment: Mapping[str, str]) -> tuple[int, ...]:
    """Choose from the devices whose UUIDs are `uuids`; give positions, in the order CUDA uses.

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
    wish = environment.get("CUDA_VISIBLE_DEVICES")
    if wish is None:
        return base
    chosen: list[int] = []
    for name in _names(wish):
        position = _find(name, base, uuids)
        if position in chosen:
            return ()
        if position is None:
            break
        chosen.append(position)
    if not chosen and not _means_none(wish):
        raise TelemetryError(
            f"CUDA_VISIBLE_DEVICES={wish} names no NVIDIA device of this machine; name one of "
            f"{', '.join(uuids[position] for position in base) or 'none'}, or unset it"
        )
    return tuple(chosen)


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",")]


def _means_none(wish: str) -> bool:
    first = _names(wish)[0]
    return first in {"", "NoDevFiles"} or first.startswith("-")


def _find(name: str, positions: Sequence[int], uuids: Sequence[str]) -> int | None:
    if name.isdecimal():
        return positions[int(name)] if int(name) < len(positions) else None
    if not name.startswith(_UUID_PREFIXES):
        return None
    matches = [position for position in positions if uuids[position].startswith(name)]
    return matches[0] if len(matches) == 1 else None
