"""How a server takes memory of the simulated GPUs that its environment shows it.

CUDA_VISIBLE_DEVICES  where, on a machine of NVIDIA's: UUIDs, the memory divided among them in
                      the shares of `--tensor-split`; none where it is empty or `-1`
HIP_VISIBLE_DEVICES   the same on one of AMD's, by their numbers
VRAM_BYTES            how much; what a device has no room for ends the process, as the real
                      driver would
VRAM_RELEASE_AFTER_S  seconds from its death until all is given back (`inf`: never)
VRAM_RELEASE_STEPS    in so many equal steps
VRAM_FLOOR_BYTES      what is not given back at all: each start raises the floor of a device
VRAM_LISTED_AS        the process id that the driver lists it under, if not its own
VRAM_BOOK             a file to write each share into, with what was free before it
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.drivers import amd
from lab.drivers.nvidia import SimulatedGpu
from lab.drivers.shared import SimulatedDriver


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A line of the book: what a process took of a device (by position), at a wall-clock time."""

    at: float
    pid: int
    device: int
    taken_bytes: int
    free_bytes: int

    @property
    def had_room(self) -> bool:
        """Whether it was free."""
        return self.taken_bytes <= self.free_bytes


def take_memory(arguments: Sequence[str]) -> tuple[SimulatedDriver | None, list[int]]:
    """Let this process hold what its environment says; returns the machine, and the devices."""
    is_amd = amd.STATE_VARIABLE in os.environ
    visible = os.environ.get("HIP_VISIBLE_DEVICES" if is_amd else "CUDA_VISIBLE_DEVICES", "")
    if not visible or visible == "-1":
        return None, []
    gpu: SimulatedDriver
    if is_amd:
        gpu, devices = amd.SimulatedAmd.attached(), [int(number) for number in visible.split(",")]
    else:
        gpu = SimulatedGpu.attached()
        known = [each.uuid.decode() for each in gpu.devices]
        devices = [known.index(uuid) for uuid in visible.split(",")]
    for device, share_bytes in zip(devices, _shares(arguments, len(devices)), strict=True):
        _take(gpu, device, share_bytes)
    return gpu, devices


def read_book(file: Path) -> list[Taken]:
    """Return the lines of a book, the oldest first."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [Taken(**json.loads(line)) for line in lines]


def _take(gpu: SimulatedDriver, device: int, share_bytes: int) -> None:
    total_bytes = int(gpu.devices[device].total_bytes)
    taken = Taken(
        at=time.time(),
        pid=os.getpid(),
        device=device,
        taken_bytes=share_bytes,
        free_bytes=total_bytes - gpu.used_bytes(device),
    )
    if book := os.environ.get("VRAM_BOOK"):
        with Path(book).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(asdict(taken)) + "\n")
    if not taken.had_room:
        sys.exit(f"out of memory: {taken}")
    gpu.devices[device].used_bytes += int(os.environ.get("VRAM_FLOOR_BYTES", "0"))
    gpu.allocate(
        taken.pid,
        share_bytes,
        device,
        release_after_s=float(os.environ.get("VRAM_RELEASE_AFTER_S", "0")),
        release_steps=int(os.environ.get("VRAM_RELEASE_STEPS", "1")),
        listed_as=int(os.environ.get("VRAM_LISTED_AS", "0")),
    )


def _shares(arguments: Sequence[str], devices: int) -> list[int]:
    whole_bytes = int(os.environ.get("VRAM_BYTES", "0"))
    written = "1," * devices
    if "--tensor-split" in arguments:
        written = arguments[arguments.index("--tensor-split") + 1]
    shares = [float(share) for share in written.strip(",").split(",")]
    return [int(whole_bytes * share / sum(shares)) for share in shares]
