"""Findings about GPUs: those that cannot be reached, used, or told apart."""

from collections.abc import Iterator, Mapping

from supervisor.doctor.facts import DeviceNode, Facts, VendorName, VendorTraces
from supervisor.doctor.findings import Finding, error, warning
from supervisor.telemetry.port import HOST, DeviceInfo

_GRANT: Mapping[VendorName, Mapping[str, str]] = {
    "NVIDIA": {
        "kubernetes": "request nvidia.com/gpu in resources.limits, and set runtimeClassName: "
        "nvidia unless that is the node's default runtime",
        "docker": "start the container with --gpus all (NVIDIA Container Toolkit)",
        "podman": "start the container with --device nvidia.com/gpu=all (NVIDIA Container Toolkit)",
        "unknown": "start the container with the NVIDIA runtime",
        "": "install the NVIDIA driver, and load it (`modprobe nvidia`)",
    },
    "AMD": {
        "kubernetes": "request amd.com/gpu in resources.limits (AMD's device plugin)",
        "docker": "start the container with --device /dev/kfd --device /dev/dri",
        "podman": "start the container with --device /dev/kfd --device /dev/dri",
        "unknown": "give the container /dev/kfd and /dev/dri",
        "": "load the amdgpu driver (`modprobe amdgpu`)",
    },
}
_HIDING: Mapping[VendorName, tuple[str, ...]] = {
    "NVIDIA": ("CUDA_VISIBLE_DEVICES",),
    "AMD": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}
_NODE_THAT_COMPUTES: Mapping[VendorName, tuple[str, str]] = {
    "NVIDIA": ("/dev/nvidiactl", "/dev/nvidia-uvm"),
    "AMD": ("/dev/dri/renderD", "/dev/kfd"),
}


def judge_devices(facts: Facts) -> Iterator[Finding]:
    """Judge each vendor's devices, and the variables that choose among them."""
    for traces in facts.vendors:
        devices = devices_of(facts, traces.vendor)
        if not devices:
            yield from _judge_absence(facts, traces)
        yield from _judge_nodes(facts, traces)
        if devices:
            yield from _judge_libraries(facts, traces)
    yield from _judge_numbering(facts)


def devices_of(facts: Facts, vendor: str) -> tuple[DeviceInfo, ...]:
    """Return the vendor's devices that telemetry found; with `*`, every GPU."""
    return tuple(
        info
        for info in facts.devices.devices
        if info.device != HOST and vendor in {info.vendor, "*"}
    )


def _judge_absence(facts: Facts, traces: VendorTraces) -> Iterator[Finding]:
    """A GPU is on the bus, or was asked for, and telemetry finds none of the vendor's."""
    if facts.devices.problems:
        return  # telemetry knows better
    hiding = [name for name in _HIDING[traces.vendor] if _hides_all(facts.visibility.get(name))]
    is_reached = traces.kernel_driver is not None and traces.nodes
    if hiding and is_reached:
        name = hiding[0]
        yield warning(
            f"{name}={facts.visibility[name]} hides every {traces.vendor} GPU",
            f"unset {name}, or name the devices to be used in it",
        )
        return
    remedy = _GRANT[traces.vendor][facts.container.runtime or ""]
    wish = facts.visibility.get("NVIDIA_VISIBLE_DEVICES", "")
    if traces.vendor == "NVIDIA" and facts.container.runtime and wish not in {"", "none", "void"}:
        yield warning(
            f"NVIDIA_VISIBLE_DEVICES={wish} asks for GPUs, but the NVIDIA runtime has put no "
            "driver into this container",
            remedy,
        )
    elif traces.pci_ids:
        yield warning(
            f"{traces.vendor} GPUs are on the PCI bus ({', '.join(traces.pci_ids)}) and cannot be "
            "reached from here; everything runs on the CPU",
            remedy,
        )


def _hides_all(value: str | None) -> bool:
    first = None if value is None else value.split(",")[0].strip()
    return first is not None and (first in {"", "NoDevFiles"} or first.startswith("-"))


def _judge_nodes(facts: Facts, traces: VendorTraces) -> Iterator[Finding]:
    """The files through which programs reach the device: each must be there and open to us."""
    for node in traces.nodes:
        if not node.is_usable:
            yield error(
                f"user {facts.process.uid} may not read and write {node.path} "
                f"(mode {node.mode:04o}, group {node.group or node.gid})",
                _node_remedy(facts, node),
            )
    first, needed = _NODE_THAT_COMPUTES[traces.vendor]
    paths = [node.path for node in traces.nodes]
    is_used = devices_of(facts, traces.vendor) and traces.vendor == "AMD"
    if needed not in paths and (is_used or any(path.startswith(first) for path in paths)):
        loading = "run `nvidia-modprobe -u -c 0` on the host" if traces.vendor == "NVIDIA" else ""
        grant = _GRANT[traces.vendor][facts.container.runtime or ""]
        yield warning(
            f"{needed} is not here: programs see the {traces.vendor} GPU and cannot compute on it",
            "; or ".join(filter(None, (loading, grant))),
        )


def _node_remedy(facts: Facts, node: DeviceNode) -> str:
    if not node.mode & 0o060:
        return f"give a group access to {node.path} (`chmod g+rw`, better by a udev rule)"
    match facts.container.runtime:
        case "kubernetes":
            return f"add group {node.gid} to securityContext.supplementalGroups"
        case "docker" | "podman" | "unknown":
            return f"start the container with --group-add {node.gid}"
        case None:
            group = node.group or str(node.gid)
            return f"add this user to its group (`usermod -aG {group} USER`), and log in again"


def _judge_libraries(facts: Facts, traces: VendorTraces) -> Iterator[Finding]:
    if traces.vendor != "NVIDIA" or "libcuda.so.1" in dict(traces.libraries):
        return
    in_container = facts.container.runtime is not None
    yield warning(
        "libcuda.so.1 is not in the usual folders: the GPU can be watched, and CUDA may not be "
        "able to compute on it",
        "set NVIDIA_DRIVER_CAPABILITIES=compute,utility for the container"
        if in_container
        else "install the driver's libraries (libcuda), or name their folder in LD_LIBRARY_PATH",
    )


def _judge_numbering(facts: Facts) -> Iterator[Finding]:
    """CUDA counts the fastest device first unless told otherwise (CUDA_DEVICE_ORDER)."""
    wish = facts.visibility.get("CUDA_VISIBLE_DEVICES", "")
    kinds = {info.name for info in devices_of(facts, "NVIDIA")}
    in_bus_order = facts.visibility.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if len(kinds) > 1 and wish[:1].isdecimal() and not in_bus_order:
        yield warning(
            f"CUDA_VISIBLE_DEVICES={wish} counts devices of several kinds, and CUDA counts them "
            "in another order than the driver",
            "name devices by UUID in it (`nvidia-smi -L`), or set CUDA_DEVICE_ORDER=PCI_BUS_ID",
        )
