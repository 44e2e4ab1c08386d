"""Switches on a simulated GPU that cannot begin, or that its driver leaves in the lurch."""

import asyncio
from pathlib import Path

import pytest
from lab.drivers.nvidia import GIB, SimulatedGpu

from tests.conftest import RunningController
from tests.patience import PATIENCE_S
from tests.telemetry.sampling import MEMORY_CALL, samplers
from tests.telemetry.switching import (
    StartOnGpu,
    live,
    profile,
    refusal,
    switch_in_phase,
    tenant,
)

LIB_RM_VERSION_MISMATCH = 18
UNSEEN_PID = 2**22 + 5  # above what a kernel gives (proc(5), pid_max)


async def test_lost_gpu_confirms_nothing(start_on_gpu: StartOnGpu, gpu: SimulatedGpu) -> None:
    late = profile(60, release_after_s=0.3, release_timeout_s=0.5)
    controller = await start_on_gpu(chat=late, other=profile(70, release_timeout_s=0.5))
    await controller.switch_to("chat")

    async with switch_in_phase(controller, "other", "confirming") as answer:
        gpu.lose(0)
    error = answer.result()["error"]

    assert (error["code"], error["rolled_back"]) == ("memory_not_released", False)
    assert "memory cannot be read" in error["message"]
    assert "fallen off the bus" in error["message"]
    assert await live(controller) == {}


async def test_lost_gpu_that_comes_back_in_time_costs_the_wait_only(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(60, release_after_s=0.3), other=profile(70))
    await controller.switch_to("chat")

    async with switch_in_phase(controller, "other", "confirming") as answer:
        gpu.lose(0)
        await until_told(controller, "fallen off the bus")
        gpu.heal()

    assert answer.result()["outcome"] == "switched"
    assert gpu.used_bytes() == 70 * GIB


async def until_told(controller: RunningController, words: str) -> None:
    """Wait until the running switch says what it waits for."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            now = (await controller.json("GET", "/switches"))["switches"][0]
            if words in (now.get("waiting_for") or ""):
                return


async def test_driver_that_hangs_while_release_is_awaited_costs_a_sampler_and_no_more(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(60, release_after_s=0.2), other=profile(70))
    await controller.switch_to("chat")
    (hung,) = samplers()

    async with switch_in_phase(controller, "other", "confirming") as answer:
        gpu.hang(MEMORY_CALL)
        await until_told(controller, "did not answer within")
        gpu.heal()
    report = answer.result()

    assert report["outcome"] == "switched"
    assert report["seconds"]["confirming"] >= 0.5
    assert report["memory"]["released"]["used_bytes"] == 0
    assert hung.pid not in [each.pid for each in samplers()]


async def test_driver_that_hangs_for_good_ends_the_switch_in_time(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    late = profile(60, release_after_s=0.3, release_timeout_s=0.8)
    controller = await start_on_gpu(chat=late, other=profile(70, release_timeout_s=0.8))
    await controller.switch_to("chat")

    async with (
        asyncio.timeout(PATIENCE_S),
        switch_in_phase(controller, "other", "confirming") as answer,
    ):
        gpu.hang(MEMORY_CALL)
    error = answer.result()["error"]
    gpu.heal()

    assert (error["code"], error["rolled_back"]) == ("memory_not_released", False)
    assert "memory cannot be read" in error["message"]
    assert error["switch"]["seconds"]["confirming"] >= 0.8


@pytest.mark.parametrize("policy", ["refuse", "proceed"])
async def test_gpu_that_cannot_be_read_is_switched_to_only_where_the_operator_says_so(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu, policy: str
) -> None:
    target = profile(70, release_timeout_s=0.2, on_unconfirmed=policy)
    controller = await start_on_gpu(chat=profile(60), other=target)
    await controller.switch_to("chat")
    before = await live(controller)
    gpu.lose(0)

    if policy == "proceed":
        await controller.switch_to("other")
        assert list(await live(controller)) == ["other"]
        return
    error = await refusal(controller, "other")

    assert error["code"] == "telemetry_lost"
    assert "fallen off the bus" in error["message"]
    assert await live(controller) == before


async def test_driver_that_does_not_open_refuses_switches_and_stops_nothing(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlInitWithFlags", LIB_RM_VERSION_MISMATCH)
    controller = await start_on_gpu(chat=profile(0.001, device="cpu"), other=profile(70))
    await controller.switch_to("chat")
    before = await live(controller)

    error = await refusal(controller, "other")

    assert error["code"] == "telemetry_lost"
    assert "reboot the node, or restart the pod" in error["message"]
    assert await live(controller) == before


async def test_driver_that_opens_later_is_switched_to_without_a_restart(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlInitWithFlags", LIB_RM_VERSION_MISMATCH)
    controller = await start_on_gpu(chat=profile(70))
    await refusal(controller, "chat")
    gpu.heal()

    async with asyncio.timeout(PATIENCE_S):
        while (await controller.json("GET", "/gpu"))["telemetry_problems"]:
            pass
    await controller.switch_to("chat")

    assert gpu.used_bytes() == 70 * GIB


async def test_target_that_cannot_fit_is_refused_with_the_arithmetic_before_anything_stops(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(40), other=profile(70))
    await controller.switch_to("chat")
    before = await live(controller)

    with tenant() as pid:
        gpu.allocate(pid, 35 * GIB)
        error = await refusal(controller, "other")

    assert error["code"] == "target_does_not_fit"
    assert (error["need_bytes"], error["available_bytes"]) == (70 * GIB, 65 * GIB)
    assert "gpu0 has 25.0 GiB free, and 65.0 GiB once 'chat' has stopped" in error["message"]
    assert f"free memory that others hold: sleep (pid {pid}) 35.0 GiB" in error["message"]
    assert await live(controller) == before
    assert "stopping" not in error["switch"]["seconds"]


async def test_settings_that_would_fit_are_told(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu, models_dir: Path
) -> None:
    """Of 100 GiB 1 GiB is free: enough for the model, and not for so many slots of its context."""
    gpu.set_used(99 * GIB)
    wide = profile(0.5) | {"parallel": 64, "ctx_size": 32768}
    del wide["memory"]
    controller = await start_on_gpu(chat=wide)

    error = await refusal(controller, "chat")

    assert error["code"] == "target_does_not_fit"
    assert "it would fit with" in error["message"]
    settings = {each.partition(":")[0] for each in error["fits_with"]}
    assert settings >= {"ctx_size", "parallel"}


async def test_process_of_another_container_is_named_by_its_id(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.set_used(50 * GIB)
    gpu.add_process(UNSEEN_PID, 50 * GIB)
    controller = await start_on_gpu(chat=profile(70))

    error = await refusal(controller, "chat")

    named = f"a process that is not seen from here (pid {UNSEEN_PID}) 50.0 GiB"
    assert f"free memory that others hold: {named}" in error["message"]


async def test_fallback_profile_runs_where_the_gpu_has_no_room(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.set_used(60 * GIB)
    wanted = profile(70, mode="embedding", fallback_profile="vectors-on-cpu")
    on_cpu = profile(0.001, mode="embedding", device="cpu")
    controller = await start_on_gpu(vectors=wanted, further={"vectors-on-cpu": on_cpu})

    report = await controller.switch_to("vectors")

    assert report["profile"] == "vectors-on-cpu"
    assert "needs about 70.0 GiB" in report["fell_back"]
    assert "gpu0 has 40.0 GiB free" in report["fell_back"]
    (backend,) = (await controller.json("GET", "/status"))["backends"]
    assert backend["device"] == "host"
    assert gpu.used_bytes() == 60 * GIB


async def test_fallback_leaves_the_gpus_server_alone(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    wanted = profile(120, mode="embedding", fallback_profile="vectors-on-cpu")
    on_cpu = profile(0.001, mode="embedding", device="cpu")
    controller = await start_on_gpu(
        chat=profile(60), vectors=wanted, further={"vectors-on-cpu": on_cpu}
    )
    await controller.switch_to("chat")
    (server,) = (await live(controller)).values()

    await controller.switch_to("vectors")

    assert (await live(controller))["chat"] == server
    assert gpu.used_bytes() == 60 * GIB
