"""What the doctor finds in tables of facts, how bad it is, and what it advises."""

from dataclasses import replace
from typing import Any

import pytest

from supervisor.doctor.facts import ConfigurationFacts, Facts, ServiceFacts
from supervisor.doctor.judging import is_well, judge
from supervisor.telemetry.cgroup import CgroupLimit
from tests.doctor.machines import (
    AMD,
    AMD_MACHINE,
    CPU_MACHINE,
    CPU_SERVER,
    CUDA_SERVER,
    DOCKER,
    GIB,
    KUBERNETES,
    NO_AMD,
    NO_NVIDIA,
    NVIDIA,
    NVIDIA_MACHINE,
    ROCM_SERVER,
    WHEEL,
    engines,
    found,
    gpu,
    memory,
    node,
    running,
)

MISMATCH = (
    "cannot open NVML: the driver's library and its kernel module have different versions; "
    "reboot the node, or restart the pod"
)
LOST = "gpu0: cannot use NVIDIA device 0: the GPU is lost: it has fallen off the bus; reboot"


@pytest.mark.parametrize("machine", [CPU_MACHINE, NVIDIA_MACHINE, AMD_MACHINE])
def test_nothing_is_found_where_all_is_well(machine: Facts) -> None:
    assert judge(machine) == ()


def test_shipped_settings_of_a_gpu_are_well_where_there_is_none() -> None:
    shipped = ConfigurationFacts(configured_devices=("gpu0", "host"))
    assert judge(replace(CPU_MACHINE, configuration=shipped)) == ()


@pytest.mark.parametrize("machine", [CPU_MACHINE, NVIDIA_MACHINE])
@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_models_for_any_device_are_well_everywhere(machine: Facts, device: str) -> None:
    assert judge(replace(machine, configuration=running(device))) == ()


def test_servers_of_others_that_cannot_be_reached_are_no_error() -> None:
    queue = ServiceFacts(setting="jobs.queue_url", host="redis", port=6379)
    store = ServiceFacts(setting="vectors.url", host="qdrant", port=6333)
    lost = replace(queue, problem="Name or service not known")
    assert (
        judge(replace(CPU_MACHINE, configuration=ConfigurationFacts(services=(queue, store)))) == ()
    )

    findings = judge(replace(CPU_MACHINE, configuration=ConfigurationFacts(services=(lost, store))))

    [finding] = findings
    assert finding.what == "jobs.queue_url: redis:6379 cannot be reached: Name or service not known"
    assert "work on jobs waits" in finding.remedy
    assert is_well(findings)


def test_required_device_that_works_is_well() -> None:
    required = ConfigurationFacts(required_devices=("gpu0", "host"))
    assert judge(replace(NVIDIA_MACHINE, configuration=required)) == ()


@pytest.mark.parametrize(
    ("machine", "changes", "what", "remedy"),
    [
        pytest.param(
            CPU_MACHINE,
            {"devices": found(problems=(MISMATCH,))},
            "different versions",
            "reboot the node",
            id="driver mismatch",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"devices": found(gpu(fault="x"), problems=(LOST,))},
            "fallen off the bus",
            "reboot",
            id="gpu lost",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "configuration": ConfigurationFacts(required_devices=("gpu0",)),
                "container": KUBERNETES,
            },
            "gpu0 is required (devices.gpu0.required)",
            "nvidia.com/gpu",
            id="required and not seen",
        ),
        pytest.param(
            replace(NVIDIA_MACHINE, devices=found(gpu(fault="x"))),
            {"configuration": ConfigurationFacts(required_devices=("gpu0",))},
            "gpu0 is required (devices.gpu0.required)",
            "see the other findings",
            id="required and lost",
        ),
        pytest.param(
            CPU_MACHINE,
            {"devices": found(problems=("it broke",))},
            "it broke",
            "kernel log",
            id="a problem without a remedy",
        ),
        pytest.param(
            AMD_MACHINE,
            {
                "vendors": (
                    NO_NVIDIA,
                    replace(AMD, nodes=(node("/dev/kfd", mode=0o660, gid=992, is_usable=False),)),
                ),
                "container": KUBERNETES,
            },
            "/dev/kfd (mode 0660, group root)",
            "supplementalGroups",
            id="kfd closed in a pod",
        ),
        pytest.param(
            AMD_MACHINE,
            {
                "vendors": (
                    NO_NVIDIA,
                    replace(
                        AMD,
                        nodes=(node("/dev/kfd", mode=0o660, group="render", is_usable=False),),
                    ),
                ),
            },
            "group render",
            "usermod -aG render",
            id="kfd closed",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {
                "vendors": (
                    replace(
                        NVIDIA,
                        nodes=(
                            *NVIDIA.nodes,
                            node("/dev/nvidia1", mode=0o660, gid=44, group=None, is_usable=False),
                        ),
                    ),
                    NO_AMD,
                ),
                "container": DOCKER,
            },
            "/dev/nvidia1 (mode 0660, group 44)",
            "--group-add 44",
            id="nvidia node closed in docker",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {
                "vendors": (
                    replace(
                        NVIDIA,
                        nodes=(*NVIDIA.nodes, node("/dev/nvidia1", mode=0o600, is_usable=False)),
                    ),
                    NO_AMD,
                ),
                "container": DOCKER,
            },
            "/dev/nvidia1 (mode 0600",
            "chmod g+rw",
            id="nvidia node for root only",
        ),
        pytest.param(
            CPU_MACHINE,
            {"engines": replace(engines(CPU_SERVER), found=(), chosen=None, problem="none here")},
            "none here",
            "LLAMA_SERVER_BIN",
            id="no engine",
        ),
        pytest.param(
            CPU_MACHINE,
            {"data": replace(CPU_MACHINE.data, problem="Read-only file system")},
            "Read-only file system",
            "--data",
            id="data folder",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "data": replace(CPU_MACHINE.data, problem="Permission denied"),
                "container": KUBERNETES,
            },
            "Permission denied",
            "securityContext.fsGroup: 1000",
            id="data folder in a pod",
        ),
        pytest.param(
            CPU_MACHINE,
            {"process": replace(CPU_MACHINE.process, pidfd_problem="Function not implemented")},
            "pidfd_open",
            "Linux 5.3",
            id="no pidfd",
        ),
        pytest.param(
            CPU_MACHINE,
            {"process": replace(CPU_MACHINE.process, setpriv_problem="it ends with 1")},
            "setpriv",
            "seccomp",
            id="no setpriv",
        ),
    ],
)
def test_what_stops_work_is_an_error(
    machine: Facts, changes: dict[str, Any], what: str, remedy: str
) -> None:
    findings = judge(replace(machine, **changes))

    (found_error,) = [finding for finding in findings if finding.severity == "error"]
    assert what in found_error.what
    assert remedy in found_error.remedy
    assert findings[0] == found_error
    assert not is_well(findings)


@pytest.mark.parametrize(
    ("machine", "changes", "what", "remedy"),
    [
        pytest.param(
            NVIDIA_MACHINE,
            {"engines": engines(CPU_SERVER)},
            "computes on the CPU only, beside NVIDIA H200 (gpu0)",
            "server-cuda",
            id="CPU build beside NVIDIA",
        ),
        pytest.param(
            AMD_MACHINE,
            {"engines": engines(WHEEL)},
            "embedded (xllamacpp) computes on the CPU only",
            "server-rocm",
            id="CPU wheel beside AMD",
        ),
        pytest.param(
            AMD_MACHINE,
            {"engines": engines(CUDA_SERVER)},
            "computes on the CPU only",
            "-DGGML_HIP=ON",
            id="CUDA build beside AMD",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"engines": engines(WHEEL, CUDA_SERVER)},
            "embedded (xllamacpp) computes on the CPU only",
            "--engine llama-server",
            id="another engine can",
        ),
        pytest.param(
            CPU_MACHINE,
            {"engines": engines(replace(CPU_SERVER, devices=("Vulkan0: Intel Arc",)))},
            "Vulkan0: Intel Arc, whose memory telemetry cannot see",
            "only NVIDIA's and AMD's",
            id="a device that is not watched",
        ),
        pytest.param(
            CPU_MACHINE,
            {"engines": engines(replace(CPU_SERVER, problem="libcuda.so.1: cannot open"), WHEEL)},
            "llama-server b1: libcuda.so.1: cannot open",
            "by hand",
            id="an engine that cannot list devices",
        ),
        pytest.param(
            replace(CPU_MACHINE, host=replace(CPU_MACHINE.host, has_amx=True)),
            {
                "engines": replace(
                    engines(replace(CPU_SERVER, build="GNU 12.2.0 for Linux x86_64")),
                    with_amx=frozenset({CPU_SERVER.location}),
                )
            },
            "compiled by GNU 12.2.0 for Linux x86_64, which breaks its code for AMX",
            "--no-repack",
            id="a build whose AMX is broken",
        ),
        pytest.param(
            CPU_MACHINE,
            {"vendors": (replace(NO_NVIDIA, pci_ids=("0000:3b:00.0",)), NO_AMD)},
            "NVIDIA GPUs are on the PCI bus (0000:3b:00.0)",
            "modprobe nvidia",
            id="no driver",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "vendors": (replace(NO_NVIDIA, pci_ids=("0000:3b:00.0",)), NO_AMD),
                "container": KUBERNETES,
            },
            "cannot be reached",
            "runtimeClassName: nvidia",
            id="pod without the runtime class",
        ),
        pytest.param(
            CPU_MACHINE,
            {"visibility": {"NVIDIA_VISIBLE_DEVICES": "all"}, "container": DOCKER},
            "NVIDIA_VISIBLE_DEVICES=all asks for GPUs",
            "--gpus all",
            id="CUDA image without the NVIDIA runtime",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "vendors": (NO_NVIDIA, replace(NO_AMD, pci_ids=("0000:c1:00.0",))),
                "container": DOCKER,
            },
            "AMD GPUs are on the PCI bus",
            "--device /dev/kfd",
            id="container without AMD's devices",
        ),
        pytest.param(
            CPU_MACHINE,
            {"vendors": (NVIDIA, NO_AMD), "visibility": {"CUDA_VISIBLE_DEVICES": "-1"}},
            "CUDA_VISIBLE_DEVICES=-1 hides every NVIDIA GPU",
            "unset CUDA_VISIBLE_DEVICES",
            id="hidden",
        ),
        pytest.param(
            CPU_MACHINE,
            {"vendors": (NO_NVIDIA, AMD), "visibility": {"HIP_VISIBLE_DEVICES": ""}},
            "HIP_VISIBLE_DEVICES= hides every AMD GPU",
            "unset HIP_VISIBLE_DEVICES",
            id="hidden by an empty variable",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"vendors": (replace(NVIDIA, nodes=NVIDIA.nodes[:2]), NO_AMD)},
            "/dev/nvidia-uvm is not here",
            "nvidia-modprobe",
            id="no uvm",
        ),
        pytest.param(
            AMD_MACHINE,
            {"vendors": (NO_NVIDIA, replace(AMD, nodes=())), "container": KUBERNETES},
            "/dev/kfd is not here",
            "amd.com/gpu",
            id="no kfd",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {
                "vendors": (replace(NVIDIA, libraries=NVIDIA.libraries[:1]), NO_AMD),
                "container": DOCKER,
            },
            "libcuda.so.1 is not",
            "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
            id="utility only",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {
                "devices": found(gpu(), gpu(device="gpu1", name="NVIDIA RTX A2000")),
                "visibility": {"CUDA_VISIBLE_DEVICES": "0,1"},
            },
            "CUDA_VISIBLE_DEVICES=0,1 counts devices of several kinds",
            "CUDA_DEVICE_ORDER=PCI_BUS_ID",
            id="numbers on a mixed machine",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"visibility": {"CUDA_VISIBLE_DEVICES": "0,0"}},
            "CUDA_VISIBLE_DEVICES=0,0 names a device twice (0), which counts once here",
            "name each device once",
            id="named twice",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"configuration": ConfigurationFacts(configured_devices=("gpu0", "gpu3", "host"))},
            "devices.gpu3 in supervisor.yaml is for a device that is not here",
            "here are gpu0, host: name one of these",
            id="settings of a GPU that is not here",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"devices": found(gpu(uuid="GPU-1")), "configuration": running("gpu0", "GPU-1")},
            "big.yaml:2: device: 'chat' cannot run here: its profile names one device twice",
            "each once",
            id="one GPU by its number and its UUID",
        ),
        pytest.param(
            NVIDIA_MACHINE,
            {"configuration": running("gpu0", "gpu1")},
            "big.yaml:2: device: 'chat' cannot run here: its profile names gpu1",
            "name devices that are here",
            id="model on a GPU that is not here",
        ),
        pytest.param(
            CPU_MACHINE,
            {"configuration": ConfigurationFacts(configured_devices=("gpu0", "gpu1", "host"))},
            "devices.gpu1 in supervisor.yaml is for a device that is not here",
            "here are host",
            id="settings of a second GPU where there is none",
        ),
        pytest.param(
            CPU_MACHINE,
            {"data": replace(CPU_MACHINE.data, free_bytes=GIB // 2)},
            "512.0 MiB left",
            "make room",
            id="disk nearly full",
        ),
        pytest.param(
            CPU_MACHINE,
            {"process": replace(CPU_MACHINE.process, open_files_limit=1024)},
            "about 512 requests",
            "LimitNOFILE",
            id="few open files",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "host": replace(
                    CPU_MACHINE.host,
                    memory=memory(16 * GIB),
                    limits=(CgroupLimit(limit_bytes=16 * GIB, used_bytes=0, source="cgroup v2"),),
                    largest_model=("qwen", 40 * GIB),
                )
            },
            "qwen, 40.0 GiB) is larger than the host memory that may be used (16.0 GiB, cgroup v2)",
            "resources.limits.memory",
            id="page cache too small",
        ),
        pytest.param(
            CPU_MACHINE,
            {"configuration": ConfigurationFacts(problem="profiles: there is no such folder")},
            "there is no such folder",
            "--profiles",
            id="no configuration",
        ),
        pytest.param(
            CPU_MACHINE,
            {"configuration": ConfigurationFacts(hosts=("0.0.0.0",))},
            "requests are taken on 0.0.0.0 without a key",
            "listen on 127.0.0.1",
            id="exposed",
        ),
    ],
)
def test_what_work_goes_on_with_is_a_warning(
    machine: Facts, changes: dict[str, Any], what: str, remedy: str
) -> None:
    findings = judge(replace(machine, **changes))

    (finding,) = findings
    assert finding.severity == "warning"
    assert what in finding.what
    assert remedy in finding.remedy
    assert is_well(findings)


@pytest.mark.parametrize(
    ("machine", "changes"),
    [
        pytest.param(
            CPU_MACHINE,
            {
                "vendors": (replace(NO_NVIDIA, pci_ids=("0000:3b:00.0",)), NO_AMD),
                "devices": found(problems=(MISMATCH,)),
            },
            id="telemetry has said why no GPU is reached",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "devices": found(problems=(MISMATCH,)),
                "configuration": ConfigurationFacts(configured_devices=("gpu0", "gpu1")),
            },
            id="telemetry has said why a device with settings is not here",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "configuration": ConfigurationFacts(
                    configured_devices=("gpu1",), required_devices=("gpu1",)
                )
            },
            id="a required device that is not here",
        ),
        pytest.param(
            CPU_MACHINE,
            {
                "engines": replace(
                    engines(replace(CPU_SERVER, version="", problem="it fails")),
                    chosen=None,
                    problem="it fails",
                )
            },
            id="the engine that auto means does not run",
        ),
    ],
)
def test_one_fault_is_told_once(machine: Facts, changes: dict[str, Any]) -> None:
    assert [finding.severity for finding in judge(replace(machine, **changes))] == ["error"]


def test_a_container_that_asks_for_no_gpu_is_left_in_peace() -> None:
    for wish in ("void", "none", ""):
        machine = replace(
            CPU_MACHINE, visibility={"NVIDIA_VISIBLE_DEVICES": wish}, container=KUBERNETES
        )
        assert judge(machine) == ()


def test_numbers_on_a_mixed_machine_are_well_in_bus_order() -> None:
    machine = replace(
        NVIDIA_MACHINE,
        devices=found(gpu(), gpu(device="gpu1", name="NVIDIA RTX A2000")),
        visibility={"CUDA_VISIBLE_DEVICES": "0,1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )

    assert judge(machine) == ()


def test_both_vendors_in_one_machine_are_each_held_against_the_engine() -> None:
    both = replace(
        NVIDIA_MACHINE,
        vendors=(NVIDIA, AMD),
        devices=found(gpu(), gpu("AMD", device="gpu1")),
        engines=engines(replace(CUDA_SERVER, devices=(*CUDA_SERVER.devices, *ROCM_SERVER.devices))),
    )

    assert judge(both) == ()
    (finding,) = judge(replace(both, engines=engines(CUDA_SERVER)))
    assert "AMD Instinct MI210 (gpu1)" in finding.what
