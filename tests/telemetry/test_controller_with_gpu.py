"""The whole controller on a machine with a simulated driver."""

import asyncio
import os
from typing import Any

import pytest
from lab.drivers.nvidia import GIB, SimulatedGpu

from tests.conftest import RunningController, StartController
from tests.patience import PATIENCE_S
from tests.telemetry.sampling import MEMORY_CALL, vendor_libraries


@pytest.fixture(autouse=True)
def machine_with_gpu(gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in gpu.environment().items():
        monkeypatch.setenv(name, value)


async def memory_of(controller: RunningController, device: str) -> dict[str, Any]:
    status = await controller.json("GET", "/status")
    (told,) = [each for each in status["memory"] if each["device"] == device]
    return dict(told)


async def test_status_tells_the_gpus_memory_without_loading_the_driver(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    gpu.set_used(3 * GIB, device=1)
    controller = await start_controller()

    told = await memory_of(controller, "gpu1")

    assert told["used_bytes"] == 3 * GIB
    assert vendor_libraries(os.getpid()) == []


async def test_controller_serves_on_while_the_driver_hangs_and_says_why(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    controller = await start_controller()
    gpu.hang(MEMORY_CALL)

    told = await memory_of(controller, "gpu0")
    assert "did not answer within" in told["error"]
    assert (await controller.json("GET", "/status"))["telemetry_problems"] == [told["error"]]

    gpu.heal()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if "error" not in await memory_of(controller, "gpu0"):
                return
            await asyncio.sleep(0.05)
