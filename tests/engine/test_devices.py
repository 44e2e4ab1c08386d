"""Devices as profiles name them, and what they mean on a machine."""

from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from supervisor.config.profile import Profile
from supervisor.engine.devices import candidates_of, devices_of, unusable_together
from supervisor.telemetry.port import HOST, DeviceInfo

UUIDS = ("GPU-1000bbbb-0000", "GPU-1000aaaa-0000", "00ff740f-0000-1000-80a8-c54d00000000")
GPUS = ("gpu0", "gpu1")


def here(*, mig: bool = False) -> tuple[DeviceInfo, ...]:
    """Two GPUs of one vendor, one of another, and the host."""
    vendors = ("NVIDIA", "NVIDIA", "AMD")
    gpus = [
        DeviceInfo(
            device=f"gpu{number}",
            name="G",
            vendor=vendor,
            total_bytes=1,
            uuid=uuid,
            mig_profile="3g.71gb" if mig else None,
        )
        for number, (vendor, uuid) in enumerate(zip(vendors, UUIDS, strict=True))
    ]
    return (*gpus, DeviceInfo(device=HOST, name="host memory", vendor="", total_bytes=1))


def profile(**fields: Any) -> Profile:
    return Profile.model_validate({"mode": "generation", **fields})


def shown(gpus: Sequence[str] = GPUS, **fields: Any) -> tuple[str, ...]:
    return devices_of(profile(**fields), gpus, here)


@pytest.mark.parametrize(
    ("device", "means"),
    [
        ("cpu", (HOST,)),
        ("gpu1", ("gpu1",)),
        (UUIDS[1], ("gpu1",)),
        ("GPU-1000a", ("gpu1",)),
        (UUIDS[2], ("gpu2",)),
        (["gpu1", "gpu0"], ("gpu1", "gpu0")),
        ([UUIDS[1], "gpu0"], ("gpu1", "gpu0")),
        (["gpu1"], ("gpu1",)),
        ("gpu7", ("gpu7",)),
    ],
)
def test_profile_names_its_devices(device: Any, means: tuple[str, ...]) -> None:
    assert shown(device=device) == means
    assert candidates_of(profile(device=device), GPUS) == ()


def test_any_gpu_may_be_chosen_unless_the_profile_says_which() -> None:
    assert shown() == ("gpu0",)
    assert candidates_of(profile(), GPUS) == GPUS
    assert candidates_of(profile(), ("gpu0",)) == ()
    for fields in ({"main_gpu": 1}, {"tensor_split": (3, 1)}):
        assert candidates_of(profile(**fields), GPUS) == ()


def test_older_fields_say_it_as_before() -> None:
    assert shown(main_gpu=1) == ("gpu1",)
    assert shown(tensor_split=(1, 1)) == ("gpu0", "gpu1")


def test_without_a_gpu_the_host_stands_in_for_those_that_are_not_named() -> None:
    for fields in ({}, {"tensor_split": (1, 1)}, {"main_gpu": 3}):
        assert shown((), **fields) == (HOST,)
    assert shown((), device="gpu1") == ("gpu1",)


def test_beginning_that_fits_two_devices_names_none() -> None:
    fault = unusable_together(shown(device="GPU-1000"), here())
    assert fault is not None
    assert "names GPU-1000 (device, tensor_split, main_gpu), and no such device is here" in fault
    assert "found: gpu0 (GPU-1000bbbb-0000), gpu1 (GPU-1000aaaa-0000), gpu2" in fault


def test_layers_are_divided_over_devices_of_one_vendor_and_over_whole_ones() -> None:
    assert unusable_together(("gpu0", "gpu1"), here()) is None
    assert "different vendors: gpu1 (NVIDIA), gpu2 (AMD)" in str(
        unusable_together(("gpu1", "gpu2"), here())
    )
    assert "sees one MIG device only, and gpu0, gpu1 are such" in str(
        unusable_together(("gpu0", "gpu1"), here(mig=True))
    )
    assert "one device twice" in str(unusable_together(shown(device=["gpu1", UUIDS[1]]), here()))


def test_listed_devices_take_the_same_unless_shares_are_given() -> None:
    assert profile(device=["gpu0", "gpu1"]).shares == (1.0, 1.0)
    assert profile(device=["gpu0", "gpu1"], tensor_split=(3, 1)).shares == (3.0, 1.0)
    assert profile(tensor_split=(3, 1)).shares == (3.0, 1.0)
    assert profile().shares == profile(device="gpu1").shares == ()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"device": "gpu"}, None),
        ({"device": 1}, "must be gpu, cpu, a device such as gpu1, its UUID"),
        ({"device": "GPU1"}, "must be gpu, cpu, a device such as gpu1, its UUID"),
        ({"device": []}, "must be gpu, cpu, a device"),
        ({"device": ["gpu0", "cpu"]}, "lists devices such as gpu1, .* 'cpu' is none"),
        ({"device": ["gpu0", "gpu0"]}, "names a device twice"),
        ({"device": ["GPU-1000bbbb", "gpu0", "GPU-1000bbbb-0000"]}, "names a device twice"),
        ({"device": "gpu01"}, "must be gpu, cpu, a device such as gpu1"),
        ({"device": "cpu", "main_gpu": 1}, "is for device: gpu; leave it out"),
        ({"device": "cpu", "tensor_split": (1, 1)}, "is for device: gpu; leave it out"),
        ({"device": "gpu1", "main_gpu": 1}, "is said already by device: gpu1; leave it out"),
        ({"device": "gpu1", "tensor_split": (1, 1)}, "device names one, gpu1; list them all"),
        ({"device": ["gpu0", "gpu1"], "tensor_split": (1, 1, 1)}, "each of the 2 GPUs .* not 3"),
        ({"device": ["gpu0", "gpu1"], "main_gpu": 2}, "one of the 2 GPUs of device, from 0 on"),
        ({"device": ["gpu0", "gpu1"], "main_gpu": 1}, None),
        ({"tensor_split": (1, 1), "main_gpu": 2}, "one of the 2 GPUs of tensor_split, from 0 on"),
    ],
)
def test_contradictions_are_named(fields: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:
        profile(**fields)
        return
    with pytest.raises(ValidationError, match=sentence):
        profile(**fields)
