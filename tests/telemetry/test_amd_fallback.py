"""When AMD SMI does not help, and which of the cards it shows are not this container's."""

import subprocess
import sys
from pathlib import Path

from lab.drivers.amd import NO_PERM, SimulatedAmd

# Reads cards under another root: what a sampler does, whose root is always /.
READER = """
import sys
from pathlib import Path
from supervisor.telemetry.amd.reader import AmdReader

reader = AmdReader(root=Path(sys.argv[1]))
for info in reader.devices():
    print(info.name, reader.sample(info.device).source, file=sys.stderr)
"""


def read_under(root: Path, environ: dict[str, str]) -> tuple[list[str], str]:
    """Give a line for each card that is found, and what was written to standard output."""
    done = subprocess.run(
        [sys.executable, "-c", READER, root],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.splitlines(), done.stdout


def add_sysfs_card(root: Path) -> None:
    folder = root / "sys/class/drm/card0/device"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text("0x1002\n")
    (folder / "product_name").write_text("Radeon PRO W7900\n")
    for name in ("vram_total", "vram_used", "gtt_total", "gtt_used"):
        (folder / f"mem_info_{name}").write_text("4096\n")


def test_bindings_without_their_library_are_silent_and_the_kernels_files_are_read(
    amd: SimulatedAmd, tmp_path: Path
) -> None:
    add_sysfs_card(tmp_path)

    found, written = read_under(tmp_path, amd.full_environment(ROCM_PATH=str(tmp_path)))

    assert found == ["Radeon PRO W7900 sysfs"]
    assert written == ""


def test_library_that_does_not_open_leaves_the_kernels_files(
    amd: SimulatedAmd, tmp_path: Path
) -> None:
    add_sysfs_card(tmp_path)
    amd.fail("amdsmi_init", NO_PERM)

    found, _ = read_under(tmp_path, amd.full_environment())

    assert found == ["Radeon PRO W7900 sysfs"]


def test_bindings_that_show_no_card_leave_them_to_the_kernels_files(
    amd: SimulatedAmd, tmp_path: Path
) -> None:
    add_sysfs_card(tmp_path)
    amd.state.device_count = 0

    found, _ = read_under(tmp_path, amd.full_environment())

    assert found == ["Radeon PRO W7900 sysfs"]


def test_cards_whose_render_node_the_container_lacks_are_left_out(
    amd: SimulatedAmd, tmp_path: Path
) -> None:
    amd.devices[0].render_minor, amd.devices[1].render_minor = 128, 129
    amd.devices[1].name = b"AMD Instinct MI250"
    (tmp_path / "dev/dri").mkdir(parents=True)
    (tmp_path / "dev/dri/renderD129").touch()

    found, _ = read_under(tmp_path, amd.full_environment())

    assert found == ["AMD Instinct MI250 amdsmi"]
