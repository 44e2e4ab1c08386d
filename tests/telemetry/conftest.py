"""Simulated drivers for the tests of this room."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from lab.drivers.amd import SimulatedAmd
from lab.drivers.amd import build_library as build_amd_library
from lab.drivers.nvidia import GIB, SimulatedGpu, build_library

from supervisor.telemetry import telemetry as telemetry_module
from supervisor.telemetry.amd.cards import list_sysfs_cards
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendor_sampler import SamplerPolicy
from supervisor.telemetry.vendors import visibility_variables
from tests.conftest import StartController
from tests.telemetry.sampling import FAST, OpenTelemetry
from tests.telemetry.switching import StartOnGpu, start_on_gpu


@asynccontextmanager
async def _opening(
    driver: SimulatedGpu | SimulatedAmd, vendor: str
) -> AsyncIterator[OpenTelemetry]:
    async with AsyncExitStack() as stack:

        async def start(policy: SamplerPolicy = FAST, **environment: str) -> Telemetry:
            environ = driver.full_environment(**environment)
            telemetry = Telemetry(environ=environ, vendors=(vendor,), policy=policy)
            return await stack.enter_async_context(telemetry)

        yield start


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver's library of today."""
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(tmp_path: Path, nvml_library: Path) -> SimulatedGpu:
    """A machine with two idle NVIDIA GPUs of 100 and 200 GiB."""
    return SimulatedGpu(tmp_path, library=nvml_library)


@pytest.fixture
async def open_telemetry(gpu: SimulatedGpu) -> AsyncIterator[OpenTelemetry]:
    """Open telemetry over the simulated GPUs; keyword arguments are its environment."""
    async with _opening(gpu, "NVIDIA") as start:
        yield start


@pytest.fixture
async def telemetry(open_telemetry: OpenTelemetry) -> Telemetry:
    return await open_telemetry()


@pytest.fixture(scope="session")
def amd_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AMD SMI's library, as the installed bindings want it."""
    return build_amd_library(tmp_path_factory.mktemp("rocm"))


@pytest.fixture
def amd(tmp_path: Path, amd_library: Path) -> SimulatedAmd:
    """A machine with two idle AMD cards of 64 and 48 GiB."""
    return SimulatedAmd(tmp_path, library=amd_library)


@pytest.fixture
async def open_amd(amd: SimulatedAmd) -> AsyncIterator[OpenTelemetry]:
    """Open telemetry over the simulated AMD cards; keyword arguments are its environment."""
    async with _opening(amd, "AMD") as start:
        yield start


@pytest.fixture
async def amd_telemetry(open_amd: OpenTelemetry) -> Telemetry:
    return await open_amd()


@pytest.fixture(params=["NVIDIA", "AMD"])
def two_gpus(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    nvml_library: Path,
    amd_library: Path,
) -> SimulatedGpu | SimulatedAmd:
    """A machine with two idle GPUs of 100 GiB, of each vendor in turn; all that runs is on it."""
    totals = (100 * GIB, 100 * GIB)
    driver: SimulatedGpu | SimulatedAmd
    if request.param == "AMD":
        if list_sysfs_cards(Path("/")):
            pytest.skip("the kernel's files show AMD cards of this machine")
        driver = SimulatedAmd(tmp_path, library=amd_library, total_bytes=totals)
    else:
        driver = SimulatedGpu(tmp_path, library=nvml_library, total_bytes=totals)
    for name in visibility_variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in driver.environment().items():
        monkeypatch.setenv(name, value)
    return driver


@pytest.fixture
def start_on_two(
    start_controller: StartController, two_gpus: SimulatedGpu | SimulatedAmd, tmp_path: Path
) -> StartOnGpu:
    """Starts controllers on `two_gpus`, which carry several models each."""
    assert two_gpus
    return partial(start_on_gpu, start_controller, tmp_path, devices={})


@pytest.fixture(name="start_on_gpu")
def _start_on_gpu(
    start_controller: StartController,
    gpu: SimulatedGpu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> StartOnGpu:
    """Starts controllers on the machine with the simulated GPUs; a hung driver costs 0.5 s."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in gpu.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(telemetry_module, "SamplerPolicy", lambda: FAST)
    return partial(start_on_gpu, start_controller, tmp_path)
