"""AMD's sampler process: a driver that hangs, fails at first or gives memory back late."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from lab.drivers.amd import MEMORY_CALL, SimulatedAmd
from lab.drivers.nvidia import SimulatedGpu
from lab.drivers.shared import GIB

from supervisor.telemetry.port import HOST, TelemetryState
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendor_sampler import SamplerPolicy
from supervisor.telemetry.vendors import child_environment
from tests.conftest import StartController
from tests.patience import PATIENCE_S
from tests.telemetry.sampling import (
    FAST,
    OpenTelemetry,
    error_of,
    samplers,
    until,
    until_sampled,
    vendor_libraries,
    without_amd_cards,
)

NOT_LOADED = 34


async def test_library_is_loaded_by_a_small_sampler_alone(amd_telemetry: Telemetry) -> None:
    await amd_telemetry.read("gpu0")
    (sampler,) = samplers()

    assert vendor_libraries(sampler.pid) == ["libamd_smi"]
    assert vendor_libraries(os.getpid()) == []
    assert sampler.memory_info().rss <= 40 * 1000 * 1000


async def test_closing_gives_the_library_back(amd_telemetry: Telemetry, amd: SimulatedAmd) -> None:
    await amd_telemetry.close()
    await amd_telemetry.close()

    assert amd.state.shutdown_count == 1
    assert samplers() == []


async def test_hung_card_takes_its_vendor_along_until_it_answers_again(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    (sampler,) = samplers()
    amd.hang(MEMORY_CALL, device=0)

    message = await error_of(amd_telemetry)

    assert "the AMD driver did not answer within 0.5 s" in message
    assert amd_telemetry.health("gpu1").reason == message
    assert amd_telemetry.health(HOST).state is TelemetryState.OK
    await until(lambda: not sampler.is_running())

    amd.heal()
    amd.set_used(7 * GIB)

    assert (await until_sampled(amd_telemetry)).used_bytes == 7 * GIB
    assert amd_telemetry.problems == ()


async def test_library_that_writes_into_the_answers_costs_its_sampler(
    open_amd: OpenTelemetry,
) -> None:
    async with asyncio.timeout(PATIENCE_S):  # whoever asked is told, and does not wait for good
        telemetry = await open_amd(SamplerPolicy(first_pause_s=60.0), SIMULATED_AMD_NOISE="1")

    (problem,) = telemetry.problems
    assert problem.startswith("the AMD sampler gave an answer that cannot be read; ")
    await until(lambda: samplers() == [])


@without_amd_cards
async def test_cards_are_found_once_their_driver_is_loaded(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    amd.fail("amdsmi_init", NOT_LOADED)
    telemetry = await open_amd()
    assert [info.device for info in telemetry.devices()] == [HOST]

    amd.heal()
    await until(lambda: len(telemetry.devices()) == 3)

    assert (await telemetry.sample("gpu1")).total_bytes == 48 * GIB
    assert telemetry.problems == ()


async def test_driver_that_hangs_at_first_is_found_later(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    amd.hang("amdsmi_init")
    policy = SamplerPolicy(discovery_s=1.0, first_pause_s=0.02, longest_pause_s=0.2)
    telemetry = await open_amd(policy)
    assert "the AMD driver did not answer within 1 s" in telemetry.problems[0]

    amd.heal()
    await until(lambda: len(telemetry.devices()) == 3)

    assert (await until_sampled(telemetry)).total_bytes == 64 * GIB


async def test_card_that_is_lost_at_first_keeps_its_place_and_comes_back(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    amd.lose(0)
    telemetry = await open_amd()
    lost, works, _ = telemetry.devices()
    assert "fallen off the bus" in str(lost.fault)
    assert (works.index, works.fault) == (1, None)
    assert telemetry.gpus()[0] == works.device

    amd.heal()

    assert (await until_sampled(telemetry, "gpu0")).total_bytes == 64 * GIB
    await until(lambda: telemetry.devices()[0].uuid == "00ff740f-0000-1000-80a8-c54d00000000")
    assert (telemetry.devices()[0].fault, telemetry.problems) == (None, ())


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


@pytest.mark.parametrize("kind", ["card", "apu"])
async def test_memory_of_a_dead_process_is_given_back_late(
    open_amd: OpenTelemetry, amd: SimulatedAmd, child: subprocess.Popen[bytes], kind: str
) -> None:
    if kind == "apu":
        amd.make_apu(0, carve_out_bytes=GIB, gtt_bytes=16 * GIB)
    amd.allocate(child.pid, 8 * GIB, release_after_s=0.2)
    telemetry = await open_amd()
    held = await telemetry.sample("gpu0", (child.pid,))
    child.kill()
    child.wait()

    seen = [(await telemetry.read("gpu0")).sample.used_bytes]
    async with asyncio.timeout(PATIENCE_S):
        while seen[-1] != 0:
            seen.append((await telemetry.sample("gpu0")).used_bytes)

    assert held.children_bytes == held.used_bytes == 8 * GIB
    assert set(seen) == {8 * GIB, 0}


async def test_child_allocates_on_the_machine_it_was_started_with(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    code = (
        "import os; from lab.drivers.amd import SimulatedAmd; "
        "SimulatedAmd.attached().allocate(os.getpid(), 5, device=1, release_after_s=60)"
    )
    environ = amd.full_environment(PYTHONPATH=":".join(filter(None, sys.path)))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environ)
    assert await child.wait() == 0

    assert (await (await open_amd()).sample("gpu1")).used_bytes == 5


async def test_machine_with_both_vendors_keeps_them_apart(
    gpu: SimulatedGpu, amd: SimulatedAmd
) -> None:
    environ = amd.full_environment() | gpu.environment()
    gpu.set_used(2 * GIB)
    amd.set_used(3 * GIB, device=1)
    async with Telemetry(environ=environ, vendors=("NVIDIA", "AMD"), policy=FAST) as telemetry:
        found = telemetry.devices()
        vendors = [(info.device, info.vendor) for info in found if info.device != HOST]
        assert vendors == [
            ("gpu0", "NVIDIA"),
            ("gpu1", "NVIDIA"),
            ("gpu2", "AMD"),
            ("gpu3", "AMD"),
        ]
        assert (await telemetry.sample("gpu0")).used_bytes == 2 * GIB
        assert (await telemetry.sample("gpu3")).used_bytes == 3 * GIB
        assert child_environment(["gpu3"], found) == {
            "CUDA_VISIBLE_DEVICES": "-1",
            "HIP_VISIBLE_DEVICES": "1",
        }

        amd.hang(MEMORY_CALL)
        assert "the AMD driver" in await error_of(telemetry, "gpu2")
        assert (await telemetry.sample("gpu0")).used_bytes == 2 * GIB
        assert telemetry.health("gpu1").state is TelemetryState.OK


async def test_cards_that_one_variable_of_both_vendors_hides_are_no_fault(
    gpu: SimulatedGpu, amd: SimulatedAmd
) -> None:
    amd.state.device_count = 1
    environ = amd.full_environment() | gpu.environment() | {"CUDA_VISIBLE_DEVICES": "1"}
    async with Telemetry(environ=environ, vendors=("NVIDIA", "AMD")) as telemetry:
        assert [info.vendor for info in telemetry.devices()[:-1]] == ["NVIDIA"]
        assert telemetry.problems == ()


async def test_status_tells_the_cards_memory_without_loading_the_driver(
    start_controller: StartController, amd: SimulatedAmd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ROCM_HOME", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in amd.environment().items():
        monkeypatch.setenv(name, value)
    amd.set_used(3 * GIB, device=1)
    controller = await start_controller()

    told = (await controller.json("GET", "/status"))["memory"]

    cards = [memory for memory in told if memory["total_bytes"] == 48 * GIB]
    assert [memory["used_bytes"] for memory in cards] == [3 * GIB]
    assert vendor_libraries(os.getpid()) == []
