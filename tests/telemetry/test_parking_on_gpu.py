"""Servers that give the memory of a simulated GPU up and live on: real processes, the whole way."""

import asyncio
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from lab.drivers.nvidia import GIB, DeviceState, MachineState, SimulatedGpu

from tests.conftest import RunningController
from tests.patience import PATIENCE_S
from tests.scripts.test_gpu_check import build_libcuda
from tests.telemetry.switching import VRAM_SERVER, StartOnGpu, live, order, profile
from tests.telemetry.vram_server import PARKED_HOST_BYTES

PARK = {"sleep": "/sleep?level=1", "wake": "/wake_up", "is_asleep": "/is_sleeping"}


def parking(held_gib: float, kept_gib: float = 0, **options: Any) -> dict[str, Any]:
    """A profile of a server that is told to sleep as vLLM is, and keeps something of the GPU."""
    env = {"VRAM_KEPT_BYTES": str(int(kept_gib * GIB))} | options.pop("env", {})
    python = [sys.executable, "-I", "-S", str(VRAM_SERVER)]
    options = {"parked_bytes": 2 * PARKED_HOST_BYTES} | options
    return profile(held_gib, env=env, **options) | {
        "engine": "command",
        "command": {"argv": [*python, "--host", "{socket}"], "park": PARK},
        "give_up_memory": "park",
    }


async def backends(controller: RunningController) -> dict[str, dict[str, Any]]:
    status = await controller.json("GET", "/status")
    return {each["model"]: each for each in status["backends"]}


async def test_a_server_is_parked_and_woken_and_its_memory_is_really_given_up(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=parking(60, kept_gib=2), other=profile(70))
    await controller.switch_to("chat")
    pid = (await live(controller))["chat"]

    report = await controller.switch_to("other")

    (parked,) = report["parked"]
    assert parked["device_bytes"] == 2 * GIB
    assert parked["host_bytes"] >= PARKED_HOST_BYTES
    assert gpu.used_bytes() == 72 * GIB
    told = (await backends(controller))["chat"]
    assert (told["state"], told["pid"]) == ("parked", pid)
    assert told["parked"]["device_bytes"] == 2 * GIB
    assert told["parked"]["host_bytes"] == parked["host_bytes"]
    assert told["parked"]["since_s"] >= 0

    report = await controller.switch_to("chat")

    assert report["was_parked"]
    assert (await live(controller)) == {"chat": pid}
    assert gpu.used_bytes() == 60 * GIB


async def test_what_keeps_too_much_is_stopped_after_all(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    slow: dict[str, Any] = {"release_timeout_s": 0.3}
    controller = await start_on_gpu(chat=parking(60, kept_gib=50), other=profile(70, **slow))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert report["parked"] == []
    assert list(await live(controller)) == ["other"]
    assert gpu.used_bytes() == 70 * GIB


async def test_what_cannot_sleep_is_stopped(start_on_gpu: StartOnGpu) -> None:
    controller = await start_on_gpu(
        chat=parking(60, env={"VRAM_SLEEP_FAULT": "sleep"}), other=profile(70)
    )
    await controller.switch_to("chat")
    await controller.switch_to("other")
    assert list(await live(controller)) == ["other"]


async def test_what_does_not_wake_is_ended_and_what_left_for_it_comes_back(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        chat=parking(60, env={"VRAM_SLEEP_FAULT": "wake"}), other=profile(70)
    )
    await controller.switch_to("chat")
    await controller.switch_to("other")

    answer = await order(controller, "chat")

    assert answer["error"]["code"] == "backend_died"
    assert answer["error"]["rolled_back"]
    assert "did not take its memory back" in answer["error"]["last_lines"][-1]
    assert list(await live(controller)) == ["other"]
    assert gpu.used_bytes() == 70 * GIB


async def test_one_that_dies_parked_is_gone_and_an_unload_stops_one(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        chat=parking(60, kept_gib=2), other=parking(70), vectors=profile(10, mode="embedding")
    )
    await controller.switch_to("chat")
    await controller.switch_to("other")
    await controller.switch_to("vectors")
    there = await live(controller)
    assert set(there) == {"chat", "other", "vectors"}

    os.kill(there["chat"], signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if "chat" not in await live(controller):
                break
            await asyncio.sleep(0.02)
    assert (await controller.json("GET", "/status"))["recoveries"] == []

    await controller.json("POST", "/unload", {})
    assert await live(controller) == {}
    assert not psutil.pid_exists(there["other"])
    assert gpu.used_bytes() == 0


@pytest.fixture
def driver_calls(tmp_path: Path, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A simulated libcuda that knows checkpoints; returns the file of what was called of it."""
    folder = tmp_path / "cuda"
    folder.mkdir()
    build_libcuda(folder)
    (folder / "parked").write_bytes(bytes(16))
    processes = MachineState.devices.offset + DeviceState.processes.offset
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{folder}:{gpu.environment()['LD_LIBRARY_PATH']}")
    monkeypatch.setenv("FAKE_CUDA_LAYOUT", f"{ctypes.sizeof(MachineState)} {processes}")
    monkeypatch.setenv("FAKE_CUDA_STATE", str(folder / "parked"))
    monkeypatch.setenv("FAKE_CUDA_CALLS", str(folder / "calls"))
    return folder / "calls"


def checkpointed(held_gib: float) -> dict[str, Any]:
    held: dict[str, Any] = {"parked_bytes": 2 * PARKED_HOST_BYTES}
    return profile(held_gib, **held) | {"give_up_memory": "park"}


def calls_on(pid: int, calls: Path) -> list[str]:
    """What was called for a process, without what all calls begin with."""
    lines = calls.read_text().splitlines() if calls.exists() else []
    called = [line.split(" ") for line in lines if line.endswith(f" {pid}")]
    return [name.removeprefix("cuCheckpointProcess") for name, _ in called]


async def test_the_driver_parks_a_server_that_has_no_way_of_its_own(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu, driver_calls: Path
) -> None:
    controller = await start_on_gpu(
        chat=checkpointed(60), other=profile(70), switch={"cuda_checkpoint": True}
    )
    await controller.switch_to("chat")
    pid = (await live(controller))["chat"]

    await controller.switch_to("other")

    assert calls_on(pid, driver_calls) == ["Lock", "Checkpoint"]
    assert (await backends(controller))["chat"]["state"] == "parked"
    assert gpu.used_bytes() == 70 * GIB

    report = await controller.switch_to("chat")

    assert report["was_parked"]
    assert calls_on(pid, driver_calls) == ["Lock", "Checkpoint", "Restore", "Unlock"]
    assert await live(controller) == {"chat": pid}
    assert gpu.used_bytes() == 60 * GIB


async def test_what_the_driver_cannot_park_is_unlocked_and_stopped(
    start_on_gpu: StartOnGpu, driver_calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuCheckpointProcessCheckpoint 801")
    controller = await start_on_gpu(
        chat=checkpointed(60), other=profile(70), switch={"cuda_checkpoint": True}
    )
    await controller.switch_to("chat")
    pid = (await live(controller))["chat"]

    await controller.switch_to("other")

    assert calls_on(pid, driver_calls) == ["Lock", "Checkpoint", "Unlock"]
    assert list(await live(controller)) == ["other"]
