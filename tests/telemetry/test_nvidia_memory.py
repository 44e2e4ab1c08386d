"""The real pynvml bindings against a small NVML of our own, whose answers the test changes."""

import ctypes
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest

HERE = Path(__file__).parent
GIB = 1024**3
NOT_AVAILABLE = 2**64 - 1


class FakeProcess(ctypes.Structure):
    """`struct process` of fake_nvml.c."""

    _fields_ = (("used_bytes", ctypes.c_uint64), ("pid", ctypes.c_uint32))


class FakeDevice(ctypes.Structure):
    """`struct device` of fake_nvml.c."""

    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        ("total_bytes", ctypes.c_uint64),
        ("reserved_bytes", ctypes.c_uint64),
        ("used_bytes", ctypes.c_uint64),
        ("handle_result", ctypes.c_int32),
        ("memory_result", ctypes.c_int32),
        ("process_result", ctypes.c_int32),
        ("process_count", ctypes.c_uint32),
        ("is_mig_enabled", ctypes.c_uint32),
        ("mig_parent", ctypes.c_int32),
        ("processes", FakeProcess * 4),
    )

    def hold(self, *uses: tuple[int, int]) -> None:
        """Let the processes (pid, bytes) use the device."""
        self.process_count = len(uses)
        for process, (pid, used_bytes) in zip(self.processes, uses, strict=False):
            process.pid, process.used_bytes = pid, used_bytes


class FakeState(ctypes.Structure):
    """`struct state` of fake_nvml.c."""

    _fields_ = (
        ("init_result", ctypes.c_int32),
        ("is_hung", ctypes.c_uint32),
        ("device_count", ctypes.c_uint32),
        ("shutdown_count", ctypes.c_uint32),
        ("devices", FakeDevice * 4),
    )


class Machine:
    """A machine with a driver: its state, and a process that reads it through pynvml."""

    def __init__(self, folder: Path, library: Path, environment: dict[str, str]) -> None:
        state_file = folder / "nvml-state"
        state_file.write_bytes(bytes(ctypes.sizeof(FakeState)))
        with state_file.open("r+b") as file:
            self.state = FakeState.from_buffer(mmap.mmap(file.fileno(), 0))
        for index, device in enumerate(self.state.devices):
            device.mig_parent = -1
            if index < 2:
                device.uuid = f"GPU-{index}000aaaa-0000".encode()
                device.name = b"NVIDIA H200"
                device.total_bytes = (index + 1) * 100 * GIB
                device.reserved_bytes = GIB
                device.used_bytes = 10 * GIB
        self.state.device_count = 2
        inherited = {name: os.environ[name] for name in os.environ if "VISIBLE" not in name}
        path = f"{library.parent}:{inherited.get('LD_LIBRARY_PATH', '')}".rstrip(":")
        found = {"LD_LIBRARY_PATH": path, "FAKE_NVML_STATE": str(state_file)}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nvml_probe.py"), str(folder)],
            env=inherited | found | environment,
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

    def read(self, device: str = "gpu0", child_pids: tuple[int, ...] = ()) -> Any:
        return self.ask("read", device=device, child_pids=child_pids)["ok"]

    def error(self, do: str = "devices", **arguments: Any) -> str:
        return str(self.ask(do, **arguments)["error"])

    def end(self) -> int:
        """Let the process exit by itself and give its status; safe twice."""
        with self._process as process:
            assert process.stdin is not None
            process.stdin.close()
            try:
                return process.wait(timeout=10)
            finally:
                process.kill()


MachineWith = Callable[..., Machine]


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A driver's library of today, and one from before the second memory question."""
    built = {}
    for name, defines in {"today": (), "old": ("-DWITHOUT_MEMORY_V2",)}.items():
        built[name] = tmp_path_factory.mktemp(f"nvml-{name}") / "libnvidia-ml.so.1"
        flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *defines]
        subprocess.run(["cc", *flags, "-o", built[name], HERE / "fake_nvml.c"], check=True)
    return built


@pytest.fixture
def machine_with(tmp_path: Path, libraries: dict[str, Path]) -> Iterator[MachineWith]:
    """Start a machine; keyword arguments are its environment."""
    started: list[Machine] = []

    def start(driver: str = "today", **environment: str) -> Machine:
        started.append(Machine(tmp_path, libraries[driver], environment))
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

    sample = machine.read("gpu1")

    assert sample["source"] == "nvml v2"
    assert sample["used_bytes"] == 10 * GIB
    assert sample["free_bytes"] == 189 * GIB


def test_old_driver_is_asked_in_the_first_version(machine_with: MachineWith) -> None:
    machine = machine_with("old")
    machine.devices()

    sample = machine.read()

    assert sample["source"] == "nvml v1"
    assert sample["free_bytes"] == 89 * GIB


def test_a_sample_shows_what_changed_since_the_last(machine: Machine) -> None:
    machine.devices()
    before = machine.read()

    machine.state.devices[0].used_bytes = 60 * GIB

    assert machine.read()["used_bytes"] - before["used_bytes"] == 50 * GIB


def test_childrens_share_is_summed_without_foreign_processes(machine: Machine) -> None:
    machine.devices()
    machine.state.devices[0].hold((71, GIB), (72, 2 * GIB), (99, 4 * GIB))

    assert machine.read(child_pids=(71, 72))["children_bytes"] == 3 * GIB


def test_without_children_their_share_is_nothing(machine: Machine) -> None:
    machine.devices()
    machine.state.devices[0].hold((99, 4 * GIB))

    assert machine.read()["children_bytes"] == 0


UNKNOWN_SHARES = {
    "figure not available": [(71, NOT_AVAILABLE)],
    "one figure not available": [(71, GIB), (72, NOT_AVAILABLE)],
    "process ids of the host": [(40_071, GIB)],
    "no process listed": [],
}


@pytest.mark.parametrize("uses", UNKNOWN_SHARES.values(), ids=UNKNOWN_SHARES)
def test_a_share_that_is_not_told_is_unknown(machine: Machine, uses: list[tuple[int, int]]) -> None:
    machine.devices()
    machine.state.devices[0].hold(*uses)

    assert machine.read(child_pids=(71, 72))["children_bytes"] is None


def test_refused_process_list_leaves_the_memory_readable(machine: Machine) -> None:
    machine.devices()
    machine.state.devices[0].process_result = pynvml.NVML_ERROR_NO_PERMISSION

    sample = machine.read(child_pids=(71,))

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
    machine.state.init_result = code

    assert words in machine.error()


def test_opening_works_once_the_driver_has_recovered(machine: Machine) -> None:
    machine.state.init_result = pynvml.NVML_ERROR_UNKNOWN
    machine.error()

    machine.state.init_result = pynvml.NVML_SUCCESS

    assert len(machine.devices()) == 2


def test_lost_gpu_is_an_error_and_not_unified_memory(machine: Machine) -> None:
    machine.devices()
    machine.state.devices[0].memory_result = pynvml.NVML_ERROR_GPU_IS_LOST

    message = machine.error("read", device="gpu0", child_pids=[])

    assert "fallen off the bus" in message
    assert "GPU-0000aaaa-0000" in message
    assert machine.read("gpu1")["used_bytes"] == 10 * GIB


def test_lost_gpu_that_is_not_wanted_does_not_hide_the_other(machine_with: MachineWith) -> None:
    machine = machine_with(CUDA_VISIBLE_DEVICES="1")
    machine.state.devices[0].handle_result = pynvml.NVML_ERROR_GPU_IS_LOST

    assert [info["uuid"] for info in machine.devices()] == ["GPU-1000aaaa-0000"]


def test_lost_gpu_that_is_wanted_fails_the_listing(machine: Machine) -> None:
    machine.state.devices[0].handle_result = pynvml.NVML_ERROR_GPU_IS_LOST

    assert "fallen off the bus" in machine.error()


def make_not_supported(device: FakeDevice) -> None:
    device.memory_result = pynvml.NVML_ERROR_NOT_SUPPORTED


def make_total_zero(device: FakeDevice) -> None:
    device.total_bytes = device.reserved_bytes = device.used_bytes = 0


def make_most_of_host(device: FakeDevice) -> None:
    device.name = b"NVIDIA GB10"
    device.total_bytes = int(psutil.virtual_memory().total * 0.95)
    device.reserved_bytes = device.used_bytes = 0


@pytest.mark.parametrize("make", [make_not_supported, make_total_zero, make_most_of_host])
def test_unified_memory_is_what_the_host_has_available(
    machine: Machine, make: Callable[[FakeDevice], None]
) -> None:
    make(machine.state.devices[0])

    info = machine.devices()[0]
    sample = machine.read()

    assert sample["source"] == "MemAvailable (unified memory)"
    assert info["total_bytes"] == sample["total_bytes"] == psutil.virtual_memory().total
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
    device = machine.state.devices[0]
    device.name = name
    device.total_bytes = int(psutil.virtual_memory().total * share_of_host)
    device.reserved_bytes = device.used_bytes = 0
    machine.devices()

    assert machine.read()["source"] == "nvml v2"


def split_second_gpu(machine: Machine) -> None:
    """Put the second GPU into MIG mode with two devices; its own memory is then refused."""
    parent = machine.state.devices[1]
    parent.is_mig_enabled = 1
    parent.memory_result = pynvml.NVML_ERROR_NO_PERMISSION
    for index, device in enumerate(machine.state.devices[2:4]):
        device.uuid = f"MIG-{index}000bbbb-0000".encode()
        device.name = b"NVIDIA H200 MIG 3g.71gb"
        device.total_bytes = (index + 1) * 20 * GIB
        device.mig_parent = 1


def test_gpu_in_mig_mode_appears_as_its_mig_devices(machine: Machine) -> None:
    split_second_gpu(machine)

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
    split_second_gpu(machine)

    assert [info["device"] for info in machine.devices()] == ["gpu0"]
    assert machine.read()["total_bytes"] == 40 * GIB


def test_mig_device_that_does_not_tell_is_not_unified_memory(machine_with: MachineWith) -> None:
    machine = machine_with(CUDA_VISIBLE_DEVICES="MIG-1000bbbb-0000")
    split_second_gpu(machine)
    make_not_supported(machine.state.devices[3])

    assert "update the driver" in machine.error()


def test_reading_loads_no_cuda_library(machine: Machine) -> None:
    machine.devices()
    machine.read(child_pids=(71,))

    loaded = machine.ask("libraries")["ok"]

    assert "libnvidia-ml.so.1" in loaded
    assert not [name for name in loaded if "cuda" in name]


def test_close_gives_nvml_back_once(machine: Machine) -> None:
    machine.devices()

    machine.ask("close")
    machine.ask("close")

    assert machine.state.shutdown_count == 1


def test_hung_driver_misses_its_deadline_and_holds_nothing_else_up(machine: Machine) -> None:
    assert machine.ask("sample", device="gpu0", deadline_s=0.2)["ok"]["device"] == "gpu0"
    machine.state.is_hung = 1

    first = machine.error("sample", device="gpu0", deadline_s=0.2)
    host = machine.ask("sample", device="host", deadline_s=0.2)["ok"]
    second = machine.error("sample", device="gpu0", deadline_s=0.2)

    assert "the NVIDIA driver did not answer within 0.2 s" in first
    assert "still does not answer" in second
    assert host["free_bytes"] > 0
    assert machine.end() == 0  # the thread hangs on, and the process exits all the same
