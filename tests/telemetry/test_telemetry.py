"""All devices behind one face, read through sampler processes and a simulated driver."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pynvml
import pytest
from lab.drivers.nvidia import GIB, SimulatedGpu
from structlog.testing import capture_logs

from supervisor.errors import TelemetryError
from supervisor.telemetry.port import HOST, TelemetryState
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendors import find_vendors
from tests.telemetry.sampling import (
    FAST,
    MEMORY_CALL,
    OpenTelemetry,
    error_of,
    samplers,
    until,
    until_sampled,
)


async def test_devices_are_numbered_and_the_host_comes_last(telemetry: Telemetry) -> None:
    found = [(info.device, info.uuid) for info in telemetry.devices()]

    assert found == [("gpu0", "GPU-0000aaaa-0000"), ("gpu1", "GPU-1000aaaa-0000"), (HOST, None)]
    assert telemetry.problems == ()
    assert telemetry.gpus() == ("gpu0", "gpu1")


async def test_two_devices_are_told_apart_and_changes_are_seen(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.set_used(60 * GIB, device=1)

    first, second = await telemetry.sample("gpu0"), await telemetry.sample("gpu1")

    assert (first.device, first.used_bytes) == ("gpu0", 0)
    assert (second.device, second.used_bytes) == ("gpu1", 60 * GIB)


async def test_requests_under_way_together_are_answered_each_with_its_own(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.set_used(1, device=0)
    gpu.set_used(2, device=1)
    wanted = ["gpu0", "gpu1", "gpu1", "gpu0", HOST, "gpu1"] * 5

    samples = await asyncio.gather(*(telemetry.sample(device) for device in wanted))

    assert [sample.device for sample in samples] == wanted
    assert all(sample.used_bytes == 1 for sample in samples if sample.device == "gpu0")
    assert all(sample.used_bytes == 2 for sample in samples if sample.device == "gpu1")


async def test_sample_is_dated_when_it_was_read(telemetry: Telemetry) -> None:
    asked_at = time.monotonic()

    sample = await telemetry.sample("gpu0")

    assert asked_at <= sample.taken_at <= time.monotonic()


async def test_reading_tells_load_and_processes(telemetry: Telemetry, gpu: SimulatedGpu) -> None:
    gpu.devices[1].utilisation_percent = 70
    gpu.add_process(os.getpid(), GIB, device=1)

    reading = await telemetry.read("gpu1", (os.getpid(),))

    assert reading.sample.device == "gpu1"
    assert reading.sample.children_bytes == GIB
    assert reading.utilisation_percent == 70
    assert reading.processes is not None
    assert [use.pid for use in reading.processes] == [os.getpid()]
    host = await telemetry.read(HOST)
    assert host.sample.total_bytes > 0
    assert host.processes is None


async def test_processes_that_are_not_told_are_unknown(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlDeviceGetComputeRunningProcesses_v3", pynvml.NVML_ERROR_NO_PERMISSION)

    assert (await telemetry.read("gpu0")).processes is None
    assert (await telemetry.sample("gpu0", (71,))).children_bytes is None
    assert telemetry.problems == ()


async def test_device_lost_mid_way_leaves_the_other_readable(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.set_used(3 * GIB, device=1)
    gpu.lose(0)

    assert "fallen off the bus" in await error_of(telemetry)

    assert (await telemetry.sample("gpu1")).used_bytes == 3 * GIB
    assert telemetry.health("gpu0").state is TelemetryState.LOST
    assert telemetry.health("gpu1").state is TelemetryState.OK
    (problem,) = telemetry.problems
    assert problem.startswith("gpu0: ")


async def test_lost_device_keeps_its_name_in_new_samplers_and_recovers(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    (first,) = samplers()
    gpu.lose(0)
    await error_of(telemetry)
    await until(lambda: not first.is_running() and len(samplers()) == 1)
    before = telemetry.devices()

    other = await until_sampled(telemetry, "gpu1")
    still_lost = await error_of(telemetry)
    gpu.heal()

    assert other.total_bytes == 200 * GIB
    assert "fallen off the bus" in still_lost
    assert (await until_sampled(telemetry)).total_bytes == 100 * GIB
    assert telemetry.devices() == before


async def test_device_that_is_gone_from_the_list_is_lost_and_not_another(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gone, stays = gpu.devices[0].uuid, gpu.devices[1].uuid
    gpu.devices[0].uuid, gpu.devices[0].total_bytes = stays, 200 * GIB
    gpu.state.device_count = 1
    samplers()[0].kill()

    assert (await until_sampled(telemetry, "gpu1")).total_bytes == 200 * GIB

    assert f"no longer lists NVIDIA H200 ({gone.decode()})" in await error_of(telemetry, "gpu0")


INIT_FAULTS = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "modprobe nvidia",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "reboot the node, or restart the pod",
    pynvml.NVML_ERROR_UNKNOWN: "restart the container",
    pynvml.NVML_ERROR_GPU_IS_LOST: "fallen off the bus",
    pynvml.NVML_ERROR_NO_PERMISSION: "/dev/nvidiactl",
}


@pytest.mark.parametrize(("code", "remedy"), INIT_FAULTS.items())
async def test_driver_that_does_not_open_is_a_problem_with_its_remedy(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu, code: int, remedy: str
) -> None:
    gpu.fail("nvmlInitWithFlags", code)

    telemetry = await open_telemetry()

    (problem,) = telemetry.problems
    assert remedy in problem
    assert [info.device for info in telemetry.devices()] == [HOST]
    assert (await telemetry.sample(HOST)).total_bytes > 0


async def test_driver_that_opens_later_adds_its_devices(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    telemetry = await open_telemetry()
    gpu.heal()

    await until(lambda: telemetry.problems == ())

    assert [info.device for info in telemetry.devices()] == ["gpu0", "gpu1", HOST]
    assert (await telemetry.sample("gpu1")).total_bytes == 200 * GIB
    assert telemetry.gpus() == ("gpu0", "gpu1")


async def test_device_that_is_named_twice_is_one_and_told(open_telemetry: OpenTelemetry) -> None:
    with capture_logs() as lines:
        telemetry = await open_telemetry(CUDA_VISIBLE_DEVICES="0,0")

    assert [info.device for info in telemetry.devices()] == ["gpu0", HOST]
    [told] = [line for line in lines if line["event"] == "telemetry.named_twice"]
    assert (told["variable"], told["value"]) == ("CUDA_VISIBLE_DEVICES", "0,0")


async def test_mig_device_is_read_by_its_uuid(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    gpu.split(1, 20 * GIB, 40 * GIB)

    telemetry = await open_telemetry(CUDA_VISIBLE_DEVICES="MIG-1000bbbb-0000")

    (info, _host) = telemetry.devices()
    assert (info.uuid, info.mig_profile) == ("MIG-1000bbbb-0000", "3g.71gb")
    reading = await telemetry.read("gpu0")
    assert reading.sample.total_bytes == 40 * GIB
    assert reading.utilisation_percent is None


async def test_unified_memory_is_told_and_is_the_hosts(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlDeviceGetMemoryInfo", pynvml.NVML_ERROR_NOT_SUPPORTED, 0)
    gpu.fail(MEMORY_CALL, pynvml.NVML_ERROR_NOT_SUPPORTED, 0)

    telemetry = await open_telemetry()

    assert [info.shares_host_memory for info in telemetry.devices()] == [True, False, False]
    assert (await telemetry.sample("gpu0")).total_bytes == psutil.virtual_memory().total


async def test_gpu_that_works_is_chosen_before_one_that_does_not(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    gpu.lose(0)

    telemetry = await open_telemetry()

    assert telemetry.gpus() == ("gpu1", "gpu0")
    assert "fallen off the bus" in telemetry.problems[0]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="an NVIDIA driver is here")
async def test_vendors_that_are_not_here_are_no_problem(gpu: SimulatedGpu) -> None:
    environ = {**gpu.full_environment(), "LD_LIBRARY_PATH": ""}

    async with Telemetry(environ=environ, policy=FAST) as telemetry:
        assert telemetry.problems == ()
        assert telemetry.gpus() == ()
        await until(lambda: samplers() == [])


async def test_unknown_device_is_refused_with_those_that_are_known(telemetry: Telemetry) -> None:
    with pytest.raises(TelemetryError, match=r"'gpu7' here; found: gpu0, gpu1, host"):
        await telemetry.sample("gpu7")


async def test_cancelled_sample_leaves_the_next_one_its_own_answer(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    task = asyncio.create_task(telemetry.sample("gpu0"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await telemetry.sample("gpu1")).total_bytes == 200 * GIB


async def test_this_machine_can_be_sampled() -> None:
    async with Telemetry() as telemetry:
        assert telemetry.devices()[-1].device == HOST
        assert (await telemetry.sample(HOST)).total_bytes > 0


def test_importing_the_facade_loads_no_vendors_bindings() -> None:
    code = (
        "import sys, supervisor.telemetry.telemetry; "
        "sys.exit(', '.join({'pynvml', 'amdsmi'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.strip() == ""


def test_amd_is_asked_only_where_it_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    assert find_vendors(tmp_path) == ("NVIDIA",)

    card = tmp_path / "sys/class/drm/card1/device"
    card.mkdir(parents=True)
    (card / "mem_info_vram_total").touch()
    assert find_vendors(tmp_path) == ("NVIDIA", "AMD")

    (tmp_path / "packages/amdsmi.py").touch()
    assert find_vendors(tmp_path / "nowhere") == ("NVIDIA", "AMD")
