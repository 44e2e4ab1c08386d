"""What shows of a GPU vendor in files: PCI bus, kernel module, libraries, device nodes, mounts.

Nothing is opened that belongs to a driver: a device that hangs must not hang the doctor.
"""

import grp
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from supervisor.doctor.facts import Container, DeviceNode, VendorTraces
from supervisor.telemetry.vendor import TracePlaces
from supervisor.telemetry.vendors import VENDORS

_LIBRARY_FOLDERS = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
)
_GPU_CLASSES = ("0x03", "0x12")  # display controllers and processing accelerators (PCI ID list)
_MOUNTS = re.compile("|".join(vendor.traces.mounts for vendor in VENDORS.values()))


def find_traces(root: Path, environ: Mapping[str, str]) -> tuple[VendorTraces, ...]:
    """Look for every vendor under a root folder; `environ` names further folders of libraries."""
    return tuple(
        VendorTraces(
            vendor=vendor,
            pci_ids=tuple(_pci_ids(root, places.pci_vendor)),
            kernel_driver=_kernel_driver(root, places),
            libraries=tuple(_libraries(root, places, environ)),
            nodes=tuple(_nodes(root, places)),
            bindings=_package_version(places.package),
        )
        for vendor, places in ((each.name, each.traces) for each in VENDORS.values())
    )


def _pci_ids(root: Path, vendor: str) -> Iterator[str]:
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        is_gpu = _read(folder / "class").startswith(_GPU_CLASSES)
        if is_gpu and _read(folder / "vendor") == vendor:
            yield folder.name


def _kernel_driver(root: Path, places: TracePlaces) -> str | None:
    """Return the version of the loaded module; empty where only its presence shows."""
    if not any((root / module).exists() for module in places.modules):
        return None
    for file in places.version_files:
        found = re.search(r"\d+(\.\d+)+", _read(root / file))
        if found:
            return found[0]
    return ""


def _libraries(
    root: Path, places: TracePlaces, environ: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    named = environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [*(folder.lstrip("/") for folder in named if folder), *_LIBRARY_FOLDERS]
    folders += places.library_folders
    for name in places.libraries:
        found = (root / folder / name for folder in folders)
        path = next((path for path in found if path.exists()), None)
        if path is not None:
            yield name, f"/{path.relative_to(root)}"


def _nodes(root: Path, places: TracePlaces) -> Iterator[DeviceNode]:
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
    """Return by which sign a vendor's device plugin is known to have granted a device.

    Some leave nothing but the device nodes.
    """
    for places in (vendor.traces for vendor in VENDORS.values()):
        granted = environ.get(places.plugin_variable or "", "")
        if places.plugin_prefixes and granted.startswith(places.plugin_prefixes):
            return f"{places.plugin_variable}={granted}"
        if places.plugin_folder is not None:
            names = sorted(path.name for path in (root / places.plugin_folder).glob("*"))
            if names:
                return f"/{places.plugin_folder}: {', '.join(names)}"
    return None


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
