"""Machines as facts, for the tests of judging: one where all is well, and what differs from it."""

from dataclasses import replace
from typing import Any

from supervisor.config.profile import Profile
from supervisor.core.machine.memory import MemorySample
from supervisor.doctor.facts import (
    ConfigurationFacts,
    Container,
    DataFolder,
    DeviceFacts,
    DeviceNode,
    EngineFacts,
    Facts,
    HostFacts,
    ProcessFacts,
    VendorTraces,
)
from supervisor.engine.port import EngineIdentity
from supervisor.telemetry.port import DeviceHealth, DeviceInfo, TelemetryState

GIB = 1024**3

CPU_SERVER = EngineIdentity(name="llama-server", location="/opt/llama-server", version="b1")
CUDA_SERVER = replace(CPU_SERVER, devices=("CUDA0: NVIDIA H200 (143771 MiB)",))
ROCM_SERVER = replace(CPU_SERVER, devices=("ROCm0: AMD Instinct MI210 (65520 MiB)",))
WHEEL = EngineIdentity(
    name="embedded", location="xllamacpp", version="1", devices=("CPU: AMD EPYC",)
)

NO_NVIDIA = VendorTraces(vendor="NVIDIA")
NO_AMD = VendorTraces(vendor="AMD")
HOST_DEVICE = DeviceInfo(device="host", name="host memory", vendor="host", total_bytes=64 * GIB)


def node(path: str, **changes: Any) -> DeviceNode:
    usual = DeviceNode(path=path, mode=0o666, uid=0, gid=0, group="root", is_usable=True)
    return replace(usual, **changes)


NVIDIA = VendorTraces(
    vendor="NVIDIA",
    pci_ids=("0000:3b:00.0",),
    kernel_driver="580.65.06",
    libraries=(
        ("libnvidia-ml.so.1", "/usr/lib64/libnvidia-ml.so.1"),
        ("libcuda.so.1", "/usr/lib64/libcuda.so.1"),
    ),
    nodes=tuple(map(node, ("/dev/nvidiactl", "/dev/nvidia0", "/dev/nvidia-uvm"))),
)
AMD = VendorTraces(
    vendor="AMD",
    pci_ids=("0000:c1:00.0",),
    kernel_driver="6.12.12",
    nodes=tuple(map(node, ("/dev/kfd", "/dev/dri/renderD128"))),
)


def gpu(vendor: str = "NVIDIA", **changes: Any) -> DeviceInfo:
    name = {"NVIDIA": "NVIDIA H200", "AMD": "AMD Instinct MI210"}[vendor]
    usual = DeviceInfo(device="gpu0", name=name, vendor=vendor, total_bytes=64 * GIB, index=0)
    return replace(usual, **changes)


def found(*gpus: DeviceInfo, problems: tuple[str, ...] = ()) -> DeviceFacts:
    devices = (*gpus, HOST_DEVICE)
    return DeviceFacts(
        devices=devices,
        health=tuple(
            DeviceHealth(
                device=info.device,
                state=TelemetryState.LOST if info.fault else TelemetryState.OK,
                reason=info.fault,
            )
            for info in devices
        ),
        problems=problems,
    )


def running(*device: str) -> ConfigurationFacts:
    """A configuration with a model whose profile names devices."""
    given = device[0] if len(device) == 1 else device
    profile = Profile.model_validate({"mode": "generation", "device": given})
    return ConfigurationFacts(profiles={"big.yaml:2: device: 'chat'": profile})


def engines(*identities: EngineIdentity, **changes: Any) -> EngineFacts:
    return replace(EngineFacts(found=identities, chosen=identities[0].name), **changes)


def memory(total_bytes: int) -> MemorySample:
    return MemorySample(
        device="host",
        taken_at=0.0,
        total_bytes=total_bytes,
        used_bytes=0,
        free_bytes=total_bytes,
        source="cgroup v2",
    )


CPU_MACHINE = Facts(
    process=ProcessFacts(
        uid=1000,
        gid=1000,
        groups=(1000,),
        kernel="6.8.0",
        python="3.12.0",
        open_files_limit=1_048_576,
    ),
    container=Container(),
    vendors=(NO_NVIDIA, NO_AMD),
    visibility={},
    devices=found(),
    engines=engines(CPU_SERVER, WHEEL),
    host=HostFacts(memory=memory(64 * GIB), machine_bytes=64 * GIB, largest_model=("a", GIB)),
    data=DataFolder(path="data", exists=True, problem=None, free_bytes=100 * GIB),
)
NVIDIA_MACHINE = replace(
    CPU_MACHINE,
    vendors=(NVIDIA, NO_AMD),
    devices=found(gpu()),
    engines=engines(CUDA_SERVER, WHEEL),
)
AMD_MACHINE = replace(
    CPU_MACHINE,
    vendors=(NO_NVIDIA, AMD),
    devices=found(gpu("AMD")),
    engines=engines(ROCM_SERVER, WHEEL),
)
KUBERNETES = Container(runtime="kubernetes")
DOCKER = Container(runtime="docker")
