"""The real failure to open NVML, on a machine that has no NVIDIA driver."""

import ctypes.util
from pathlib import Path

import pytest

from supervisor.errors import TelemetryError
from supervisor.telemetry.nvidia.reader import NvidiaReader
from supervisor.telemetry.port import VendorAbsentError


def needs_no_driver() -> None:
    # It is not loaded to find out: this process stands for the controller in other tests.
    if ctypes.util.find_library("nvidia-ml") is not None:
        pytest.skip("this machine has NVML; what happens without it cannot be seen here")


def test_machine_without_nvml_is_told_what_to_install(tmp_path: Path) -> None:
    needs_no_driver()

    with pytest.raises(VendorAbsentError, match="install the driver"):
        NvidiaReader({}, root=tmp_path).devices()


def test_container_with_the_driver_but_not_its_library_is_told_the_setting(tmp_path: Path) -> None:
    needs_no_driver()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()

    with pytest.raises(TelemetryError, match="NVIDIA_DRIVER_CAPABILITIES") as caught:
        NvidiaReader({}, root=tmp_path).devices()

    assert not isinstance(caught.value, VendorAbsentError)


def test_reading_a_device_that_was_not_found_is_refused() -> None:
    with pytest.raises(TelemetryError, match="gpu7"):
        NvidiaReader({}).read("gpu7")
