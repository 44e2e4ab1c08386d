"""How variables like CUDA_VISIBLE_DEVICES choose among devices: by index, UUID or its beginning."""

from collections.abc import Mapping, Sequence

from supervisor.errors import TelemetryError
from supervisor.telemetry.port import DeviceInfo

UUID_PREFIXES = ("GPU-", "MIG-")


def apply_variable(
    variable: str, base: Sequence[int], uuids: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, ...]:
    """Choose those of `base` that a variable names, in its order; all where it is not set."""
    wish = environment.get(variable)
    if wish is None:
        return tuple(base)
    if find_device(names_in(wish)[0], base, uuids) is None and not _means_none(wish):
        known = ", ".join(uuids[position] for position in base) or "none"
        raise TelemetryError(
            f"{variable}={wish} names no device that is visible here; name one of {known}, or "
            "unset it"
        )
    return choose(wish, base, uuids)


def choose(wish: str, base: Sequence[int], uuids: Sequence[str]) -> tuple[int, ...]:
    """Stop at the first name that fits nothing; a device that is named twice counts once."""
    chosen: dict[int, None] = {}
    for name in names_in(wish):
        position = find_device(name, base, uuids)
        if position is None:
            break
        chosen[position] = None
    return tuple(chosen)


def find_repeated(wish: str, devices: Sequence[DeviceInfo]) -> str | None:
    """Return the first name in a variable's value of what an earlier name in it means, too.

    An index and a UUID are not held against each other: what indices count is the vendor's matter.
    """
    seen: set[str] = set()
    for name in names_in(wish):
        if not name.isdecimal() and not name.startswith(UUID_PREFIXES):
            return None
        meant = str(int(name)) if name.isdecimal() else _uuid_of(name, devices)
        if meant in seen:
            return name
        seen.add(meant)
    return None


def _uuid_of(beginning: str, devices: Sequence[DeviceInfo]) -> str:
    uuids = (info.uuid or "" for info in devices)
    return next((uuid for uuid in uuids if uuid.startswith(beginning)), beginning)


def names_in(value: str) -> list[str]:
    """Split the value of a variable."""
    return [name.strip() for name in value.split(",")]


def _means_none(wish: str) -> bool:
    first = names_in(wish)[0]
    return first in {"", "NoDevFiles"} or first.startswith("-")


def find_device(name: str, positions: Sequence[int], uuids: Sequence[str]) -> int | None:
    """Find the device that a name means among these positions; None: none, or several."""
    if name.isdecimal():
        return positions[int(name)] if int(name) < len(positions) else None
    if not name.startswith(UUID_PREFIXES):
        return None
    matches = [position for position in positions if uuids[position].startswith(name)]
    return matches[0] if len(matches) == 1 else None
