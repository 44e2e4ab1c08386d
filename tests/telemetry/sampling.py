"""What the tests of sampling share: waiting for what telemetry will say."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.amd.cards import list_sysfs_cards
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendor_sampler import SamplerPolicy
from tests.patience import PATIENCE_S

MEMORY_CALL = "nvmlDeviceGetMemoryInfo_v2"
FAST = SamplerPolicy(deadline_s=0.5, discovery_s=10.0, first_pause_s=0.02, longest_pause_s=0.2)

OpenTelemetry = Callable[..., Awaitable[Telemetry]]

without_amd_cards = pytest.mark.skipif(
    bool(list_sysfs_cards(Path("/"))), reason="the kernel's files show AMD cards of this machine"
)


def samplers() -> list[psutil.Process]:
    """The sampler processes of this process that live."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE
        and "supervisor.telemetry.sampler" in child.cmdline()
    ]


async def until_sampled(telemetry: Telemetry, device: str = "gpu0") -> MemorySample:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await telemetry.sample(device)
            except TelemetryError:
                await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def error_of(telemetry: Telemetry, device: str = "gpu0") -> str:
    with pytest.raises(TelemetryError) as caught:
        await telemetry.sample(device)
    return str(caught.value)


def vendor_libraries(pid: int) -> list[str]:
    """Name the vendors' libraries that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    names = ("libnvidia-ml", "libcuda", "libamd_smi", "librocm", "libamdhip")
    return [name for name in names if name in maps]
