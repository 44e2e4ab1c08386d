"""How a server takes memory of the simulated GPUs that its environment shows it.

CUDA_VISIBLE_DEVICES  where: UUIDs, the memory divided among them in the shares of
`--tensor-split`; none where it is empty or `-1`
VRAM_BYTES            how much
VRAM_RELEASE_AFTER_S  seconds from its death until all is given back (`inf`: never)
VRAM_RELEASE_STEPS    in so many equal steps
VRAM_LISTED_AS        the process id that the driver lists it under, if not its own
"""

import os
from collections.abc import Sequence

from lab.drivers.nvidia import SimulatedGpu


def take_memory(arguments: Sequence[str]) -> tuple[SimulatedGpu | None, list[int]]:
    """Let this process hold what its environment says; returns the machine, and the devices."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if not visible or visible == "-1":
        return None, []
    gpu = SimulatedGpu.attached()
    known = [each.uuid.decode() for each in gpu.devices]
    devices = [known.index(uuid) for uuid in visible.split(",")]
    for device, share_bytes in zip(devices, _shares(arguments, len(devices)), strict=True):
        gpu.allocate(
            os.getpid(),
            share_bytes,
            device,
            release_after_s=float(os.environ.get("VRAM_RELEASE_AFTER_S", "0")),
            release_steps=int(os.environ.get("VRAM_RELEASE_STEPS", "1")),
            listed_as=int(os.environ.get("VRAM_LISTED_AS", "0")),
        )
    return gpu, devices


def _shares(arguments: Sequence[str], devices: int) -> list[int]:
    whole_bytes = int(os.environ.get("VRAM_BYTES", "0"))
    written = "1," * devices
    if "--tensor-split" in arguments:
        written = arguments[arguments.index("--tensor-split") + 1]
    shares = [float(share) for share in written.strip(",").split(",")]
    return [int(whole_bytes * share / sum(shares)) for share in shares]
