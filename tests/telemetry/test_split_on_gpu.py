"""A model on another GPU than the first, and one that is divided over both."""

from typing import Any

import pytest
from lab.drivers.nvidia import GIB, NEVER_S, SimulatedGpu

from tests.telemetry.switching import StartOnGpu, live, profile, refusal

HALVES = (1.0, 1.0)


def use(gpu: SimulatedGpu) -> tuple[float, float]:
    return gpu.used_bytes(0) / GIB, gpu.used_bytes(1) / GIB


async def test_each_gpu_is_accounted_for_its_share(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(40, tensor_split=(3, 1)))

    await controller.switch_to("chat")

    assert use(gpu) == (30, 10)
    devices = (await controller.json("GET", "/gpu"))["devices"]
    assert [device["accounted_bytes"] / GIB for device in devices] == [30, 10, 0]
    pids = (await live(controller)).values()
    for device in devices[:2]:
        assert [each["pid"] for each in device["processes"] if each["ours"]] == [*pids]


async def test_start_waits_until_every_gpu_has_its_memory_back(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    """gpu1 alone would have room at once."""
    controller = await start_on_gpu(
        chat=profile(120, tensor_split=HALVES, release_after_s=0.3),
        other=profile(110, tensor_split=HALVES),
    )
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert report["seconds"]["confirming"] >= 0.3
    assert use(gpu) == (55, 55)


async def test_memory_that_stays_on_the_second_gpu_alone_starts_nothing(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        chat=profile(120, tensor_split=(1, 3), release_after_s=NEVER_S),
        other=profile(160, tensor_split=(1, 3), release_timeout_s=0.5),
    )
    await controller.switch_to("chat")

    error = await refusal(controller, "other")

    assert (error["code"], error["rolled_back"]) == ("memory_not_released", True)
    assert "gpu1: 110.0 GiB free, 120.0 GiB needed with a margin" in error["message"]
    assert "starting" not in error["switch"]["seconds"]
    assert [*await live(controller)] == ["chat"]


async def test_model_is_refused_where_one_gpu_has_no_room_for_its_share(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.set_used(190 * GIB, device=1)
    controller = await start_on_gpu(chat=profile(40, tensor_split=HALVES))

    error = await refusal(controller, "chat")

    assert error["code"] == "target_does_not_fit"
    assert (error["need_bytes"], error["available_bytes"]) == (20 * GIB, 10 * GIB)
    assert "needs about 20.0 GiB of gpu1, and gpu1 has 10.0 GiB free; put less" in error["message"]


async def test_only_what_is_on_the_same_gpu_gives_way(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(60), other=profile(70, main_gpu=1))
    await controller.switch_to("chat")

    await controller.switch_to("other")

    assert sorted(await live(controller)) == ["chat", "other"]
    assert use(gpu) == (60, 70)


async def test_unload_answers_once_every_gpu_has_its_memory_back(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        chat=profile(60, tensor_split=HALVES, release_after_s=0.2, release_steps=3)
    )
    await controller.switch_to("chat")

    await controller.json("POST", "/unload")

    assert use(gpu) == (0, 0)


@pytest.mark.parametrize("wish", [{"main_gpu": 2}, {"tensor_split": (1, 1, 1)}])
async def test_gpu_that_is_not_here_is_named_before_anything_stops(
    start_on_gpu: StartOnGpu, wish: dict[str, Any]
) -> None:
    controller = await start_on_gpu(chat=profile(10), other=profile(10, **wish))
    await controller.switch_to("chat")

    error = await refusal(controller, "other")

    assert error["code"] == "target_cannot_start"
    assert (
        "its profile names gpu2 (device, tensor_split, main_gpu), and no such device"
        in error["message"]
    )
    assert "found: gpu0 (GPU-0000aaaa-0000), gpu1 (GPU-1000aaaa-0000), host" in error["message"]
    assert [*await live(controller)] == ["chat"]
