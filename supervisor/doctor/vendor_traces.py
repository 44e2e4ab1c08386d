"""What shows of a GPU vendor in files: PCI bus, kernel module, libraries, device nodes, mounts.

Nothing is opened that belongs to a driver: a device that hangs must not hang the doctor.
"""

import grp
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from supervisor.doctor.facts import Container, DeviceNode, VendorName, VendorTraces

_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/local/nvidia/lib64",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
    "opt/rocm/lib",
)
_GPU_CLASSES = ("0x03", "0x12")  # display controllers and processing accelerators (PCI ID list)
_MOUNTS = re.compile(r"nvidia|libcuda|/dev/(kfd|dri)\b|rocm|amdgpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where a vendor's traces are, relative to the root."""

    vendor: VendorName
    pci_vendor: str
    version_files: tuple[str, ...]
    modules: tuple[str, ...]
    libraries: tuple[str, ...]
    nodes: tuple[str, ...]
    package: str


_PLACES = (
    _Places(
        vendor="NVIDIA",
        pci_vendor="0x10de",
        version_files=("sys/module/nvidia/version", "proc/driver/nvidia/version"),
        modules=("sys/module/nvidia", "proc/driver/nvidia/version"),
        libraries=("libnvidia-ml.so.1", "libcuda.so.1"),
        # Not /dev/nvidia-caps: those are root's by design, and used by MIG's tools only.
        nodes=("nvidiactl", "nvidia[0-9]*", "nvidia-uvm", "dxg"),
        package="nvidia-ml-py",
    ),
    _Places(
        vendor="AMD",
        pci_vendor="0x1002",
        version_files=("sys/module/amdgpu/version",),
        modules=("sys/module/amdgpu",),
        libraries=("libamd_smi.so", "libhsa-runtime64.so.1", "libamdhip64.so"),
        nodes=("kfd", "dri/renderD*"),
        package="amdsmi",
    ),
)


def find_traces(root: Path, environ: Mapping[str, str]) -> tuple[VendorTraces, ...]:
    """Look for every vendor under a root folder; `environ` names further folders of libraries."""
    return tuple(
        VendorTraces(
            vendor=places.vendor,
            pci_ids=tuple(_pci_ids(root, places.pci_vendor)),
            kernel_driver=_kernel_driver(root, places),
            libraries=tuple(_libraries(root, places.libraries, environ)),
            nodes=tuple(_nodes(root, places)),
            bindings=_package_version(places.package),
        )
        for places in _PLACES
    )


def _pci_ids(root: Path, vendor: str) -> Iterator[str]:
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        is_gpu = _read(folder / "class").startswith(_GPU_CLASSES)
        if is_gpu and _read(folder / "vendor") == vendor:
            yield folder.name


def _kernel_driver(root: Path, places: _Places) -> str | None:
    """Return the version of the loaded module; empty where only its presence shows."""
    if not any((root / module).exists() for module in places.modules):
        return None
    for file in places.version_files:
        told = re.search(r"\d+(\.\d+)+", _read(root / file))
        if told:
            return told[0]
    return ""


def _libraries(
    root: Path, names: tuple[str, ...], environ: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    named = environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [*(folder.lstrip("/") for folder in named if folder), *_LIBRARY_FOLDERS]
    for name in names:
        found = (root / folder / name for folder in folders)
        path = next((path for path in found if path.exists()), None)
        if path is not None:
            yield name, f"/{path.relative_to(root)}"


def _nodes(root: Path, places: _Places) -> Iterator[DeviceNode]:
    for pattern in places.nodes:
        for path in sorted((root / "dev").glob(pattern)):
            driver = _read(root / "sys/class/drm" / path.name / "device/vendor")
            is_theirs = driver in {"", places.pci_vendor}  # render nodes are of every vendor
            if is_theirs and path.exists():
                yield _look_at_node(root, path)


def _look_at_node(root: Path, path: Path) -> DeviceNode:
    status = path.stat()
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = None
    return DeviceNode(
        path=f"/{path.relative_to(root)}",
        mode=status.st_mode & 0o7777,
        uid=status.st_uid,
        gid=status.st_gid,
        group=group,
        is_usable=os.access(path, os.R_OK | os.W_OK, effective_ids=True),
    )


def find_container(root: Path, environ: Mapping[str, str]) -> Container:
    """Look for the container around us, and what its runtime has put into it."""
    runtime = _container_runtime(root, environ)
    if runtime is None:
        return Container()
    lines = (line.split() for line in _read(root / "proc/self/mountinfo").splitlines())
    mounts = (line[4] for line in lines if len(line) > 4)  # proc(5): the mount point
    return Container(
        runtime=runtime,
        mounts=tuple(mount for mount in mounts if _MOUNTS.search(mount)),
        device_plugin=_device_plugin(root, environ),
    )


def _container_runtime(
    root: Path, environ: Mapping[str, str]
) -> Literal["kubernetes", "docker", "podman", "unknown"] | None:
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    is_named = re.search(r"kubepods|docker|containerd|lxc", _read(root / "proc/1/cgroup"))
    return "unknown" if is_named else None


def _device_plugin(root: Path, environ: Mapping[str, str]) -> str | None:
    """Return by which sign NVIDIA's device plugin is known to have granted a device.

    It names devices by UUID in NVIDIA_VISIBLE_DEVICES, or as files in a folder that it mounts
    (`DEVICE_LIST_STRATEGY` of k8s-device-plugin). AMD's leaves nothing but the device nodes.
    """
    granted = environ.get("NVIDIA_VISIBLE_DEVICES", "")
    if granted.startswith(("GPU-", "MIG-")):
        return f"NVIDIA_VISIBLE_DEVICES={granted}"
    folder = root / "var/run/nvidia-container-devices"
    names = sorted(path.name for path in folder.glob("*"))
    return f"/var/run/nvidia-container-devices: {', '.join(names)}" if names else None


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
