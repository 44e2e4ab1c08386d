"""AMD cards as AMD SMI shows them, and as the kernel's own files do."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from supervisor.errors import TelemetryError
from supervisor.telemetry.amd.faults import explain

Pool = Literal["vram", "gtt"]
"""The carve-out or the card's own memory, and the host's memory that the GPU can map."""

_AMD_VENDOR_ID = "0x1002"

# The kernel writes tables of format 2 and 3 for APUs only, and 1 for discrete cards (and for
# MI300A, whose memory is all VRAM): linux, drivers/gpu/drm/amd/include/kgd_pp_interface.h.
_APU_METRICS_FORMATS = (2, 3)

_UNKNOWN = tuple(float(2**bits - 1) for bits in (16, 32, 64))


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolUse:
    """How large a pool is, and how much of it is used."""

    total_bytes: int
    used_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CardIdentity:
    """What a card is. `rocr_uuid` is how ROCR_VISIBLE_DEVICES names it: `GPU-` and 16 digits.

    `hip_id` is its place among the cards as ROCr and HIP number them, which may not be the order
    in which AMD SMI lists them; `render_node` the file in /dev/dri through which programs use it.
    """

    name: str
    uuid: str | None
    rocr_uuid: str | None
    pci_id: str | None
    driver_version: str | None
    is_apu: bool
    hip_id: int | None = None
    render_node: str | None = None


class Card(Protocol):
    """A GPU, whichever way it is read. Only `read_pool` raises TelemetryError."""

    @property
    def identity(self) -> CardIdentity:
        """What the card is."""
        ...

    @property
    def source(self) -> str:
        """Where its figures come from."""
        ...

    def read_pool(self, pool: Pool) -> PoolUse:
        """Read a pool in bytes."""
        ...

    def read_utilisation_percent(self) -> float | None:
        """Read the share of time in which the card computed."""
        ...

    def read_temperature_c(self) -> float | None:
        """Read the hottest spot, or the edge where a card has no such sensor."""
        ...

    def read_power_w(self) -> float | None:
        """Read the card's power, the current one where it is reported."""
        ...

    def list_processes(self) -> dict[int, int | None] | None:
        """Give the bytes that each process holds of the card's memory, None where not reported."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SmiCard:
    """A card through AMD SMI; `library` is the opened `amdsmi` module."""

    library: Any
    handle: Any
    identity: CardIdentity
    source: str = "amdsmi"

    def read_pool(self, pool: Pool) -> PoolUse:
        """Read a pool in bytes."""
        # Of the calls that report memory these two count in bytes in every version; others in MB.
        memory_type = self.library.AmdSmiMemoryType[pool.upper()]
        try:
            return PoolUse(
                total_bytes=self.library.amdsmi_get_gpu_memory_total(self.handle, memory_type),
                used_bytes=self.library.amdsmi_get_gpu_memory_usage(self.handle, memory_type),
            )
        except self.library.AmdSmiException as exc:
            raise TelemetryError(
                f"cannot read the memory of {self.identity.name} "
                f"({self.identity.pci_id or 'its place on the bus is not known'}): {explain(exc)}"
            ) from exc

    def read_utilisation_percent(self) -> float | None:
        """Read the share of time in which the card computed."""
        activity = self._ask("amdsmi_get_gpu_activity")
        return None if activity is None else _number(activity.get("gfx_activity"))

    def read_temperature_c(self) -> float | None:
        """Read the hottest spot, or the edge where a card has no such sensor."""
        sensors, metric = self.library.AmdSmiTemperatureType, self.library.AmdSmiTemperatureMetric
        for sensor in (sensors.HOTSPOT, sensors.EDGE):
            degrees = _number(self._ask("amdsmi_get_temp_metric", sensor, metric.CURRENT))
            if degrees is not None:
                return degrees
        return None

    def read_power_w(self) -> float | None:
        """Read the card's power, the current one where it is reported."""
        power = self._ask("amdsmi_get_power_info") or {}
        current = _number(power.get("current_socket_power"))  # newer cards report only this one
        return current or _number(power.get("average_socket_power"))

    def list_processes(self) -> dict[int, int | None] | None:
        """Give the bytes that each process holds.

        One that holds nothing at all is one of which the driver could not tell: what it uses of
        the card has memory at least for its queues.
        """
        listed = self._ask("amdsmi_get_gpu_process_list")
        if listed is None:
            return None
        return {process["pid"]: self._sum_pools(process["memory_usage"]) for process in listed}

    def _sum_pools(self, held: Mapping[str, Any]) -> int | None:
        """Sum what a process holds of the pools that count as this card's memory."""
        if not any(held.values()):
            return None
        pools = ("vram_mem", "gtt_mem") if self.identity.is_apu else ("vram_mem",)
        figures = [_number(held[pool]) for pool in pools]
        known = [int(figure) for figure in figures if figure is not None]
        return sum(known) if len(known) == len(figures) else None

    def _ask(self, call: str, *arguments: Any) -> Any:
        """Ask what is good to know; None where library, driver or card does not report it."""
        question = getattr(self.library, call, None)
        try:
            return None if question is None else question(self.handle, *arguments)
        except self.library.AmdSmiException:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class SysfsCard:
    """A card through the files of the amdgpu driver."""

    folder: Path
    identity: CardIdentity
    source: str = "sysfs"

    def read_pool(self, pool: Pool) -> PoolUse:
        """Read a pool in bytes."""
        try:
            return PoolUse(
                total_bytes=int((self.folder / f"mem_info_{pool}_total").read_text()),
                used_bytes=int((self.folder / f"mem_info_{pool}_used").read_text()),
            )
        except (OSError, ValueError) as exc:
            raise TelemetryError(
                f"cannot read the memory of {self.identity.name} in {self.folder}: {exc}; see the "
                "kernel log (amdgpu), and in a container mount /sys readable"
            ) from exc

    def read_utilisation_percent(self) -> float | None:
        """Read the share of time in which the card computed."""
        return _number(_read_text(self.folder / "gpu_busy_percent"))

    def read_temperature_c(self) -> float | None:
        """Read the hottest spot (the second sensor), or the edge."""
        return self._read_sensor(("temp2_input", "temp1_input"), 1e-3)

    def read_power_w(self) -> float | None:
        """Read the card's power, the current one where it is reported."""
        return self._read_sensor(("power1_input", "power1_average"), 1e-6)

    def list_processes(self) -> None:
        """Tell nothing: the kernel's files do not show what single processes hold."""

    def _read_sensor(self, names: tuple[str, ...], unit: float) -> float | None:
        """Read the first of these files that the card's hwmon folder has."""
        for name in names:
            for file in self.folder.glob(f"hwmon/hwmon*/{name}"):
                if (value := _number(_read_text(file))) is not None:
                    return value * unit
        return None


def list_smi_cards(library: Any) -> list[Card]:
    """List the cards that AMD SMI shows. Raises TelemetryError where it cannot."""
    try:
        handles = library.amdsmi_get_processor_handles()
    except library.AmdSmiException as exc:
        raise TelemetryError(f"cannot list the AMD GPUs: {explain(exc)}") from exc
    return [_smi_card(library, handle) for handle in handles]


def _smi_card(library: Any, handle: Any) -> SmiCard:
    """Identify a card by what it reports; one that is lost reports nothing, and keeps its place."""
    asic = _asked(library, "amdsmi_get_gpu_asic_info", handle) or {}
    bdf = _asked(library, "amdsmi_get_gpu_device_bdf", handle)
    driver = _asked(library, "amdsmi_get_gpu_driver_info", handle) or {}
    header = _asked(library, "amdsmi_get_gpu_metrics_header_info", handle) or {}
    places = _asked(library, "amdsmi_get_gpu_enumeration_info", handle) or {}
    hip_id, minor = (_number(places.get(place)) for place in ("hip_id", "drm_render"))
    return SmiCard(
        library=library,
        handle=handle,
        identity=CardIdentity(
            name=str(asic.get("market_name", "AMD GPU")),
            uuid=_asked(library, "amdsmi_get_gpu_device_uuid", handle),
            rocr_uuid=_rocr_uuid(str(asic.get("asic_serial", ""))),
            pci_id=bdf.lower() if bdf else None,
            driver_version=driver.get("driver_version"),
            is_apu=header.get("format_revision") in _APU_METRICS_FORMATS,
            hip_id=None if hip_id is None else int(hip_id),
            render_node=None if minor is None else f"renderD{int(minor)}",
        ),
    )


def _asked(library: Any, call: str, handle: Any) -> Any:
    question: Callable[[Any], Any] | None = getattr(library, call, None)
    try:
        return None if question is None else question(handle)
    except library.AmdSmiException:
        return None


def in_hip_order(cards: Sequence[Card]) -> tuple[int, ...]:
    """Give the cards' positions in the order of ROCr and HIP; as listed where that is not known."""
    ids = [card.identity.hip_id for card in cards]
    known = [hip_id for hip_id in ids if hip_id is not None]
    if len(set(known)) < len(ids):
        return tuple(range(len(cards)))
    return tuple(ids.index(hip_id) for hip_id in sorted(known))


def keep_given_cards(cards: Sequence[Card], root: Path) -> list[Card]:
    """Leave out the cards whose render node this container was not given.

    /sys shows every card of the machine, but ROCr only those that it can open. Where it can open
    none, all are kept: their memory can still be read.
    """
    return [card for card in cards if not _is_withheld(card, root)] or list(cards)


def _is_withheld(card: Card, root: Path) -> bool:
    node = card.identity.render_node
    return node is not None and not (root / "dev/dri" / node).exists()


def list_sysfs_cards(root: Path) -> list[Card]:
    """List the cards that the amdgpu driver holds, in the order of their numbers."""
    numbered = {
        int(match[1]): entry / "device"
        for entry in (root / "sys/class/drm").glob("card*")
        if (match := re.fullmatch(r"card(\d+)", entry.name))  # card0-DP-1 is a connector
    }
    version = _read_text(root / "sys/module/amdgpu/version") or None
    return [
        _sysfs_card(folder, version)
        for _, folder in sorted(numbered.items())
        if _read_text(folder / "vendor") == _AMD_VENDOR_ID
        and (folder / "mem_info_vram_total").exists()
    ]


def _sysfs_card(folder: Path, driver_version: str | None) -> SysfsCard:
    serial = _read_text(folder / "unique_id")
    render_nodes = (folder / "drm").glob("renderD*")
    place = folder.resolve().name
    return SysfsCard(
        folder=folder,
        identity=CardIdentity(
            name=_read_text(folder / "product_name")
            or f"AMD GPU {_read_text(folder / 'device') or 'of an unknown type'}",
            uuid=serial or None,
            rocr_uuid=_rocr_uuid(serial),
            pci_id=place if re.fullmatch(r"[0-9a-f]{4,}(:[0-9a-f]{2}){2}\.\d", place) else None,
            driver_version=driver_version,
            is_apu=_read_metrics_format(folder / "gpu_metrics") in _APU_METRICS_FORMATS,
            render_node=next((node.name for node in render_nodes), None),
        ),
    )


def _rocr_uuid(serial: str) -> str | None:
    digits = serial.lower().removeprefix("0x")
    is_given = re.fullmatch(r"[0-9a-f]{16}", digits) and int(digits, 16) != 0
    return f"GPU-{digits}" if is_given else None


def _number(value: Any) -> float | None:
    """Read a figure; AMD SMI says `N/A` or the type's largest number for one that it has not."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return None if number in _UNKNOWN else number


def _read_text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _read_metrics_format(file: Path) -> int | None:
    """Read the third byte of the table: a 16-bit size and the format come first."""
    try:
        head = file.read_bytes()[:3]
    except OSError:
        return None
    return head[2] if len(head) == 3 else None
