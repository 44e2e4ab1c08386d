"""Residents on a simulated GPU: who makes room beside a tenant that nobody of ours may touch."""

from typing import Any

from lab.drivers.nvidia import GIB, SimulatedGpu

from tests.conftest import RunningController
from tests.gateway.conftest import until
from tests.telemetry.switching import StartOnGpu, live, order, profile, refusal, tenant

SHARED = {"gpu0": {"exclusive": False}, "host": {"exclusive": False}}


async def told(controller: RunningController, model: str) -> dict[str, Any]:
    """What `/status` says of a model's backend."""
    status = await controller.json("GET", "/status")
    return next(dict(each) for each in status["backends"] if each["model"] == model)


async def test_idle_resident_makes_the_room_that_a_tenant_has_taken(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    """Of 100 GiB the tenant holds 50: the budget would carry both models, the GPU does not."""
    controller = await start_on_gpu(devices=SHARED, chat=profile(30), other=profile(40))
    with tenant() as pid:
        gpu.allocate(pid, 50 * GIB)
        await controller.switch_to("chat")
        report = await controller.switch_to("other")

        assert report["memory"]["before"]["free_bytes"] == 20 * GIB
        assert set(await live(controller)) == {"other"}
        assert gpu.held_bytes(pid) == 50 * GIB


async def test_cheapest_resident_goes_and_the_pinned_one_stays(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        devices=SHARED,
        models={"vectors": {"pinned": True}},
        vectors=profile(5, mode="embedding"),
        chat=profile(60),
        other=profile(50),
    )
    await controller.switch_to("vectors")
    kept = (await live(controller))["vectors"]
    await controller.switch_to("chat")
    assert (await told(controller, "chat"))["gives_way"] == 1
    assert (await told(controller, "vectors"))["gives_way"] is None

    await controller.switch_to("other")
    assert (await live(controller)).get("vectors") == kept
    assert set(await live(controller)) == {"vectors", "other"}
    assert gpu.used_bytes() == 55 * GIB


async def test_what_would_need_a_pinned_models_room_is_refused_and_stops_nobody(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        devices=SHARED,
        models={"vectors": {"pinned": True}},
        vectors=profile(30, mode="embedding"),
        chat=profile(20),
        other=profile(80),
    )
    await controller.switch_to("vectors")
    await controller.switch_to("chat")
    before = await live(controller)

    error = await refusal(controller, "other")

    assert (error["code"], error["pinned"]) == ("pinned_in_the_way", ["vectors"])
    assert "needs about 80.0 GiB of gpu0, where 'vectors' stays (pinned)" in error["message"]
    assert await live(controller) == before
    await controller.json("POST", "/unload", {"model_name": "vectors"})
    assert (await order(controller, "other"))["outcome"] == "switched"
    assert gpu.used_bytes() == 80 * GIB


async def test_idle_model_gives_its_memory_to_the_tenant_and_the_others_stay(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(
        devices={"gpu0": {"budget_bytes": 60 * GIB}, "host": {}},
        models={"chat": {"idle_unload_s": 0.3}},
        chat=profile(40),
        vectors=profile(5, mode="embedding"),
    )
    with tenant() as pid:
        gpu.allocate(pid, 30 * GIB)
        await controller.switch_to("vectors")
        kept = await live(controller)
        await controller.switch_to("chat")

        async def is_gone() -> bool:
            if await live(controller) != kept:  # looked at first: a switch may begin in between
                return False
            return bool((await controller.json("GET", "/status"))["switch"] is None)

        await until(is_gone)
        (last, *_) = (await controller.json("GET", "/switches"))["switches"]
        assert (last["requested_by"], last["outcome"]) == ("idleness", "switched")
        assert gpu.used_bytes() == 35 * GIB
        assert gpu.held_bytes(pid) == 30 * GIB
