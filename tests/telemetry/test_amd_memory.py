"""AMD cards through the kernel's files, here in a temporary folder."""

import sys
from pathlib import Path

import pytest

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.amd.reader import AmdReader
from supervisor.telemetry.host import MachineMemory
from supervisor.telemetry.port import VendorAbsentError

GIB = 1024**3
METRICS_OF_A_CARD = bytes([96, 0, 1, 3])
METRICS_OF_AN_APU = bytes([128, 0, 2, 2])


class Machine:
    """A machine whose AMD cards are read through /sys, with 40 GiB of host memory available."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.drm = root / "sys/class/drm"
        self.reader = AmdReader(
            environment,
            root=root,
            load_library=lambda: None,
            machine_memory=lambda: MachineMemory(total_bytes=64 * GIB, available_bytes=40 * GIB),
        )

    def add_card(
        self, name: str, *, vram_gib: tuple[int, int], gtt_gib: tuple[int, int], metrics: bytes
    ) -> Path:
        """Add a card with (total, used) of each pool."""
        folder = self.drm / name / "device"
        folder.mkdir(parents=True)
        for pool, (total, used) in {"vram": vram_gib, "gtt": gtt_gib}.items():
            (folder / f"mem_info_{pool}_total").write_text(f"{total * GIB}\n")
            (folder / f"mem_info_{pool}_used").write_text(f"{used * GIB}\n")
        (folder / "vendor").write_text("0x1002\n")
        (folder / "device").write_text("0x744c\n")
        (folder / "gpu_metrics").write_bytes(metrics)
        return folder

    def read(self, device: str = "gpu0", *child_pids: int) -> MemorySample:
        self.reader.devices()
        return self.reader.sample(device, child_pids)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_discrete_card_never_adds_gtt_however_large(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(24, 4), gtt_gib=(32, 1), metrics=METRICS_OF_A_CARD)

    sample = machine.read()

    assert sample.source == "sysfs"
    assert sample.total_bytes == 24 * GIB
    assert sample.used_bytes == 4 * GIB
    assert sample.free_bytes == 20 * GIB


def test_card_of_an_unknown_kind_is_taken_for_discrete(machine: Machine) -> None:
    folder = machine.add_card("card0", vram_gib=(1, 0), gtt_gib=(32, 1), metrics=b"")
    (folder / "gpu_metrics").unlink()

    assert machine.read().total_bytes == GIB


def test_apu_with_the_larger_gtt_adds_both_pools(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(2, 1), gtt_gib=(32, 3), metrics=METRICS_OF_AN_APU)

    sample = machine.read()

    assert sample.source == "sysfs (VRAM and GTT)"
    assert sample.total_bytes == 34 * GIB
    assert sample.used_bytes == 4 * GIB
    assert sample.free_bytes == 30 * GIB


def test_apu_has_no_more_free_than_the_host_has_available(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(2, 0), gtt_gib=(60, 0), metrics=METRICS_OF_AN_APU)

    assert machine.read().free_bytes == 40 * GIB


def test_apu_with_the_larger_carve_out_uses_that_alone(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(32, 8), gtt_gib=(16, 1), metrics=METRICS_OF_AN_APU)

    assert machine.read().free_bytes == 24 * GIB


def test_machine_without_cards_is_without_this_vendor(machine: Machine) -> None:
    with pytest.raises(VendorAbsentError, match="no AMD GPU"):
        machine.reader.devices()


def test_only_amd_cards_with_known_memory_are_listed_in_their_order(machine: Machine) -> None:
    for name in ("card10", "card2", "card0", "card1", "card2-DP-1"):
        machine.add_card(name, vram_gib=(8, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)
    drm = machine.drm
    (drm / "card0/device/vendor").write_text("0x10de\n")
    (drm / "card1/device/mem_info_vram_total").unlink()
    (drm / "card2/device/unique_id").write_text("18f2\n")
    (drm / "card10/device/product_name").write_text("Instinct MI210\n")

    found = machine.reader.devices()

    assert [(info.device, info.name, info.uuid, info.vendor) for info in found] == [
        ("gpu0", "AMD GPU 0x744c", "18f2", "AMD"),
        ("gpu1", "Instinct MI210", None, "AMD"),
    ]


def test_childrens_share_is_unknown_unless_there_are_no_children(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(8, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)

    assert machine.read("gpu0", 71).children_bytes is None
    assert machine.read("gpu0").children_bytes == 0


def test_card_that_stops_answering_is_an_error_with_a_remedy(machine: Machine) -> None:
    folder = machine.add_card("card0", vram_gib=(8, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)
    machine.reader.devices()
    (folder / "mem_info_vram_used").unlink()

    with pytest.raises(TelemetryError, match="kernel log"):
        machine.reader.sample("gpu0")


def test_reading_a_device_that_was_not_found_is_refused(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(8, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)

    with pytest.raises(TelemetryError, match="gpu3"):
        machine.read("gpu3")


def test_kernels_files_tell_load_and_place_but_no_processes(machine: Machine) -> None:
    card = machine.add_card("card0", vram_gib=(24, 4), gtt_gib=(32, 1), metrics=METRICS_OF_A_CARD)
    place = machine.drm / "0000:03:00.0"
    card.rename(place)
    card.symlink_to(place)
    sensors = place / "hwmon/hwmon3"
    sensors.mkdir(parents=True)
    (place / "gpu_busy_percent").write_text("71\n")
    (sensors / "temp1_input").write_text("54000\n")
    (sensors / "power1_average").write_text("201000000\n")
    (info,) = machine.reader.devices()

    reading = machine.reader.read("gpu0")

    told = (reading.utilisation_percent, reading.temperature_c, reading.power_w)
    assert told == (71, 54, 201)
    assert reading.processes is None
    assert (info.pci_id, info.index) == ("0000:03:00.0", 0)


def test_kernels_files_that_are_missing_are_unknown(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(24, 4), gtt_gib=(32, 1), metrics=METRICS_OF_A_CARD)
    machine.reader.devices()

    reading = machine.reader.read("gpu0")

    assert (reading.utilisation_percent, reading.temperature_c, reading.power_w) == (None,) * 3


def test_apu_says_that_it_shares_the_hosts_memory_and_a_card_does_not(machine: Machine) -> None:
    machine.add_card("card0", vram_gib=(2, 1), gtt_gib=(32, 3), metrics=METRICS_OF_AN_APU)
    machine.add_card("card1", vram_gib=(24, 4), gtt_gib=(32, 1), metrics=METRICS_OF_A_CARD)

    assert [info.shares_host_memory for info in machine.reader.devices()] == [True, False]


def test_visible_cards_are_chosen_and_a_child_is_shown_one_of_them(tmp_path: Path) -> None:
    machine = Machine(tmp_path, ROCR_VISIBLE_DEVICES="2,0", HIP_VISIBLE_DEVICES="1")
    for index in range(3):
        name = f"card{index}"
        machine.add_card(name, vram_gib=(8 + index, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)

    (info,) = machine.reader.devices()

    assert (info.device, info.index, info.total_bytes) == ("gpu0", 0, 8 * GIB)
    assert info.visible_as == (("HIP_VISIBLE_DEVICES", "1"),)


def test_card_whose_render_node_the_container_lacks_is_left_out(machine: Machine) -> None:
    for index in range(2):
        name = f"card{index}"
        card = machine.add_card(name, vram_gib=(8, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)
        (card / f"drm/renderD{128 + index}").mkdir(parents=True)
    nodes = machine.drm.parents[2] / "dev/dri"
    nodes.mkdir(parents=True)
    assert len(machine.reader.devices()) == 2  # as where only /sys is mounted

    (nodes / "renderD129").touch()

    assert [info.visible_as for info in machine.reader.devices()] == [
        (("HIP_VISIBLE_DEVICES", "0"),)
    ]


@pytest.mark.parametrize("failure", ["ImportError('no module')", "OSError('no libamd_smi.so')"])
def test_bindings_that_cannot_be_imported_are_silent_and_the_kernels_files_are_read(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    failure: str,
) -> None:
    machine.add_card("card0", vram_gib=(8, 0), gtt_gib=(8, 0), metrics=METRICS_OF_A_CARD)
    (tmp_path / "amdsmi.py").write_text(f"print('Unable to find libamd_smi.so')\nraise {failure}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)

    (info,) = AmdReader({}, root=tmp_path).devices()

    assert info.total_bytes == 8 * GIB
    assert capsys.readouterr().out == ""
