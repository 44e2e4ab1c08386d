"""What shows of GPU vendors in the files of a machine, laid out in a temporary folder."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from supervisor.doctor.facts import VendorTraces
from supervisor.doctor.vendor_traces import find_container, find_traces
from tests.doctor.conftest import unprivileged

NVIDIA_VERSION = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:17:45 UTC 2025\n"
)


def lay_out(root: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def traces_of(vendor: str, root: Path, environ: Mapping[str, str] | None = None) -> VendorTraces:
    (traces,) = [each for each in find_traces(root, environ or {}) if each.vendor == vendor]
    return traces


def test_nothing_shows_on_an_empty_machine(tmp_path: Path) -> None:
    for traces in find_traces(tmp_path, {}):
        assert (traces.pci_ids, traces.libraries, traces.nodes) == ((), (), ())
        assert traces.kernel_driver is None
    assert traces_of("NVIDIA", tmp_path).bindings  # a dependency of ours


def test_gpus_on_the_bus_are_told_from_other_devices_and_vendors(tmp_path: Path) -> None:
    bus = "sys/bus/pci/devices"
    for place, kind, vendor in (
        ("0000:01:00.0", "0x030000", "0x10de"),  # a display controller
        ("0000:01:00.1", "0x040300", "0x10de"),  # its audio function
        ("0000:02:00.0", "0x120000", "0x1002"),  # an accelerator
        ("0000:03:00.0", "0x030000", "0x8086"),
    ):
        lay_out(tmp_path, {f"{bus}/{place}/class": kind, f"{bus}/{place}/vendor": vendor})

    assert traces_of("NVIDIA", tmp_path).pci_ids == ("0000:01:00.0",)
    assert traces_of("AMD", tmp_path).pci_ids == ("0000:02:00.0",)


@pytest.mark.parametrize(
    ("files", "vendor", "version"),
    [
        ({"sys/module/nvidia/version": "580.65.06\n"}, "NVIDIA", "580.65.06"),
        ({"proc/driver/nvidia/version": NVIDIA_VERSION}, "NVIDIA", "580.65.06"),
        ({"sys/module/amdgpu/version": "6.12.12\n"}, "AMD", "6.12.12"),
        ({"sys/module/amdgpu/parameters/dc": "1\n"}, "AMD", ""),  # the kernel's own has none
    ],
)
def test_kernel_driver_tells_its_version(
    tmp_path: Path, files: Mapping[str, str], vendor: str, version: str
) -> None:
    lay_out(tmp_path, files)

    assert traces_of(vendor, tmp_path).kernel_driver == version


def test_device_nodes_tell_mode_and_group(tmp_path: Path) -> None:
    names = ("nvidiactl", "nvidia0", "nvidia-uvm", "nvidia-caps/nvidia-cap1", "kfd")
    lay_out(tmp_path, {f"dev/{name}": "" for name in names})
    (tmp_path / "dev/kfd").chmod(0o640)

    nvidia, amd = traces_of("NVIDIA", tmp_path).nodes, traces_of("AMD", tmp_path).nodes

    assert [node.path for node in nvidia] == ["/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm"]
    (kfd,) = amd
    assert (kfd.path, kfd.mode, kfd.uid) == ("/dev/kfd", 0o640, os.getuid())
    assert (kfd.gid, kfd.is_usable) == ((tmp_path / "dev/kfd").stat().st_gid, True)
    assert kfd.group


def test_device_node_that_is_closed_to_us_says_so(open_folder: Path) -> None:
    lay_out(open_folder, {"dev/kfd": ""})
    (open_folder / "dev/kfd").chmod(0)

    with unprivileged():
        (kfd,) = traces_of("AMD", open_folder).nodes
    assert not kfd.is_usable


def test_render_node_of_another_vendor_is_left_out(tmp_path: Path) -> None:
    for name, vendor in (("renderD128", "0x8086"), ("renderD129", "0x1002")):
        lay_out(
            tmp_path,
            {f"dev/dri/{name}": "", f"sys/class/drm/{name}/device/vendor": f"{vendor}\n"},
        )

    assert [node.path for node in traces_of("AMD", tmp_path).nodes] == ["/dev/dri/renderD129"]


def test_libraries_are_found_in_usual_folders_and_those_that_the_environment_names(
    tmp_path: Path,
) -> None:
    lay_out(tmp_path, {"usr/lib64/libcuda.so.1": "", "opt/driver/libnvidia-ml.so.1": ""})

    traces = traces_of("NVIDIA", tmp_path, {"LD_LIBRARY_PATH": "/nowhere:/opt/driver"})

    assert dict(traces.libraries) == {
        "libnvidia-ml.so.1": "/opt/driver/libnvidia-ml.so.1",
        "libcuda.so.1": "/usr/lib64/libcuda.so.1",
    }


@pytest.mark.parametrize(
    ("files", "environ", "runtime"),
    [
        ({}, {}, None),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.43.0.1"}, "kubernetes"),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({"proc/1/cgroup": "0::/system.slice/containerd.service/x\n"}, {}, "unknown"),
        ({"proc/1/cgroup": "0::/init.scope\n"}, {}, None),
    ],
)
def test_container_is_known_by_what_its_runtime_leaves(
    tmp_path: Path, files: Mapping[str, str], environ: Mapping[str, str], runtime: str | None
) -> None:
    lay_out(tmp_path, files)

    assert find_container(tmp_path, environ).runtime == runtime


def test_mounts_of_a_gpu_runtime_are_listed(tmp_path: Path) -> None:
    lines = [
        f"7{number} 1 8:1 /x {place} ro,nosuid - ext4 /dev/sda1 rw"
        for number, place in enumerate(
            ("/etc/hosts", "/usr/lib64/libcuda.so.580", "/proc/driver/nvidia", "/dev/kfd")
        )
    ]
    lay_out(tmp_path, {".dockerenv": "", "proc/self/mountinfo": "\n".join(lines)})

    assert find_container(tmp_path, {}).mounts == (
        "/usr/lib64/libcuda.so.580",
        "/proc/driver/nvidia",
        "/dev/kfd",
    )


def test_device_plugin_is_known_by_the_uuid_or_the_folder_that_it_gives(tmp_path: Path) -> None:
    lay_out(tmp_path, {".dockerenv": ""})

    def sign(visible: str) -> str | None:
        return find_container(tmp_path, {"NVIDIA_VISIBLE_DEVICES": visible}).device_plugin

    assert sign("all") is None
    assert sign("GPU-1") == "NVIDIA_VISIBLE_DEVICES=GPU-1"
    lay_out(tmp_path, {"var/run/nvidia-container-devices/GPU-2": ""})
    assert "GPU-2" in (sign("all") or "")
