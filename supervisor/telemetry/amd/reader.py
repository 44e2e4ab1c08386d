"""AMD devices through AMD SMI, or the kernel's own files where its library is missing."""

import contextlib
import io
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import replace

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.amd.cards import (
    Card,
    in_hip_order,
    keep_given_cards,
    list_smi_cards,
    list_sysfs_cards,
)
from supervisor.telemetry.amd.faults import explain
from supervisor.telemetry.amd.visible import CHILD_VARIABLE, select_visible_amd
from supervisor.telemetry.holders import classify_holders, name_processes, sum_children
from supervisor.telemetry.host import MachineMemory, read_machine_memory
from supervisor.telemetry.port import DeviceInfo, DeviceReading, VendorAbsentError


def open_amdsmi() -> Any | None:
    """Import and open AMD SMI; give None where the bindings or their library are not installed.

    Raises TelemetryError with reason and remedy where they are and do not work. Without its
    shared library `import amdsmi` prints to standard output and raises KeyError.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import amdsmi  # noqa: PLC0415 - an optional dependency that fails in several ways
    except (ImportError, OSError, KeyError):
        return None
    except AttributeError as exc:
        raise TelemetryError(
            f"AMD SMI's library and its Python bindings do not fit together ({exc}); install the "
            "`amdsmi` package of the ROCm release that the library is of"
        ) from exc
    try:
        amdsmi.amdsmi_init()
    except amdsmi.AmdSmiException as exc:
        raise TelemetryError(f"cannot open AMD SMI: {explain(exc)}") from exc
    return amdsmi


class AmdReader:
    """Reads AMD GPUs.

    `environment` says which cards are visible, `root` is where /sys and /dev are looked for,
    `load_library` gives the opened `amdsmi` module or None, and `machine_memory` bounds what an
    APU can still be given. Where AMD SMI is missing or fails, the kernel's files are read.
    """

    vendor: ClassVar[str] = "AMD"

    def __init__(
        self,
        environment: Mapping[str, str] = os.environ,
        *,
        root: Path = Path("/"),
        load_library: Callable[[], Any | None] = open_amdsmi,
        machine_memory: Callable[[], MachineMemory] = read_machine_memory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environment = environment
        self._root = root
        self._load_library = load_library
        self._machine_memory = machine_memory
        self._clock = clock
        self._library: Any | None = None
        self._cards: dict[str, Card] = {}

    def devices(self) -> tuple[DeviceInfo, ...]:
        """List the visible cards as `gpu0`, `gpu1` and so on.

        Raises VendorAbsentError where there is no AMD card, and TelemetryError where AMD SMI
        fails and the kernel's files show no card either.
        """
        cards = self._list_cards()
        if not cards:
            raise VendorAbsentError("no AMD GPU is on this machine, or no amdgpu driver holds it")
        order = in_hip_order(cards)
        uuids = [cards[i].identity.rocr_uuid or "" for i in order]
        for_rocr, visible = select_visible_amd(uuids, self._environment)
        self._cards = {f"gpu{i}": cards[order[place]] for i, place in enumerate(visible)}
        return tuple(
            self._describe(f"gpu{i}", index=order[place], hip_index=for_rocr.index(place))
            for i, place in enumerate(visible)
        )

    def sample(
        self, device: str, child_pids: Collection[int] = (), former_pids: Collection[int] = ()
    ) -> MemorySample:
        """Read one card: its VRAM, and on an APU whose GTT is the larger pool, both together.

        The kernel lets an APU's programs use either pool then, but GTT is the host's memory, so
        that no more is free than MemAvailable. On a discrete card GTT is not device memory.
        """
        card = self._find(device)
        held = card.list_processes()
        sample = self._sample(device, card, sum_children(held, child_pids))
        return replace(sample, holders=classify_holders(held, child_pids, former_pids))

    def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        """Read everything: memory as `sample` does, load, and what every process holds."""
        card = self._find(device)
        held = card.list_processes()
        return DeviceReading(
            sample=self._sample(device, card, sum_children(held, child_pids)),
            utilisation_percent=card.read_utilisation_percent(),
            temperature_c=card.read_temperature_c(),
            power_w=card.read_power_w(),
            processes=name_processes(held),
        )

    def close(self) -> None:
        """Shut AMD SMI down; errors are of no interest any more."""
        library, self._library, self._cards = self._library, None, {}
        if library is not None:
            with contextlib.suppress(library.AmdSmiException):
                library.amdsmi_shut_down()

    def _list_cards(self) -> list[Card]:
        """List the cards that this container was given, by AMD SMI or by the kernel's files."""
        cards: list[Card] = []
        fault: TelemetryError | None = None
        try:
            self._library = self._library or self._load_library()
            cards = list_smi_cards(self._library) if self._library else []
        except TelemetryError as exc:
            fault = exc
        cards = cards or list_sysfs_cards(self._root)
        if fault is not None and not cards:
            raise fault
        return keep_given_cards(cards, self._root)

    def _find(self, device: str) -> Card:
        card = self._cards.get(device)
        if card is None:
            raise TelemetryError(f"{device!r} is not an AMD device that was found")
        return card

    def _describe(self, device: str, *, index: int, hip_index: int) -> DeviceInfo:
        card = self._cards[device]
        total_bytes, fault, is_shared = 0, None, False
        try:
            total_bytes = self.sample(device).total_bytes
            is_shared = _uses_gtt(card)
        except TelemetryError as exc:
            fault = str(exc)
        return DeviceInfo(
            device=device,
            name=card.identity.name,
            vendor=self.vendor,
            total_bytes=total_bytes,
            uuid=card.identity.uuid,
            index=index,
            pci_id=card.identity.pci_id,
            driver_version=card.identity.driver_version,
            shares_host_memory=is_shared,
            visible_as=((CHILD_VARIABLE, str(hip_index)),),
            fault=fault,
        )

    def _sample(self, device: str, card: Card, children_bytes: int | None) -> MemorySample:
        vram = card.read_pool("vram")
        total, used, source = vram.total_bytes, vram.used_bytes, card.source
        free = total - used
        if _uses_gtt(card):
            gtt = card.read_pool("gtt")
            total, used = total + gtt.total_bytes, used + gtt.used_bytes
            free = min(total - used, self._machine_memory().available_bytes)
            source = f"{source} (VRAM and GTT)"
        return MemorySample(
            device=device,
            taken_at=self._clock(),
            total_bytes=total,
            used_bytes=used,
            free_bytes=max(0, free),
            source=source,
            children_bytes=children_bytes,
        )


def _uses_gtt(card: Card) -> bool:
    if not card.identity.is_apu:
        return False
    return card.read_pool("gtt").total_bytes > card.read_pool("vram").total_bytes
