"""NVIDIA, as the rest of the product needs to know it."""

from supervisor.telemetry.nvidia.visible import CHILD_VARIABLE
from supervisor.telemetry.port import DeviceReader
from supervisor.telemetry.vendor import (
    ComputeLibrary,
    ComputeNode,
    EngineBuild,
    Numbering,
    TracePlaces,
    Vendor,
    VisibilityRules,
)


def _open_reader() -> DeviceReader:
    from supervisor.telemetry.nvidia.reader import NvidiaReader  # noqa: PLC0415 - of a sampler only

    return NvidiaReader()


NVIDIA = Vendor(
    name="NVIDIA",
    open_reader=_open_reader,
    # Its library can be in many places, so that only loading it shows whether it is here.
    may_be_here=lambda _root: True,
    visibility=VisibilityRules(
        variables=(
            "NVIDIA_VISIBLE_DEVICES",
            "NVIDIA_DRIVER_CAPABILITIES",
            CHILD_VARIABLE,
            "CUDA_DEVICE_ORDER",
        ),
        hiding=(CHILD_VARIABLE,),
        hidden_as=((CHILD_VARIABLE, "-1"),),
        asked_by="NVIDIA_VISIBLE_DEVICES",
    ),
    traces=TracePlaces(
        pci_vendor="0x10de",
        version_files=("sys/module/nvidia/version", "proc/driver/nvidia/version"),
        modules=("sys/module/nvidia", "proc/driver/nvidia/version"),
        libraries=("libnvidia-ml.so.1", "libcuda.so.1"),
        library_folders=("usr/local/nvidia/lib64",),
        # Not /dev/nvidia-caps: those are root's by design, and used by MIG's tools only.
        nodes=("nvidiactl", "nvidia[0-9]*", "nvidia-uvm", "dxg"),
        package="nvidia-ml-py",
        mounts="nvidia|libcuda",
        # Its device plugin names devices by UUID in the variable, or as files in the folder
        # (`DEVICE_LIST_STRATEGY` of k8s-device-plugin).
        plugin_folder="var/run/nvidia-container-devices",
        plugin_variable="NVIDIA_VISIBLE_DEVICES",
        plugin_prefixes=("GPU-", "MIG-"),
    ),
    grants={
        "kubernetes": "request nvidia.com/gpu in resources.limits, and set runtimeClassName: "
        "nvidia unless that is the node's default runtime",
        "docker": "start the container with --gpus all (NVIDIA Container Toolkit)",
        "podman": "start the container with --device nvidia.com/gpu=all (NVIDIA Container Toolkit)",
        "unknown": "start the container with the NVIDIA runtime",
        "": "install the NVIDIA driver, and load it (`modprobe nvidia`)",
    },
    compute_node=ComputeNode(
        path="/dev/nvidia-uvm",
        beside="/dev/nvidiactl",
        remedy="run `nvidia-modprobe -u -c 0` on the host",
    ),
    compute_library=ComputeLibrary(
        name="libcuda.so.1",
        missing="the GPU can be watched, and CUDA may not be able to compute on it",
        remedy_in_container="set NVIDIA_DRIVER_CAPABILITIES=compute,utility for the container",
        remedy="install the driver's libraries (libcuda), or name their folder in LD_LIBRARY_PATH",
    ),
    numbering=Numbering(
        api="CUDA",
        variable=CHILD_VARIABLE,
        order_variable="CUDA_DEVICE_ORDER",
        order="PCI_BUS_ID",
        remedy="name devices by UUID in it (`nvidia-smi -L`), or set CUDA_DEVICE_ORDER=PCI_BUS_ID",
    ),
    build=EngineBuild(
        backends=frozenset({"cuda", "vulkan"}), flag="-DGGML_CUDA=ON", image="server-cuda"
    ),
    tool="nvidia-smi",
    kernel_words="NVRM, Xid",
)
