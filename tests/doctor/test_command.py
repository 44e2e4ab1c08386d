"""`llama-supervisor doctor` itself: on this machine, and beside a simulated driver with faults."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lab.drivers.nvidia import SimulatedGpu, build_library

from tests.conftest import ROOT
from tests.e2e.conftest import COMMAND


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(tmp_path: Path, nvml_library: Path) -> SimulatedGpu:
    return SimulatedGpu(tmp_path, library=nvml_library)


@pytest.fixture
def environ(llama_server_bin: Path, gpu: SimulatedGpu) -> dict[str, str]:
    """This machine with the simulated driver and a llama-server for the CPU."""
    return gpu.full_environment(LLAMA_SERVER_BIN=str(llama_server_bin))


def run(environ: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "doctor", "--profiles", str(ROOT / "profiles"), *words],
        env=dict(environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(environ: Mapping[str, str], data: Path) -> tuple[int, Any]:
    told = run(environ, "--json", "--data", str(data))
    return told.returncode, json.loads(told.stdout)


def test_this_machine_is_told_as_json(llama_server_bin: Path, tmp_path: Path) -> None:
    environ = {**os.environ, "LLAMA_SERVER_BIN": str(llama_server_bin)}

    code, told = ask(environ, tmp_path)

    assert (code, told["well"]) == (0, True), told["findings"]
    assert told["facts"]["devices"]["devices"][-1]["device"] == "host"
    assert told["facts"]["engines"]["chosen"] == "llama-server"
    assert told["facts"]["data"]["path"] == str(tmp_path)


def test_devices_and_an_engine_that_does_not_match_them_are_told(
    environ: dict[str, str], tmp_path: Path
) -> None:
    code, told = ask(environ, tmp_path)

    assert (code, told["well"]) == (0, True)
    assert [info["uuid"] for info in told["facts"]["devices"]["devices"][:2]] == [
        "GPU-0000aaaa-0000",
        "GPU-1000aaaa-0000",
    ]
    (mismatch,) = [each for each in told["findings"] if "on the CPU only" in each["what"]]
    assert mismatch["severity"] == "warning"
    assert "server-cuda" in mismatch["remedy"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, ("kernel driver is not loaded", "modprobe nvidia")),  # NVML_ERROR_DRIVER_NOT_LOADED
        (18, ("different versions", "reboot the node")),  # NVML_ERROR_LIB_RM_VERSION_MISMATCH
        (999, ("unknown error", "restart the container")),  # NVML_ERROR_UNKNOWN
        (4, ("permission denied", "/dev/nvidiactl")),  # NVML_ERROR_NO_PERMISSION
    ],
)
def test_driver_that_does_not_open_fails_with_its_remedy(
    gpu: SimulatedGpu, environ: dict[str, str], tmp_path: Path, code: int, words: tuple[str, str]
) -> None:
    gpu.fail("nvmlInitWithFlags", code)

    exit_code, told = ask(environ, tmp_path)

    assert (exit_code, told["well"]) == (1, False)
    (fault,) = [each for each in told["findings"] if each["severity"] == "error"]
    assert words[0] in fault["what"]
    assert words[1] in fault["remedy"]


def test_one_lost_device_fails_and_is_named(
    gpu: SimulatedGpu, environ: dict[str, str], tmp_path: Path
) -> None:
    gpu.lose(1)

    exit_code, told = ask(environ, tmp_path)

    assert exit_code == 1
    (fault,) = [each for each in told["findings"] if each["severity"] == "error"]
    assert fault["what"].startswith("gpu1: ")
    assert "the GPU is lost" in fault["what"]
    states = [health["state"] for health in told["facts"]["devices"]["health"]]
    assert states == ["ok", "telemetry_lost", "ok"]


def test_variable_that_names_no_device_fails_with_those_that_are_here(
    environ: dict[str, str], tmp_path: Path
) -> None:
    exit_code, told = ask({**environ, "CUDA_VISIBLE_DEVICES": "GPU-gone"}, tmp_path)

    assert exit_code == 1
    assert "CUDA_VISIBLE_DEVICES=GPU-gone" in told["findings"][0]["what"]
    assert "GPU-0000aaaa-0000" in told["findings"][0]["remedy"]
    assert told["facts"]["visibility"]["CUDA_VISIBLE_DEVICES"] == "GPU-gone"


def test_people_are_told_the_same_with_paths_in_one_piece(
    gpu: SimulatedGpu, environ: dict[str, str], llama_server_bin: Path, tmp_path: Path
) -> None:
    gpu.lose(1)

    told = run(environ, "--data", str(tmp_path))

    assert told.returncode == 1
    assert "gpu0  NVIDIA H200, 100.0 GiB, GPU-0000aaaa-0000" in told.stdout
    assert str(llama_server_bin) in told.stdout
    assert "error gpu1: " in told.stdout
    assert "  → reboot the node" in told.stdout
    assert told.stderr == ""


def test_data_folder_that_cannot_be_written_fails(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "taken").touch()

    exit_code, told = ask(environ, tmp_path / "taken")

    assert exit_code == 1
    assert told["findings"][0]["what"].endswith("cannot be written: Not a directory")
    assert "--data" in told["findings"][0]["remedy"]
