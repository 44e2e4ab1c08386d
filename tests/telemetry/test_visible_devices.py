"""CUDA's and HIP's own rules for which devices a program sees, and what a child is shown."""

from dataclasses import replace

import pytest

from supervisor.errors import TelemetryError
from supervisor.telemetry.amd.visible import select_visible_amd
from supervisor.telemetry.nvidia.visible import select_visible
from supervisor.telemetry.port import HOST, DeviceInfo
from supervisor.telemetry.vendors import child_environment
from supervisor.telemetry.visible_devices import find_repeated

UUIDS = ("GPU-aa11", "GPU-aa22", "MIG-bb33")


def select(**environment: str) -> tuple[int, ...]:
    return select_visible(UUIDS, environment)


def test_without_settings_every_device_is_visible() -> None:
    assert select() == (0, 1, 2)


@pytest.mark.parametrize(
    ("wish", "visible"),
    [
        ("1,0", (1, 0)),
        (" 2 , 0 ", (2, 0)),
        ("GPU-aa22", (1,)),
        ("GPU-aa2", (1,)),
        ("MIG-bb33", (2,)),
        ("0,-1,1", (0,)),
        ("0,9,1", (0,)),
        ("1,GPU-zz,0", (1,)),
        ("0,0", (0,)),
        ("1,GPU-aa22,0", (1, 0)),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
    ],
)
def test_cuda_visible_devices_choose_and_order(wish: str, visible: tuple[int, ...]) -> None:
    assert select(CUDA_VISIBLE_DEVICES=wish) == visible


@pytest.mark.parametrize("wish", ["7", "GPU-zz", "GPU-aa", "first"])
def test_wish_that_fits_no_device_is_an_error_that_names_the_devices(wish: str) -> None:
    with pytest.raises(TelemetryError, match=f"={wish} .*GPU-aa11, GPU-aa22, MIG-bb33"):
        select(CUDA_VISIBLE_DEVICES=wish)


def test_container_keeps_to_the_uuids_it_was_given() -> None:
    assert select(NVIDIA_VISIBLE_DEVICES="MIG-bb33,GPU-aa11") == (2, 0)


@pytest.mark.parametrize("granted", ["all", "void", "none", "", "1", "0:1", "GPU-of-another-image"])
def test_what_only_the_container_runtime_understands_changes_nothing(granted: str) -> None:
    assert select(NVIDIA_VISIBLE_DEVICES=granted) == (0, 1, 2)


def test_indices_count_within_what_the_container_was_given() -> None:
    visible = select(NVIDIA_VISIBLE_DEVICES="MIG-bb33,GPU-aa11", CUDA_VISIBLE_DEVICES="1")

    assert visible == (0,)


AMD_UUIDS = ("GPU-00000000000000a1", "GPU-00000000000000b2", "")


@pytest.mark.parametrize(
    ("environment", "for_rocr", "for_hip"),
    [
        ({}, (0, 1, 2), (0, 1, 2)),
        ({"ROCR_VISIBLE_DEVICES": "2,0"}, (2, 0), (2, 0)),
        ({"ROCR_VISIBLE_DEVICES": "GPU-00000000000000b2"}, (1,), (1,)),
        ({"HIP_VISIBLE_DEVICES": "1"}, (0, 1, 2), (1,)),
        ({"ROCR_VISIBLE_DEVICES": "2,0", "HIP_VISIBLE_DEVICES": "1"}, (2, 0), (0,)),
        ({"CUDA_VISIBLE_DEVICES": "1"}, (0, 1, 2), (1,)),
        ({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, (0, 1, 2), (0,)),
        ({"CUDA_VISIBLE_DEVICES": "GPU-0000aaaa-0000"}, (0, 1, 2), (0, 1, 2)),
        ({"CUDA_VISIBLE_DEVICES": "5"}, (0, 1, 2), ()),
        ({"HIP_VISIBLE_DEVICES": "1,1"}, (0, 1, 2), (1,)),
        ({"HIP_VISIBLE_DEVICES": "-1"}, (0, 1, 2), ()),
    ],
)
def test_hip_counts_within_what_rocr_leaves(
    environment: dict[str, str], for_rocr: tuple[int, ...], for_hip: tuple[int, ...]
) -> None:
    assert select_visible_amd(AMD_UUIDS, environment) == (for_rocr, for_hip)


def test_wish_for_an_amd_card_that_is_not_here_is_an_error() -> None:
    with pytest.raises(TelemetryError, match="ROCR_VISIBLE_DEVICES=5 names no device"):
        select_visible_amd(AMD_UUIDS, {"ROCR_VISIBLE_DEVICES": "5"})


def device(name: str, vendor: str, *visible_as: tuple[str, str]) -> DeviceInfo:
    return DeviceInfo(device=name, name="G", vendor=vendor, total_bytes=1, visible_as=visible_as)


GPU_OF_NVIDIA = device("gpu0", "NVIDIA", ("CUDA_VISIBLE_DEVICES", "MIG-bb33"))
GPU_OF_AMD = device("gpu1", "AMD", ("HIP_VISIBLE_DEVICES", "3"))
HOST_MEMORY = device(HOST, "host")
ALL = (GPU_OF_NVIDIA, GPU_OF_AMD, HOST_MEMORY)


def test_child_sees_its_own_device_and_none_of_the_other_vendor() -> None:
    shown = {"CUDA_VISIBLE_DEVICES": "MIG-bb33", "HIP_VISIBLE_DEVICES": "-1"}
    assert child_environment(["gpu0"], ALL) == shown
    assert child_environment(["gpu1"], ALL) == {
        "CUDA_VISIBLE_DEVICES": "-1",
        "HIP_VISIBLE_DEVICES": "3",
    }


def test_child_on_the_host_sees_no_gpu() -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
    assert child_environment([HOST], ALL) == hidden
    assert child_environment([HOST], (HOST_MEMORY,)) == {}


def test_child_on_several_gpus_sees_them_in_their_order() -> None:
    second = device("gpu2", "NVIDIA", ("CUDA_VISIBLE_DEVICES", "GPU-cc44"))
    shown = child_environment(["gpu0", "gpu2"], (*ALL, second))
    assert shown == {"CUDA_VISIBLE_DEVICES": "MIG-bb33,GPU-cc44", "HIP_VISIBLE_DEVICES": "-1"}


def test_only_what_is_named_twice_is_repeated() -> None:
    gpus = (
        replace(GPU_OF_NVIDIA, uuid="GPU-aa11"),
        replace(GPU_OF_NVIDIA, device="gpu1", uuid="GPU-bb22"),
    )
    for wish in ("", "0", "0,1", "GPU-aa11,GPU-bb22", "0,-1,-1", "0,,", "-1,-1"):
        assert find_repeated(wish, gpus) is None
    for wish, repeated in (("0,0", "0"), ("1, 01", "01"), ("GPU-aa11,GPU-bb,GPU-aa", "GPU-aa")):
        assert find_repeated(wish, gpus) == repeated
