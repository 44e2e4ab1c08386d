"""The real failure to open NVML, on a machine that has no NVIDIA driver."""

import ctypes
from pathlib import Path

import pytest

from supervisor.errors import TelemetryError
from supervisor.telemetry.nvidia import NvidiaMemory
from supervisor.telemetry.port import VendorAbsentError


def needs_no_driver() -> None:
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return
    pytest.skip("this machine has NVML; what happens without it cannot be seen here")


def test_machine_without_nvml_is_told_what_to_install(tmp_path: Path) -> None:
    needs_no_driver()

    with pytest.raises(VendorAbsentError, match="install the driver"):
        NvidiaMemory({}, root=tmp_path).devices()


def test_container_with_the_driver_but_not_its_library_is_told_the_setting(tmp_path: Path) -> None:
    needs_no_driver()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()

    with pytest.raises(TelemetryError, match="NVIDIA_DRIVER_CAPABILITIES") as caught:
        NvidiaMemory({}, root=tmp_path).devices()

    assert not isinstance(caught.value, VendorAbsentError)


def test_reading_a_device_that_was_not_found_is_refused() -> None:
    with pytest.raises(TelemetryError, match="gpu7"):
        NvidiaMemory({}).read("gpu7", taken_at=0.0, child_pids=())
