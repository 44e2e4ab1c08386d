"""What `GET /gpu` tells of devices, with a simulated driver and on the host alone."""

import os
from pathlib import Path
from typing import Any

import pytest
from lab.drivers.nvidia import GIB, SimulatedGpu, build_library

from supervisor.core.machine.memory import MemorySample
from supervisor.gateway.devices import describe_history, describe_use
from supervisor.running import load_first_model
from supervisor.telemetry.port import ProcessUse
from supervisor.telemetry.ring import Ring, RingPoint
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, backend_of, shipped, until


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def gpu(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """The machine has two GPUs of 100 and 200 GiB."""
    gpu = SimulatedGpu(tmp_path, library=nvml_library)
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in gpu.environment().items():
        monkeypatch.setenv(name, value)
    return gpu


@pytest.fixture
async def serving(start_controller: StartController, gpu: SimulatedGpu) -> RunningController:
    """A controller whose one backend is accounted for on gpu0."""
    on_gpu0 = shipped("generation.yaml", device="gpu0")
    controller = await start_controller(files={"generation.yaml": on_gpu0})
    await controller.switch_to("demo-chat")
    return controller


async def serves(controller: RunningController, model: str) -> bool:
    backends = controller.parts.arbiter.snapshot.ready_backends()
    return [backend.target.model for backend in backends] == [model]


async def device(controller: RunningController, name: str) -> dict[str, Any]:
    listed = (await controller.json("GET", "/gpu"))["devices"]
    (told,) = [each for each in listed if each["device"] == name]
    return dict(told)


async def test_each_device_tells_what_it_is_and_how_it_fares(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    gpu.devices[1].utilisation_percent = 80
    gpu.devices[1].reserved_bytes = GIB
    gpu.set_used(3 * GIB, device=1)
    controller = await start_controller()

    listed = (await controller.json("GET", "/gpu"))["devices"]

    assert [each["device"] for each in listed] == ["gpu0", "gpu1", "host"]
    told = listed[1]
    assert (told["name"], told["vendor"], told["index"]) == ("NVIDIA H200", "NVIDIA", 1)
    assert told["uuid"] == "GPU-1000aaaa-0000"
    assert told["pci_id"].endswith(".0")
    assert told["driver_version"]
    assert (told["mig_profile"], told["shares_host_memory"]) == (None, False)
    assert (told["state"], told["reason"]) == ("ok", None)
    assert (told["utilisation_percent"], told["temperature_c"], told["power_w"]) == (80, 30, 75)
    memory = told["memory"]
    assert (memory["total_bytes"], memory["reserved_bytes"]) == (200 * GIB, GIB)
    assert (memory["used_bytes"], memory["free_bytes"]) == (3 * GIB, 196 * GIB)
    assert (told["budget_bytes"], told["accounted_bytes"]) == (200 * GIB, 0)
    assert told["backends"] == []


async def test_a_part_of_a_gpu_tells_its_mig_profile(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    gpu.split(0, 40 * GIB, profile="2g.35gb")
    controller = await start_controller()

    told = await device(controller, "gpu0")

    assert (told["mig_profile"], told["memory"]["total_bytes"]) == ("2g.35gb", 40 * GIB)


async def test_memory_is_told_apart_into_ours_foreign_and_nobodys(
    serving: RunningController, gpu: SimulatedGpu
) -> None:
    child = backend_of(serving)
    gpu.set_used(GIB)
    gpu.allocate(child.process.pid, 5 * GIB)
    gpu.allocate(os.getpid(), 2 * GIB)

    told = await device(serving, "gpu0")

    memory = told["memory"]
    assert memory["used_bytes"] == 8 * GIB
    assert (memory["children_bytes"], memory["foreign_bytes"]) == (5 * GIB, 3 * GIB)
    assert memory["unattributed_bytes"] == GIB
    shown = {each.pop("pid"): each for each in told["processes"]}
    assert shown[os.getpid()].pop("name")
    assert shown == {
        child.process.pid: {
            "name": "llama-server",
            "used_bytes": 5 * GIB,
            "ours": True,
            "model": "demo-chat",
            "epoch": 1,
        },
        os.getpid(): {"used_bytes": 2 * GIB, "ours": False, "model": None, "epoch": None},
    }


async def test_what_backends_are_accounted_for_stands_with_the_budget(
    serving: RunningController,
) -> None:
    told = await device(serving, "gpu0")

    (backend,) = told["backends"]
    assert (backend["model"], backend["epoch"], backend["state"]) == ("demo-chat", 1, "ready")
    assert backend["pid"] == backend_of(serving).process.pid
    assert 0 < backend["need_bytes"] == told["accounted_bytes"] < told["budget_bytes"]
    assert (await device(serving, "host"))["backends"] == []


async def test_a_child_that_the_driver_does_not_list_makes_shares_unknown_not_zero(
    serving: RunningController, gpu: SimulatedGpu
) -> None:
    gpu.allocate(os.getpid(), 2 * GIB)  # as a container sees a process id of the host

    told = await device(serving, "gpu0")

    assert told["memory"]["children_bytes"] is None
    assert told["memory"]["foreign_bytes"] is None
    assert told["memory"]["unattributed_bytes"] == 0
    assert [each["ours"] for each in told["processes"]] == [None]


async def test_a_process_whose_memory_is_not_told_is_listed_without_a_figure(
    serving: RunningController, gpu: SimulatedGpu
) -> None:
    gpu.set_used(4 * GIB)
    gpu.add_process(backend_of(serving).process.pid, None)

    told = await device(serving, "gpu0")

    assert [(each["used_bytes"], each["ours"]) for each in told["processes"]] == [(None, True)]
    assert told["memory"]["children_bytes"] is None
    assert told["memory"]["unattributed_bytes"] == 4 * GIB


async def test_device_without_a_child_of_ours_is_held_by_others_only(
    serving: RunningController, gpu: SimulatedGpu
) -> None:
    gpu.set_used(7 * GIB, device=1)

    memory = (await device(serving, "gpu1"))["memory"]

    assert (memory["children_bytes"], memory["foreign_bytes"]) == (0, 7 * GIB)


async def test_use_that_shrinks_while_it_is_read_shows_negative_differences() -> None:
    sample = MemorySample(
        device="gpu0",
        taken_at=0.0,
        total_bytes=100,
        used_bytes=10,
        free_bytes=90,
        source="nvml v1",
        children_bytes=30,
    )

    use = describe_use(sample, [ProcessUse(pid=1, used_bytes=30, name=None)])

    assert (use["foreign_bytes"], use["unattributed_bytes"]) == (-20, -20)
    assert use["reserved_bytes"] is None


async def test_lost_device_says_why_in_every_answer_while_the_others_are_told(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    controller = await start_controller()
    assert (await controller.json("GET", "/status"))["telemetry_state"] == "ok"
    gpu.lose(0)

    lost = await device(controller, "gpu0")

    assert lost["state"] == "telemetry_lost"
    assert "the GPU is lost" in lost["reason"]
    assert (lost["name"], lost["memory"], lost["processes"]) == ("NVIDIA H200", None, None)
    assert lost["budget_bytes"] == 100 * GIB
    other = await device(controller, "gpu1")
    assert (other["state"], other["memory"]["total_bytes"]) == ("ok", 200 * GIB)
    for path, memories in (("/status", "memory"), ("/management/health", "gpu_memory_usage")):
        answer = await controller.json("GET", path)
        assert answer["telemetry_state"] == "telemetry_lost"
        assert any("the GPU is lost" in problem for problem in answer["telemetry_problems"])
        states = {each["device"]: each["state"] for each in answer[memories]}
        assert states == {"gpu0": "telemetry_lost", "gpu1": "ok", "host": "ok"}


async def test_driver_that_cannot_be_opened_is_told_though_it_lists_no_device(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlInitWithFlags", 18)  # NVML_ERROR_LIB_RM_VERSION_MISMATCH
    controller = await start_controller()

    health = await controller.json("GET", "/management/health")

    assert health["telemetry_state"] == "telemetry_lost"
    told = await controller.json("GET", "/gpu")
    assert [each["device"] for each in told["devices"]] == ["host"]
    assert "different versions" in told["telemetry_problems"][0]


async def test_default_model_is_loaded_once_the_driver_that_could_not_be_opened_works(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    gpu.fail("nvmlInitWithFlags", 18)
    controller = await start_controller(default_model="demo-chat")

    await load_first_model(controller.parts)

    health = await controller.json("GET", "/management/health")
    assert health["status"] == "degraded"
    (impairment,) = health["impairments"]
    assert impairment.startswith("default model: 'demo-chat' is not loaded: ")
    assert "different versions" in impairment
    assert (await controller.json("GET", "/ready"))["status"] == "starting"

    gpu.heal()
    await until(lambda: serves(controller, "demo-chat"))
    assert (await controller.json("GET", "/status"))["impairments"] == []


async def test_default_model_on_a_gpu_that_is_absent_leaves_the_others_served(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    files = {"generation.yaml": shipped("generation.yaml", device="gpu7")}
    controller = await start_controller(default_model="demo-chat", files=files)

    await load_first_model(controller.parts)

    (impairment,) = (await controller.json("GET", "/status"))["impairments"]
    assert "names gpu7" in impairment
    await controller.switch_to("minilm")


async def test_machine_without_a_gpu_tells_of_its_host(start_controller: StartController) -> None:
    controller = await start_controller()
    await controller.switch_to("minilm")

    told = await controller.json("GET", "/gpu")

    (host,) = told["devices"]
    assert (host["device"], host["vendor"], host["state"]) == ("host", "host", "ok")
    assert (host["uuid"], host["index"], host["driver_version"]) == (None, None, None)
    assert (host["processes"], host["power_w"]) == (None, None)
    memory = host["memory"]
    assert 0 < memory["children_bytes"] < memory["total_bytes"]
    assert memory["foreign_bytes"] == memory["used_bytes"] - memory["children_bytes"]
    assert (memory["reserved_bytes"], memory["unattributed_bytes"]) == (None, None)
    assert [each["model"] for each in host["backends"]] == ["minilm"]
    assert host["exclusive"] is True
    assert told["telemetry_problems"] == []


async def test_history_fills_while_the_controller_runs(start_controller: StartController) -> None:
    controller = await start_controller()
    await until(lambda: has_points(controller))

    history = await controller.json("GET", "/gpu/host/history?since=60")

    assert history["device"] == "host"
    assert 0 <= history["age_s"][-1] < 60
    assert history["used_bytes"][-1] > 0
    assert history["temperature_c"][-1] is None
    assert len({len(column) for name, column in history.items() if name != "device"}) == 1


async def has_points(controller: RunningController) -> bool:
    return bool((await controller.json("GET", "/gpu/host/history"))["age_s"])


def test_history_goes_back_as_far_as_asked_for() -> None:
    ring = Ring()
    for second in range(100):
        ring.add(
            RingPoint(
                taken_at=float(second),
                used_bytes=second,
                free_bytes=0,
                children_bytes=None,
                utilisation_percent=None,
                temperature_c=40.0,
                power_w=None,
            )
        )

    history = describe_history(ring, 100.0, 3.0)

    assert history["age_s"] == [3.0, 2.0, 1.0]
    assert history["used_bytes"] == [97.0, 98.0, 99.0]
    assert history["temperature_c"] == [40.0] * 3
    assert history["power_w"] == [None] * 3


def test_history_of_a_device_that_was_never_read_is_empty() -> None:
    assert describe_history(None, 1.0, 1.0)["age_s"] == []


@pytest.mark.parametrize(
    ("path", "status", "code", "named"),
    [
        ("/gpu/gpu7/history", 404, "device_not_found", "host"),
        (
            "/gpu/host/history?since=yesterday",
            400,
            "bad_request",
            "must be a number, not 'yesterday'",
        ),
        (
            "/gpu/host/history?since=-1",
            400,
            "bad_request",
            "seconds back from now, such as 60, not -1",
        ),
        ("/gpu/host/history?since=nan", 400, "bad_request", "such as 60, not nan"),
    ],
)
async def test_history_refuses_what_it_cannot_mean(
    start_controller: StartController, path: str, status: int, code: str, named: str
) -> None:
    controller = await start_controller()

    answered, answer = await ask_json(controller, "GET", path)

    assert (answered, answer["error"]["code"]) == (status, code)
    assert named in answer["error"]["message"]
