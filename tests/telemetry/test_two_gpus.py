"""Full switches on two GPUs of each vendor: where models go, and what happens on the other GPU."""

import asyncio
import os
import signal

import psutil
from lab.drivers.amd import SimulatedAmd
from lab.drivers.nvidia import GIB, SimulatedGpu

from tests.conftest import RunningController
from tests.patience import PATIENCE_S
from tests.telemetry.switching import StartOnGpu, live, profile, refusal

TwoGpus = SimulatedGpu | SimulatedAmd

ANYWHERE = "gpu"
DIES = {"VRAM_BYTES": str(500 * GIB)}
"""What makes a server die of its start: no GPU has that much."""


def use(driver: TwoGpus) -> tuple[float, float]:
    return driver.used_bytes(0) / GIB, driver.used_bytes(1) / GIB


async def devices(controller: RunningController) -> dict[str, str]:
    """Give the device of each server that runs, by model."""
    status = await controller.json("GET", "/status")
    return {each["model"]: each["device"] for each in status["backends"]}


async def ask(controller: RunningController, model: str) -> int:
    """Ask a model something, as a client does, and return the status of the answer."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    url = f"{controller.url}/v1/chat/completions"
    async with controller.client.post(url, json=body) as answer:
        await answer.read()
        return answer.status


async def ended(controller: RunningController) -> list[tuple[str, str]]:
    """Give the model and outcome of each switch that ended, the first one first."""
    switches = (await controller.json("GET", "/switches"))["switches"]
    return [(each["model"], each["outcome"]) for each in reversed(switches)]


async def until_serving(controller: RunningController, model: str, device: str) -> None:
    """Wait until a model is live on a device, behind the death of the server that it had."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            status = await controller.json("GET", "/status")
            if (model, device, "ready") in {
                (each["model"], each["device"], each["state"]) for each in status["backends"]
            }:
                return
            await asyncio.sleep(0.02)


async def kill(controller: RunningController, model: str) -> None:
    """Let a server die, and wait until the controller has noticed."""
    pid = (await live(controller))[model]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if pid not in (await live(controller)).values():
                return
            await asyncio.sleep(0.02)


async def test_two_models_are_live_at_once_by_request_and_none_gives_way(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(
        chat=profile(60, device=ANYWHERE), other=profile(70, device=ANYWHERE), auto_switch=True
    )

    assert await ask(controller, "chat") == 200
    first = await live(controller)
    answers = [ask(controller, model) for model in ("other", "chat") * 5]
    assert await asyncio.gather(*answers) == [200] * 10

    assert use(two_gpus) == (60, 70)
    assert (await live(controller))["chat"] == first["chat"]
    assert await ended(controller) == [("chat", "switched"), ("other", "switched")]


async def test_third_goes_beside_the_one_that_leaves_it_room(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(
        chat=profile(60, device=ANYWHERE),
        other=profile(70, device=ANYWHERE),
        vectors=profile(35, mode="embedding", device=ANYWHERE),
        auto_switch=True,
    )
    for model in ("chat", "other", "vectors"):
        await controller.switch_to(model)

    assert await devices(controller) == {"chat": "gpu0", "other": "gpu1", "vectors": "gpu0"}
    assert use(two_gpus) == (95, 70)


async def test_each_server_sees_its_gpus_alone(start_on_two: StartOnGpu, two_gpus: TwoGpus) -> None:
    second = two_gpus.devices[1].uuid.decode()
    controller = await start_on_two(
        chat=profile(30, device="gpu1"),
        other=profile(30, device=[second, "gpu0"], tensor_split=(2, 1)),
        vectors=profile(1, mode="embedding", device="cpu"),
    )
    is_amd = isinstance(two_gpus, SimulatedAmd)
    variable = "HIP_VISIBLE_DEVICES" if is_amd else "CUDA_VISIBLE_DEVICES"
    names = ["0", "1"] if is_amd else ["GPU-0000aaaa-0000", second]

    for model in ("chat", "other", "vectors"):
        await controller.switch_to(model)

    shown = {
        model: psutil.Process(pid).environ()[variable]
        for model, pid in (await live(controller)).items()
    }
    assert shown == {"chat": names[1], "other": f"{names[1]},{names[0]}", "vectors": "-1"}
    assert use(two_gpus) == (10, 50)
    accounted = (await controller.json("GET", "/gpu"))["devices"]
    assert [device["accounted_bytes"] / GIB for device in accounted[:2]] == [10, 50]


async def test_what_needs_both_gpus_takes_the_place_of_all_that_is_on_them(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(
        chat=profile(60, device=ANYWHERE, release_after_s=0.3),
        other=profile(70, device=ANYWHERE, release_after_s=0.1),
        vectors=profile(150, mode="embedding", device=["gpu0", "gpu1"]),
    )
    await controller.switch_to("chat")
    await controller.switch_to("other")

    report = await controller.switch_to("vectors")

    assert report["seconds"]["confirming"] >= 0.3
    assert [*await live(controller)] == ["vectors"]
    assert use(two_gpus) == (75, 75)

    await controller.switch_to("chat")
    await controller.json("GET", "/gpu")  # a driver notices deaths when it is asked
    assert use(two_gpus) == (60, 0)


async def test_failed_switch_brings_back_what_it_stopped_where_that_was(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(
        chat=profile(90, device="gpu0"),
        other=profile(70, device=ANYWHERE, release_after_s=0.1),
        vectors=profile(80, mode="embedding", device="gpu1", env=DIES),
    )
    await controller.switch_to("chat")
    await controller.switch_to("other")

    error = await refusal(controller, "vectors")

    assert (error["code"], error["rolled_back"]) == ("backend_died", True)
    assert await devices(controller) == {"chat": "gpu0", "other": "gpu1"}
    assert use(two_gpus) == (90, 70)


async def test_dead_server_comes_back_where_it_was(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(
        chat=profile(60, device=ANYWHERE, release_after_s=0.3), other=profile(70, device="gpu1")
    )
    await controller.switch_to("chat")

    await kill(controller, "chat")
    await until_serving(controller, "chat", "gpu0")

    assert use(two_gpus) == (60, 0)


async def test_model_of_a_gpu_that_is_lost_goes_on_on_the_other(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(chat=profile(60, device=ANYWHERE), other=profile(20))
    await controller.switch_to("chat")

    two_gpus.lose(0)
    await kill(controller, "chat")
    await until_serving(controller, "chat", "gpu1")

    error = await refusal(controller, "other")
    assert error["code"] == "telemetry_lost"
    two_gpus.heal()


async def test_refusal_says_that_no_gpu_can_take_it_and_the_fallback_is_tried(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    controller = await start_on_two(
        chat=profile(120, device=ANYWHERE),
        other=profile(130, device=ANYWHERE, fallback_profile="small"),
        further={"small": profile(40, device=ANYWHERE)},
    )

    error = await refusal(controller, "chat")
    assert error["code"] == "target_does_not_fit"
    assert error["message"].endswith("none of gpu0, gpu1 can take it")

    two_gpus.set_used(70 * GIB, device=0)
    report = await controller.switch_to("other")
    assert report["profile"] == "small"
    assert await devices(controller) == {"other": "gpu1"}


async def test_foreign_tenant_on_one_gpu_sends_everything_to_the_other(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    two_gpus.set_used(95 * GIB, device=0)
    controller = await start_on_two(
        chat=profile(60, device=ANYWHERE), other=profile(70, device=ANYWHERE), auto_switch=True
    )
    assert await ask(controller, "chat") == 200

    assert await ask(controller, "other") == 200

    assert await devices(controller) == {"other": "gpu1"}
    assert two_gpus.used_bytes(0) == 95 * GIB


async def test_floor_that_rises_with_each_exit_refuses_nothing(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    """As AMD's driver does (llama.cpp#24330); `chat` fits by less than its margin.

    `vectors` stays all the time, while what was there before it came is further and further off.
    """
    rising = {"VRAM_FLOOR_BYTES": str(50 * 2**20)}
    controller = await start_on_two(
        vectors=profile(10, mode="embedding", device="gpu0", env=rising),
        chat=profile(89, device="gpu0", env=rising, release_after_s=0.1),
        other=profile(20, device="gpu0", env=rising, release_after_s=0.1),
    )
    await controller.switch_to("vectors")
    for model in ("other", "chat") * 3:
        await controller.switch_to(model)
    assert "vectors" in await live(controller)

    await controller.json("POST", "/unload")

    assert use(two_gpus) == (7 * 50 / 1024, 0)
    assert [outcome for _, outcome in await ended(controller)] == ["switched"] * 8


async def test_floor_that_rose_unseen_is_no_reason_to_refuse(
    start_on_two: StartOnGpu, two_gpus: TwoGpus
) -> None:
    """The small one starts while the large one's memory is held still: the floor is not seen."""
    rising = {"VRAM_FLOOR_BYTES": str(50 * 2**20)}
    controller = await start_on_two(
        chat=profile(79, device="gpu0", env=rising, release_after_s=0.5),
        other=profile(15, device="gpu0", env=rising),
        vectors=profile(99.8, mode="embedding", device="gpu0", release_timeout_s=1.0),
        devices={"gpu0": {"exclusive": True}},
    )
    for model in ("chat", "other", "chat", "other"):
        await controller.switch_to(model)
    await asyncio.sleep(0)

    await controller.switch_to("vectors")

    assert [*await live(controller)] == ["vectors"]
