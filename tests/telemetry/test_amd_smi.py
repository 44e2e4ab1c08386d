"""The real amdsmi bindings in a real sampler, against a simulated driver that the test changes."""

import os
from pathlib import Path

import psutil
import pytest
from lab.drivers.amd import (
    MEMORY_CALL,
    NO_PERM,
    NOT_SUPPORTED,
    NOT_TOLD_32,
    SimulatedAmd,
    bound_symbols,
    build_library,
)
from lab.drivers.shared import GIB

from supervisor.core.machine.memory import HolderRole
from supervisor.telemetry.port import HOST, DeviceInfo, TelemetryState
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendors import child_environment
from tests.telemetry.sampling import FAST, OpenTelemetry, error_of, without_amd_cards

PROCESS_CALL = "amdsmi_get_gpu_process_list"


def cards(telemetry: Telemetry) -> list[DeviceInfo]:
    return [info for info in telemetry.devices() if info.device != HOST]


def test_library_has_every_symbol_that_the_bindings_look_up() -> None:
    assert len(bound_symbols()) > 150
    assert {MEMORY_CALL, PROCESS_CALL, "amdsmi_init"} < set(bound_symbols())


async def test_cards_are_listed_with_all_that_identifies_them(amd_telemetry: Telemetry) -> None:
    first, second = cards(amd_telemetry)

    assert first == DeviceInfo(
        device="gpu0",
        name="AMD Instinct MI210",
        vendor="AMD",
        total_bytes=64 * GIB,
        uuid="00ff740f-0000-1000-80a8-c54d00000000",
        index=0,
        pci_id="0000:c3:00.0",
        driver_version="6.16.6",
        visible_as=(("HIP_VISIBLE_DEVICES", "0"),),
    )
    assert (second.device, second.pci_id, second.index) == ("gpu1", "0000:d3:00.0", 1)


async def test_memory_is_read_in_bytes_and_gtt_is_left_out_on_a_card(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    amd.set_used(5 * GIB + 4096, device=1)
    amd.devices[1].gtt_used_bytes = 7 * GIB

    sample = await amd_telemetry.sample("gpu1")

    assert sample.source == "amdsmi"
    assert (sample.total_bytes, sample.used_bytes) == (48 * GIB, 5 * GIB + 4096)
    assert sample.free_bytes == 43 * GIB - 4096
    assert (await amd_telemetry.sample("gpu0")).used_bytes == 0


async def test_everything_that_a_card_tells_is_read(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    card = amd.devices[0]
    card.utilisation_percent, card.hotspot_c = 87, 71
    card.current_power_w = 310
    amd.set_used(9 * GIB)
    amd.add_process(os.getpid(), 3 * GIB)
    amd.add_process(2**22 + 1, GIB)  # no process id of this machine

    reading = await amd_telemetry.read("gpu0", (os.getpid(),))

    told = (reading.utilisation_percent, reading.temperature_c, reading.power_w)
    assert told == (87, 71, 310)
    assert reading.sample.used_bytes == 9 * GIB
    assert reading.sample.children_bytes == 3 * GIB
    assert reading.processes is not None
    assert [(use.pid, use.used_bytes, use.name) for use in reading.processes] == [
        (os.getpid(), 3 * GIB, psutil.Process().name()),
        (2**22 + 1, GIB, None),
    ]


async def test_card_without_a_hotspot_or_current_power_tells_the_next_best(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    amd.devices[0].hotspot_c = 0

    reading = await amd_telemetry.read("gpu0")

    assert (reading.temperature_c, reading.power_w) == (30, 41)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("amdsmi_get_gpu_activity", "utilisation_percent"),
        ("amdsmi_get_temp_metric", "temperature_c"),
        ("amdsmi_get_power_info", "power_w"),
        (PROCESS_CALL, "processes"),
    ],
)
async def test_what_a_driver_cannot_tell_is_unknown_and_never_nothing(
    amd_telemetry: Telemetry, amd: SimulatedAmd, call: str, field: str
) -> None:
    amd.fail(call, NOT_SUPPORTED)

    reading = await amd_telemetry.read("gpu0")

    names = ("utilisation_percent", "temperature_c", "power_w", "processes")
    assert [name for name in names if getattr(reading, name) is None] == [field]


async def test_largest_number_of_a_type_is_no_figure(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    card = amd.devices[0]
    card.current_power_w = card.average_power_w = card.utilisation_percent = NOT_TOLD_32

    reading = await amd_telemetry.read("gpu0")

    assert (reading.power_w, reading.utilisation_percent) == (None, None)


UNKNOWN_SHARES = {
    "figure not available": [(71, None)],
    "one figure not available": [(71, GIB), (72, None)],
    "all pools empty": [(71, 0)],
    "process ids of the host": [(40_071, GIB)],
    "no process listed": [],
}


@pytest.mark.parametrize("uses", UNKNOWN_SHARES.values(), ids=UNKNOWN_SHARES)
async def test_a_share_that_is_not_told_is_unknown(
    amd_telemetry: Telemetry, amd: SimulatedAmd, uses: list[tuple[int, int | None]]
) -> None:
    for use in uses:
        amd.add_process(*use)

    assert (await amd_telemetry.sample("gpu0", (71, 72))).children_bytes is None


async def test_processes_on_a_card_are_told_apart(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    amd.add_process(os.getpid(), 3 * GIB)
    amd.add_process(1, 2 * GIB)
    amd.add_process(2**22 + 1, None)  # no process id of this machine

    sample = await amd_telemetry.sample("gpu0", (os.getpid(),))

    assert sample.holders is not None
    assert [(holder.role, holder.used_bytes) for holder in sample.holders] == [
        (HolderRole.CHILD, 3 * GIB),
        (HolderRole.FOREIGN, 2 * GIB),
        (HolderRole.UNSEEN, None),
    ]


async def test_refused_process_list_leaves_the_memory_readable(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    amd.set_used(GIB)
    amd.fail(PROCESS_CALL, NO_PERM)

    sample = await amd_telemetry.sample("gpu0", (71,))

    assert (sample.used_bytes, sample.children_bytes, sample.holders) == (GIB, None, None)
    assert amd_telemetry.problems == ()


async def test_two_cards_of_which_one_is_busy(amd_telemetry: Telemetry, amd: SimulatedAmd) -> None:
    amd.devices[1].utilisation_percent = 100
    amd.allocate(os.getpid(), 40 * GIB, device=1)

    idle, busy = await amd_telemetry.read("gpu0"), await amd_telemetry.read("gpu1")

    assert (idle.utilisation_percent, idle.sample.used_bytes, idle.processes) == (0, 0, ())
    assert (busy.utilisation_percent, busy.sample.free_bytes) == (100, 8 * GIB)


async def test_apu_adds_the_pool_that_its_processes_hold(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    amd.make_apu(0, carve_out_bytes=2 * 2**20, gtt_bytes=16 * 2**20)
    amd.set_used(2**20)
    amd.allocate(os.getpid(), 3 * 2**20)
    telemetry = await open_amd()
    apu, card = cards(telemetry)

    sample = await telemetry.sample("gpu0", (os.getpid(),))

    assert (apu.shares_host_memory, card.shares_host_memory) == (True, False)
    assert sample.source == "amdsmi (VRAM and GTT)"
    assert (sample.total_bytes, sample.used_bytes) == (18 * 2**20, 4 * 2**20)
    assert sample.free_bytes == 14 * 2**20
    assert sample.children_bytes == 3 * 2**20


async def test_apu_has_no_more_free_than_the_host_has_available(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    amd.make_apu(0, carve_out_bytes=GIB, gtt_bytes=2**50)
    telemetry = await open_amd()

    sample = await telemetry.sample("gpu0")

    assert sample.total_bytes == 2**50 + GIB
    assert 0 < sample.free_bytes < psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (2, "update the amdgpu driver"),
        (6, "refuses calls on its device node"),
        (NO_PERM, "/dev/dri/renderD*"),
        (14, "mount /sys readable"),
        (18, "no driver that it can use"),
        (30, "wait until that is over"),
        (34, "the amdgpu kernel driver is not loaded"),
        (54, "amdgpu could not be restarted"),
        (-1, "unknown error"),
        (5, "5 | AMDSMI_STATUS_FAIL_LOAD_SYMBOL - Fail to load symbol; see `amd-smi list`"),
    ],
)
@without_amd_cards
async def test_each_failure_to_open_has_its_own_remedy(
    open_amd: OpenTelemetry, amd: SimulatedAmd, code: int, words: str
) -> None:
    amd.fail("amdsmi_init", code)

    telemetry = await open_amd()

    (problem,) = telemetry.problems
    assert problem.startswith("cannot open AMD SMI: ")
    assert words in problem
    assert "\n" not in problem
    assert telemetry.gpus() == ()


@without_amd_cards
async def test_cards_that_are_not_told_of_are_a_problem(
    open_amd: OpenTelemetry, amd: SimulatedAmd
) -> None:
    amd.fail("amdsmi_get_socket_handles", NO_PERM)

    (problem,) = (await open_amd()).problems

    assert problem.startswith("cannot list the AMD GPUs: permission denied")


@without_amd_cards
async def test_library_of_another_release_is_said_with_the_symbol_that_it_lacks(
    open_amd: OpenTelemetry, tmp_path: Path
) -> None:
    symbol = "amdsmi_get_gpu_cache_info"
    build_library(tmp_path / "old-rocm", without=(symbol,))

    (problem,) = (await open_amd(ROCM_PATH=str(tmp_path / "old-rocm"))).problems

    assert symbol in problem
    assert "install the `amdsmi` package of the ROCm release" in problem


@without_amd_cards
async def test_bindings_without_their_library_are_no_amd_machine(
    open_amd: OpenTelemetry, tmp_path: Path
) -> None:
    telemetry = await open_amd(ROCM_PATH=str(tmp_path))

    assert telemetry.problems == ()
    assert cards(telemetry) == []


async def test_lost_card_is_an_error_and_leaves_the_other_readable(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    amd.set_used(3 * GIB, device=1)
    amd.lose(0)

    message = await error_of(amd_telemetry)

    assert "AMD Instinct MI210 (0000:c3:00.0)" in message
    assert "fallen off the bus" in message
    assert (await amd_telemetry.sample("gpu1")).used_bytes == 3 * GIB
    assert amd_telemetry.health("gpu0").state is TelemetryState.LOST
    assert amd_telemetry.health("gpu1").state is TelemetryState.OK


async def test_card_whose_memory_is_not_told_is_no_empty_card(
    amd_telemetry: Telemetry, amd: SimulatedAmd
) -> None:
    amd.fail(MEMORY_CALL, NOT_SUPPORTED, 0)

    assert "does not offer this" in await error_of(amd_telemetry)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, [(1, "0"), (0, "1")]),
        ({"HIP_VISIBLE_DEVICES": "0"}, [(1, "0")]),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, [(0, "1"), (1, "0")]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [(0, "0")]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-00000000000000a2"}, [(1, "0")]),
        ({"ROCR_VISIBLE_DEVICES": "1,0", "HIP_VISIBLE_DEVICES": "1"}, [(1, "1")]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [(0, "1")]),
        ({"CUDA_VISIBLE_DEVICES": "5"}, []),
        ({"HIP_VISIBLE_DEVICES": "-1"}, []),
    ],
)
async def test_variables_count_as_hip_does_and_indices_as_amd_smi(
    open_amd: OpenTelemetry,
    amd: SimulatedAmd,
    environment: dict[str, str],
    expected: list[tuple[int, str]],
) -> None:
    amd.devices[0].hip_id, amd.devices[1].hip_id = 1, 0

    found = cards(await open_amd(FAST, **environment))

    shown = [child_environment([info.device], found)["HIP_VISIBLE_DEVICES"] for info in found]
    assert list(zip([info.index for info in found], shown, strict=True)) == expected
