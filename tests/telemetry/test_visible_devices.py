"""CUDA's own rules for which devices a program sees."""

import pytest

from supervisor.errors import TelemetryError
from supervisor.telemetry.visible_devices import select_visible

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
        ("1,GPU-aa22", ()),
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
