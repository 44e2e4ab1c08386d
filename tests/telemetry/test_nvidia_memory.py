"""The real pynvml bindings against a simulated driver, whose answers the test changes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from lab.drivers.nvidia import GIB, DeviceState, SimulatedGpu, build_library

PROBE = Path(__file__).with_name("nvml_probe.py")
MEMORY_CALLS = ("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetMemoryInfo_v2")


class Machine:
    """A machine with a driver, and a process that reads it through pynvml."""

    def __init__(self, gpu: SimulatedGpu, environment: dict[str, str]) -> None:
        self.gpu = gpu
        self._process = subprocess.Popen(
            [sys.executable, str(PROBE)],
            env=gpu.full_environment(**environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def devices(self) -> Any:
        return self.ask("devices")["ok"]

    def sample(self, device: str = "gpu0", child_pids: tuple[int, ...] = ()) -> Any:
        return self.ask("sample", device=device, child_pids=child_pids)["ok"]

    def read(self, device: str = "gpu0") -> Any:
        return self.ask("read", device=device)["ok"]

    def error(self, do: str = "devices", **arguments: Any) -> str:
        return str(self.ask(do, **arguments)["error"])

    def fail_memory(self, code: int, device: int) -> None:
        for call in MEMORY_CALLS:
            self.gpu.fail(call, code, device)

    def end(self) -> None:
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(timeout=10)
            finally:
                process.kill()


MachineWith = Callable[..., Machine]


@pytest.fixture
def machine_with(gpu: SimulatedGpu) -> Iterator[MachineWith]:
    """Start a machine; keyword arguments are its environment."""
    started: list[Machine] = []
    for device in gpu.devices[:2]:
        device.reserved_bytes, device.used_bytes = GIB, 10 * GIB

    def start(**environment: str) -> Machine:
        started.append(Machine(gpu, environment))
        return started[-1]

    yield start
    for machine in started:
        machine.end()


@pytest.fixture
def machine(machine_with: MachineWith) -> Machine:
    return machine_with()


def test_devices_are_listed_with_name_uuid_and_total(machine: Machine) -> None:
    second = machine.devices()[1]

    assert (second["device"], second["uuid"]) == ("gpu1", "GPU-1000aaaa-0000")
    assert (second["name"], second["total_bytes"]) == ("NVIDIA H200", 200 * GIB)


def test_second_version_leaves_the_drivers_reserve_out_of_use(machine: Machine) -> None:
    machine.devices()

    sample = machine.sample("gpu1")

    assert sample["source"] == "nvml v2"
    assert sample["used_bytes"] == 10 * GIB
    assert sample["free_bytes"] == 189 * GIB


def test_old_driver_is_asked_in_the_first_version(
    machine_with: MachineWith, tmp_path_factory: pytest.TempPathFactory
) -> None:
    library = build_library(tmp_path_factory.mktemp("nvml-old"), "-DWITHOUT_MEMORY_V2")
    machine = machine_with(LD_LIBRARY_PATH=str(library.parent))
    machine.devices()

    sample = machine.sample()

    assert sample["source"] == "nvml v1"
    assert sample["free_bytes"] == 89 * GIB


def test_a_sample_shows_what_changed_since_the_last(machine: Machine) -> None:
    machine.devices()
    before = machine.sample()

    machine.gpu.devices[0].used_bytes = 60 * GIB

    assert machine.sample()["used_bytes"] - before["used_bytes"] == 50 * GIB


def test_childrens_share_is_summed_without_foreign_processes(machine: Machine) -> None:
    machine.devices()
    for pid, used_bytes in ((71, GIB), (72, 2 * GIB), (99, 4 * GIB)):
        machine.gpu.add_process(pid, used_bytes)

    assert machine.sample(child_pids=(71, 72))["children_bytes"] == 3 * GIB


def test_without_children_their_share_is_nothing(machine: Machine) -> None:
    machine.devices()
    machine.gpu.add_process(99, 4 * GIB)

    assert machine.sample()["children_bytes"] == 0


UNKNOWN_SHARES = {
    "figure not available": [(71, None)],
    "one figure not available": [(71, GIB), (72, None)],
    "process ids of the host": [(40_071, GIB)],
    "no process listed": [],
}


@pytest.mark.parametrize("uses", UNKNOWN_SHARES.values(), ids=UNKNOWN_SHARES)
def test_a_share_that_is_not_told_is_unknown(
    machine: Machine, uses: list[tuple[int, int | None]]
) -> None:
    machine.devices()
    for use in uses:
        machine.gpu.add_process(*use)

    assert machine.sample(child_pids=(71, 72))["children_bytes"] is None


def test_refused_process_list_leaves_the_memory_readable(machine: Machine) -> None:
    machine.devices()
    machine.gpu.fail("nvmlDeviceGetComputeRunningProcesses_v3", pynvml.NVML_ERROR_NO_PERMISSION)

    sample = machine.sample(child_pids=(71,))

    assert sample["children_bytes"] is None
    assert sample["used_bytes"] == 10 * GIB


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot the node, or restart the pod"),
        (pynvml.NVML_ERROR_UNKNOWN, "restart the container"),
        (pynvml.NVML_ERROR_GPU_IS_LOST, "fallen off the bus"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidiactl"),
        (pynvml.NVML_ERROR_RESET_REQUIRED, "--gpu-reset"),
        (pynvml.NVML_ERROR_IRQ_ISSUE, "NVML error 11"),
    ],
)
def test_each_failure_to_open_has_its_own_remedy(machine: Machine, code: int, words: str) -> None:
    machine.gpu.fail("nvmlInitWithFlags", code)

    assert words in machine.error()


def test_opening_works_once_the_driver_has_recovered(machine: Machine) -> None:
    machine.gpu.fail("nvmlInitWithFlags", pynvml.NVML_ERROR_UNKNOWN)
    machine.error()

    machine.gpu.heal()

    assert len(machine.devices()) == 2


def test_lost_gpu_is_an_error_and_not_unified_memory(machine: Machine) -> None:
    machine.devices()
    machine.fail_memory(pynvml.NVML_ERROR_GPU_IS_LOST, 0)

    message = machine.error("sample", device="gpu0", child_pids=[])

    assert "fallen off the bus" in message
    assert "GPU-0000aaaa-0000" in message
    assert machine.sample("gpu1")["used_bytes"] == 10 * GIB


def test_lost_gpu_that_is_not_wanted_does_not_hide_the_other(machine_with: MachineWith) -> None:
    machine = machine_with(CUDA_VISIBLE_DEVICES="1")
    machine.gpu.lose(0)

    assert [info["uuid"] for info in machine.devices()] == ["GPU-1000aaaa-0000"]


def test_lost_gpu_that_is_wanted_keeps_its_place_with_its_fault(machine: Machine) -> None:
    machine.gpu.lose(0)

    lost, works = machine.devices()

    assert "fallen off the bus" in lost["fault"]
    assert (lost["device"], lost["total_bytes"]) == ("gpu0", 0)
    assert (works["device"], works["fault"]) == ("gpu1", None)
    assert "fallen off the bus" in machine.error("read", device="gpu0")


def make_not_supported(gpu: SimulatedGpu) -> None:
    for call in MEMORY_CALLS:
        gpu.fail(call, pynvml.NVML_ERROR_NOT_SUPPORTED, 0)


def make_total_zero(gpu: SimulatedGpu) -> None:
    device = gpu.devices[0]
    device.total_bytes = device.reserved_bytes = device.used_bytes = 0


def make_most_of_host(gpu: SimulatedGpu) -> None:
    device: DeviceState = gpu.devices[0]
    device.name = b"NVIDIA GB10"
    device.total_bytes = int(psutil.virtual_memory().total * 0.95)
    device.reserved_bytes = device.used_bytes = 0


@pytest.mark.parametrize("make", [make_not_supported, make_total_zero, make_most_of_host])
def test_unified_memory_is_what_the_host_has_available(
    machine: Machine, make: Callable[[SimulatedGpu], None]
) -> None:
    make(machine.gpu)

    unified, discrete = machine.devices()
    sample = machine.sample()

    assert (unified["shares_host_memory"], discrete["shares_host_memory"]) == (True, False)
    assert sample["source"] == "MemAvailable (unified memory)"
    assert unified["total_bytes"] == sample["total_bytes"] == psutil.virtual_memory().total
    assert 0 < sample["free_bytes"] < sample["total_bytes"]
    assert sample["used_bytes"] + sample["free_bytes"] == sample["total_bytes"]


@pytest.mark.parametrize(
    ("name", "share_of_host"),
    [
        pytest.param(b"NVIDIA H200", 0.95, id="discrete and as large as the host"),
        pytest.param(b"NVIDIA GB10", 0.50, id="integrated with memory of its own"),
    ],
)
def test_device_with_memory_of_its_own_keeps_its_own_figures(
    machine: Machine, name: bytes, share_of_host: float
) -> None:
    device = machine.gpu.devices[0]
    device.name = name
    device.total_bytes = int(psutil.virtual_memory().total * share_of_host)
    device.reserved_bytes = device.used_bytes = 0
    machine.devices()

    assert machine.sample()["source"] == "nvml v2"


def test_gpu_in_mig_mode_appears_as_its_mig_devices(machine: Machine) -> None:
    machine.gpu.split(1, 20 * GIB, 40 * GIB)

    assert [(info["device"], info["uuid"]) for info in machine.devices()] == [
        ("gpu0", "GPU-0000aaaa-0000"),
        ("gpu1", "MIG-0000bbbb-0000"),
        ("gpu2", "MIG-1000bbbb-0000"),
    ]


@pytest.mark.parametrize("variable", ["CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"])
def test_mig_uuid_in_the_environment_reads_that_mig_device(
    machine_with: MachineWith, variable: str
) -> None:
    machine = machine_with(**{variable: "MIG-1000bbbb-0000"})
    machine.gpu.split(1, 20 * GIB, 40 * GIB)

    assert [info["device"] for info in machine.devices()] == ["gpu0"]
    assert machine.sample()["total_bytes"] == 40 * GIB


def test_mig_device_that_does_not_tell_is_not_unified_memory(machine_with: MachineWith) -> None:
    machine = machine_with(CUDA_VISIBLE_DEVICES="MIG-1000bbbb-0000")
    machine.gpu.split(1, 20 * GIB, 40 * GIB)
    machine.fail_memory(pynvml.NVML_ERROR_NOT_SUPPORTED, 3)

    assert "update the driver" in machine.devices()[0]["fault"]


def test_reading_loads_no_cuda_library(machine: Machine) -> None:
    machine.devices()
    machine.sample(child_pids=(71,))

    loaded = machine.ask("libraries")["ok"]

    assert "libnvidia-ml.so.1" in loaded
    assert not [name for name in loaded if "cuda" in name]


def test_close_gives_nvml_back_once(machine: Machine) -> None:
    machine.devices()

    machine.ask("close")
    machine.ask("close")

    assert machine.gpu.state.shutdown_count == 1


def test_everything_that_a_gpu_tells_is_read(machine: Machine) -> None:
    device = machine.gpu.devices[0]
    device.utilisation_percent, device.temperature_c, device.power_mw = 87, 64, 412_500
    machine.gpu.add_process(os.getpid(), 3 * GIB)
    machine.gpu.add_process(2**22 + 1, None)  # no process id of this machine
    machine.devices()

    reading = machine.read()

    told = (reading["utilisation_percent"], reading["temperature_c"], reading["power_w"])
    assert told == (87, 64, 412.5)
    assert reading["processes"] == [
        {"pid": os.getpid(), "used_bytes": 3 * GIB, "name": psutil.Process().name()},
        {"pid": 2**22 + 1, "used_bytes": None, "name": None},
    ]
    assert reading["sample"]["used_bytes"] == 10 * GIB


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetUtilizationRates", "utilisation_percent"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetComputeRunningProcesses_v3", "processes"),
    ],
)
def test_what_a_driver_cannot_tell_is_unknown_and_never_nothing(
    machine: Machine, call: str, field: str
) -> None:
    machine.devices()
    machine.gpu.fail(call, pynvml.NVML_ERROR_NOT_SUPPORTED)

    reading = machine.read()

    assert [name for name, value in reading.items() if value is None] == [field]


def test_devices_tell_index_bus_driver_and_how_to_show_them_to_a_child(machine: Machine) -> None:
    machine.gpu.split(1, 20 * GIB, profile="1g.18gb")

    whole, part = machine.devices()

    assert (whole["index"], whole["pci_id"], whole["mig_profile"]) == (0, "0000:1b:00.0", None)
    assert (part["index"], part["pci_id"], part["mig_profile"]) == (1, "0000:2b:00.0", "1g.18gb")
    assert whole["driver_version"] == "580.65.06"
    assert part["visible_as"] == [["CUDA_VISIBLE_DEVICES", "MIG-0000bbbb-0000"]]


def test_time_of_a_sample_is_the_monotonic_clock_of_every_process(machine: Machine) -> None:
    machine.devices()
    before = time.monotonic()

    taken_at = machine.sample()["taken_at"]

    assert before <= taken_at <= time.monotonic()
