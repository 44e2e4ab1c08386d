"""AMD, as the rest of the product needs to know it."""

import importlib.util
from pathlib import Path

from supervisor.telemetry.amd.visible import CHILD_VARIABLE
from supervisor.telemetry.port import DeviceReader
from supervisor.telemetry.vendor import (
    ComputeNode,
    EngineBuild,
    TracePlaces,
    Vendor,
    VisibilityRules,
)

_HIDING = ("ROCR_VISIBLE_DEVICES", CHILD_VARIABLE)


def _open_reader() -> DeviceReader:
    from supervisor.telemetry.amd.reader import AmdReader  # noqa: PLC0415 - of a sampler only

    return AmdReader()


def _may_be_here(root: Path) -> bool:
    """Whether the kernel shows the memory of a card, or AMD SMI is installed."""
    has_cards = any((root / "sys/class/drm").glob("card*/device/mem_info_vram_total"))
    return has_cards or importlib.util.find_spec("amdsmi") is not None


AMD = Vendor(
    name="AMD",
    open_reader=_open_reader,
    may_be_here=_may_be_here,
    visibility=VisibilityRules(
        variables=(*_HIDING, "CUDA_VISIBLE_DEVICES"),  # HIP takes it where its own is not set
        hiding=(*_HIDING, "CUDA_VISIBLE_DEVICES"),
        hidden_as=((CHILD_VARIABLE, "-1"),),
    ),
    traces=TracePlaces(
        pci_vendor="0x1002",
        version_files=("sys/module/amdgpu/version",),
        modules=("sys/module/amdgpu",),
        libraries=("libamd_smi.so", "libhsa-runtime64.so.1", "libamdhip64.so"),
        library_folders=("opt/rocm/lib",),
        nodes=("kfd", "dri/renderD*"),
        package="amdsmi",
        mounts=r"/dev/(kfd|dri)\b|rocm|amdgpu",
    ),
    grants={
        "kubernetes": "request amd.com/gpu in resources.limits (AMD's device plugin)",
        "docker": "start the container with --device /dev/kfd --device /dev/dri",
        "podman": "start the container with --device /dev/kfd --device /dev/dri",
        "unknown": "give the container /dev/kfd and /dev/dri",
        "": "load the amdgpu driver (`modprobe amdgpu`)",
    },
    is_known_by_place=True,  # the library and the kernel give a card other UUIDs
    compute_node=ComputeNode(path="/dev/kfd", beside="/dev/dri/renderD", is_for_all=True),
    build=EngineBuild(
        backends=frozenset({"rocm", "hip", "vulkan"}), flag="-DGGML_HIP=ON", image="server-rocm"
    ),
    tool="amd-smi",
    kernel_words="amdgpu",
)
