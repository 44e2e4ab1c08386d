"""AMD devices through AMD SMI, or the kernel's own files where its library is missing."""

import contextlib
import io
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from supervisor.core.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.host import MachineMemory, read_machine_memory
from supervisor.telemetry.port import DeviceInfo

Pool = Literal["vram", "gtt"]
"""The carve-out or the card's own memory, and the host's memory that the GPU can map."""

_AMD_VENDOR_ID = "0x1002"

# The kernel writes tables of format 2 and 3 for APUs only, and 1 for discrete cards (and for
# MI300A, whose memory is all VRAM): linux, drivers/gpu/drm/amd/include/kgd_pp_interface.h.
_APU_METRICS_FORMATS = (2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PoolUse:
    total_bytes: int
    used_bytes: int


class _Card(Protocol):
    """A GPU, whichever way it is read. `read_pool` raises TelemetryError."""

    @property
    def name(self) -> str: ...
    @property
    def uuid(self) -> str | None: ...
    @property
    def is_apu(self) -> bool: ...
    @property
    def source(self) -> str: ...
    def read_pool(self, pool: Pool) -> _PoolUse: ...


def open_amdsmi() -> Any | None:
    """Import and open AMD SMI; give None where it or its library is missing or does not open.

    Without its shared library `import amdsmi` prints to standard output and raises KeyError.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import amdsmi  # noqa: PLC0415 - an optional dependency that fails in several ways
    except (ImportError, OSError, KeyError, AttributeError):
        return None
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException:
        return None  # the kernel's files can still be read
    return amdsmi


class AmdMemory:
    """Reads AMD GPUs.

    `root` is where /sys is looked for, `load_library` gives the opened `amdsmi` module or None,
    and `machine_memory` bounds what an APU can still be given.
    """

    vendor: ClassVar[str] = "AMD"
    answers_at_once: ClassVar[bool] = False

    def __init__(
        self,
        *,
        root: Path = Path("/"),
        load_library: Callable[[], Any | None] = open_amdsmi,
        machine_memory: Callable[[], MachineMemory] = read_machine_memory,
    ) -> None:
        self._root = root
        self._load_library = load_library
        self._machine_memory = machine_memory
        self._library: Any | None = None
        self._cards: dict[str, _Card] = {}

    def devices(self) -> tuple[DeviceInfo, ...]:
        """List the cards as `gpu0`, `gpu1`, …; none where there is no AMD card."""
        self._library = self._library or self._load_library()
        cards = _list_smi_cards(self._library) if self._library else []
        cards = cards or _list_sysfs_cards(self._root)
        self._cards = {f"gpu{index}": card for index, card in enumerate(cards)}
        return tuple(
            DeviceInfo(
                device=device,
                name=card.name,
                vendor=self.vendor,
                total_bytes=self.read(device, taken_at=0.0, child_pids=()).total_bytes,
                uuid=card.uuid,
            )
            for device, card in self._cards.items()
        )

    def read(self, device: str, *, taken_at: float, child_pids: Collection[int]) -> MemorySample:
        """Read one card: its VRAM, and on an APU whose GTT is the larger pool, both together.

        The kernel lets an APU's programs use either pool then, but GTT is the host's memory, so
        that no more is free than MemAvailable. On a discrete card GTT is not device memory.
        What single processes hold is not told.
        """
        card = self._cards.get(device)
        if card is None:
            raise TelemetryError(f"{device!r} is not an AMD device that was found")
        vram = card.read_pool("vram")
        total, used, source = vram.total_bytes, vram.used_bytes, card.source
        free = total - used
        if card.is_apu:
            gtt = card.read_pool("gtt")
            if gtt.total_bytes > vram.total_bytes:
                total, used = total + gtt.total_bytes, used + gtt.used_bytes
                free = min(total - used, self._machine_memory().available_bytes)
                source = f"{source} (VRAM and GTT)"
        return MemorySample(
            device=device,
            taken_at=taken_at,
            total_bytes=total,
            used_bytes=used,
            free_bytes=max(0, free),
            source=source,
            children_bytes=None if child_pids else 0,
        )

    def close(self) -> None:
        """Shut AMD SMI down; errors are of no interest any more."""
        library, self._library, self._cards = self._library, None, {}
        if library is not None:
            with contextlib.suppress(library.AmdSmiException):
                library.amdsmi_shut_down()


@dataclass(frozen=True, slots=True, kw_only=True)
class _SmiCard:
    library: Any
    handle: Any
    name: str
    uuid: str | None
    is_apu: bool
    source: str = "amdsmi"

    def read_pool(self, pool: Pool) -> _PoolUse:
        # Of the calls that tell memory these two count in bytes in every version; others in MB.
        kind = self.library.AmdSmiMemoryType[pool.upper()]
        try:
            return _PoolUse(
                total_bytes=self.library.amdsmi_get_gpu_memory_total(self.handle, kind),
                used_bytes=self.library.amdsmi_get_gpu_memory_usage(self.handle, kind),
            )
        except self.library.AmdSmiException as exc:
            raise TelemetryError(
                f"cannot read the memory of {self.name}: {exc}; see `amd-smi list` and the "
                "kernel log (amdgpu)"
            ) from exc


def _list_smi_cards(library: Any) -> list[_Card]:
    try:
        return [
            _SmiCard(
                library=library,
                handle=handle,
                name=str(library.amdsmi_get_gpu_asic_info(handle)["market_name"]),
                uuid=library.amdsmi_get_gpu_device_uuid(handle),
                is_apu=_has_apu_metrics(library, handle),
            )
            for handle in library.amdsmi_get_processor_handles()
        ]
    except library.AmdSmiException:
        return []  # the kernel's files can still be read


def _has_apu_metrics(library: Any, handle: Any) -> bool:
    try:
        header = library.amdsmi_get_gpu_metrics_header_info(handle)
    except library.AmdSmiException:
        return False
    return header["format_revision"] in _APU_METRICS_FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class _SysfsCard:
    folder: Path
    name: str
    uuid: str | None
    is_apu: bool
    source: str = "sysfs"

    def read_pool(self, pool: Pool) -> _PoolUse:
        try:
            return _PoolUse(
                total_bytes=int((self.folder / f"mem_info_{pool}_total").read_text()),
                used_bytes=int((self.folder / f"mem_info_{pool}_used").read_text()),
            )
        except (OSError, ValueError) as exc:
            raise TelemetryError(
                f"cannot read the memory of {self.name} in {self.folder}: {exc}; see the kernel "
                "log (amdgpu), and in a container mount /sys readable"
            ) from exc


def _list_sysfs_cards(root: Path) -> list[_Card]:
    """List the cards that the amdgpu driver holds, in the order of their numbers."""
    numbered = {
        int(match[1]): entry / "device"
        for entry in (root / "sys/class/drm").glob("card*")
        if (match := re.fullmatch(r"card(\d+)", entry.name))  # card0-DP-1 is a connector
    }
    return [
        _SysfsCard(
            folder=folder,
            name=_read_text(folder / "product_name")
            or f"AMD GPU {_read_text(folder / 'device') or 'of an unknown type'}",
            uuid=_read_text(folder / "unique_id") or None,
            is_apu=_read_metrics_format(folder / "gpu_metrics") in _APU_METRICS_FORMATS,
        )
        for _, folder in sorted(numbered.items())
        if _read_text(folder / "vendor") == _AMD_VENDOR_ID
        and (folder / "mem_info_vram_total").exists()
    ]


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
