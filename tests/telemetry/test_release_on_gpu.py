"""Full switches on a simulated GPU: when the memory of a stopped server counts as released."""

import asyncio
import os
import signal
from typing import Any

import psutil
import pytest
from lab.drivers.nvidia import GIB, SimulatedGpu

from tests.patience import PATIENCE_S
from tests.telemetry.switching import (
    StartOnGpu,
    live,
    profile,
    refusal,
    switch_in_phase,
    tenant,
)

HELD_LONG_S = 30.0


def confirming_s(report: Any) -> float:
    return float(report["seconds"]["confirming"])


async def test_memory_given_back_at_once_costs_three_samples(start_on_gpu: StartOnGpu) -> None:
    controller = await start_on_gpu(chat=profile(60), other=profile(70))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert confirming_s(report) >= 0.010
    assert report["memory"]["samples"] == 3
    assert report["memory"]["before"]["used_bytes"] == 60 * GIB
    assert report["memory"]["released"]["used_bytes"] == 0
    assert report["memory"]["after"]["children_bytes"] == 70 * GIB


async def test_start_waits_for_memory_that_comes_back_late(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(60, release_after_s=1.5), other=profile(70))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert confirming_s(report) >= 1.5
    assert report["memory"]["released"]["used_bytes"] == 0
    assert gpu.used_bytes() == 70 * GIB


async def test_start_waits_for_no_more_than_it_needs(start_on_gpu: StartOnGpu) -> None:
    """Of 100 GiB 40 are free; four steps of 15 follow, and 75 with the margin take three."""
    stepwise = profile(60, release_after_s=2.0, release_steps=4)
    controller = await start_on_gpu(chat=stepwise, other=profile(75))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert confirming_s(report) >= 1.5
    assert report["memory"]["released"]["free_bytes"] >= 85 * GIB
    assert "75.0 GiB needed" in report["memory"]["reason"]


async def test_memory_that_stays_fails_closed_and_the_rollback_with_it(
    start_on_gpu: StartOnGpu,
) -> None:
    stays = profile(60, release_after_s=HELD_LONG_S, release_timeout_s=0.3)
    controller = await start_on_gpu(chat=stays, other=profile(70, release_timeout_s=0.3))
    await controller.switch_to("chat")

    error = await refusal(controller, "other")

    assert (error["code"], error["rolled_back"]) == ("memory_not_released", False)
    assert error["message"].startswith("not confirmed within 0.")
    assert "gpu0: 40.0 GiB free, 70.0 GiB needed with a margin of 256.0 MiB" in error["message"]
    assert "60.0 GiB used, 0 B expected; and the rollback failed: not" in error["message"]
    assert "starting" not in error["switch"]["seconds"]
    assert await live(controller) == {}


async def test_rollback_starts_what_still_fits_beside_memory_that_stays(
    start_on_gpu: StartOnGpu,
) -> None:
    stays = profile(30, release_after_s=HELD_LONG_S, release_timeout_s=0.3)
    controller = await start_on_gpu(chat=stays, other=profile(80, release_timeout_s=0.3))
    await controller.switch_to("chat")
    before = await live(controller)

    error = await refusal(controller, "other")

    assert (error["code"], error["rolled_back"]) == ("memory_not_released", True)
    after = await live(controller)
    assert list(after) == ["chat"]
    assert after != before


async def test_tenant_that_grows_during_the_wait_is_told_apart_and_named(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    late = profile(60, release_after_s=0.3)
    controller = await start_on_gpu(chat=late, other=profile(70, release_timeout_s=1.0))

    with tenant() as pid:
        gpu.allocate(pid, 2 * GIB)
        await controller.switch_to("chat")
        async with switch_in_phase(controller, "other", "confirming") as answer:
            gpu.remove_process(pid)
            gpu.allocate(pid, 38 * GIB)
        error = answer.result()["error"]

    assert error["code"] == "memory_not_released"
    assert "62.0 GiB free, 70.0 GiB needed" in error["message"]
    named = f"others hold memory, 36.0 GiB more than before: sleep (pid {pid}) 38.0 GiB"
    assert named in error["message"]


async def test_memory_that_a_tenant_gives_back_does_not_pass_for_ours(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    """Use falls below what it was before our server started, which holds its memory still.

    There would be room for the target, but for the margin.
    """
    controller = await start_on_gpu(chat=profile(30, release_after_s=0.6), other=profile(69.9))
    with tenant() as pid:
        gpu.allocate(pid, 60 * GIB)
        await controller.switch_to("chat")
    gpu.remove_process(pid)
    assert gpu.used_bytes() == 30 * GIB

    report = await controller.switch_to("other")

    assert confirming_s(report) >= 0.6
    assert report["memory"]["released"]["used_bytes"] == 0


async def test_what_a_server_started_out_of_its_group_gives_its_memory_back_with_it(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    """No signal to the group ends it, and beside it there would be room: the baseline counts."""
    leaves = profile(30, env={"VRAM_LEFT_BYTES": str(20 * GIB)})
    controller = await start_on_gpu(chat=leaves, other=profile(60))
    await controller.switch_to("chat")
    (server,) = (await live(controller)).values()
    (left,) = (p.pid for p in gpu.devices[0].processes if p.pid not in {0, server})

    report = await controller.switch_to("other")

    assert report["memory"]["before"]["used_bytes"] == 50 * GIB
    assert report["memory"]["released"]["used_bytes"] == 0
    assert not psutil.pid_exists(left)


@pytest.mark.parametrize("what", ["refused", "of the host"])
async def test_release_is_seen_where_processes_are_not(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu, what: str
) -> None:
    """In a container the driver lists no processes, or ids that do not exist here.

    What they hold is nobody's then, not others': the first server took more than its need says,
    and all of it will be free.
    """
    hosts = {"VRAM_LISTED_AS": str(2**22 + 1)} if what == "of the host" else None
    if what == "refused":
        gpu.fail("nvmlDeviceGetComputeRunningProcesses_v3", 3)  # NVML_ERROR_NOT_SUPPORTED
    controller = await start_on_gpu(
        chat=profile(60, need_gib=50, release_after_s=0.4, env=hosts), other=profile(95, env=hosts)
    )
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert confirming_s(report) >= 0.4
    assert report["memory"]["released"]["used_bytes"] == 0
    assert report["memory"]["after"]["children_bytes"] is None


async def test_release_on_a_part_of_a_gpu_is_read_from_the_part(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.split(0, 40 * GIB)
    controller = await start_on_gpu(chat=profile(25, release_after_s=0.4), other=profile(30))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert confirming_s(report) >= 0.4
    assert report["memory"]["released"]["total_bytes"] == 40 * GIB
    assert gpu.used_bytes(2) == 30 * GIB


async def test_switch_on_unified_memory_is_judged_by_what_the_host_has_available(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    for call in ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2"):
        gpu.fail(call, 3, 0)  # NVML_ERROR_NOT_SUPPORTED
    controller = await start_on_gpu(chat=profile(0.05), other=profile(0.06))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert report["memory"]["released"]["source"] == "MemAvailable (unified memory)"
    assert report["memory"]["released"]["free_bytes"] > GIB // 16


async def test_other_gpus_are_no_matter_of_the_switch(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    gpu.set_used(199 * GIB, device=1)
    controller = await start_on_gpu(chat=profile(60, release_after_s=0.2), other=profile(70))
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    assert report["memory"]["released"]["device"] == "gpu0"
    assert (gpu.used_bytes(0), gpu.used_bytes(1)) == (70 * GIB, 199 * GIB)


async def test_visible_gpu_is_the_one_that_is_judged_and_shown(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu.set_used(99 * GIB, device=0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    controller = await start_on_gpu(chat=profile(120), other=profile(150))
    await controller.switch_to("chat")

    await controller.switch_to("other")

    assert (gpu.used_bytes(0), gpu.used_bytes(1)) == (99 * GIB, 150 * GIB)


async def test_unload_answers_once_the_memory_is_back(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    controller = await start_on_gpu(chat=profile(60, release_after_s=0.5))
    await controller.switch_to("chat")

    report = await controller.json("POST", "/unload")

    assert report["outcome"] == "switched", report
    assert gpu.used_bytes() == 0
    assert confirming_s(report) >= 0.5


@pytest.mark.parametrize("policy", ["wait", "proceed"])
async def test_operator_may_wait_longer_or_start_all_the_same(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu, policy: str
) -> None:
    takes_gib = 70 if policy == "wait" else 30  # the operator knows that it takes less than stated
    target = profile(takes_gib, need_gib=70, release_timeout_s=0.2, on_unconfirmed=policy)
    held_s = 1.0 if policy == "wait" else HELD_LONG_S
    controller = await start_on_gpu(chat=profile(60, release_after_s=held_s), other=target)
    await controller.switch_to("chat")

    report = await controller.switch_to("other")

    if policy == "wait":
        assert confirming_s(report) >= 1.0
        assert report["memory"]["released"]["used_bytes"] == 0
    else:
        assert 0.2 <= confirming_s(report) < HELD_LONG_S
        assert "started even so, because on_unconfirmed is proceed" in report["memory"]["reason"]
        assert gpu.used_bytes() == (60 + 30) * GIB


async def test_server_that_died_with_its_memory_held_is_not_started_into_it(
    start_on_gpu: StartOnGpu, gpu: SimulatedGpu
) -> None:
    """It is brought back by itself, and that start waits for the gate, too."""
    controller = await start_on_gpu(chat=profile(60, release_after_s=0.8))
    await controller.switch_to("chat")
    (first,) = (await live(controller)).values()

    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        while first in (pids := (await live(controller)).values()) or not pids:
            assert gpu.used_bytes() <= 60 * GIB

    assert gpu.held_bytes(first) == 0
