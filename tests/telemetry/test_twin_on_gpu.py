"""An image model has the GPU, and is none of ours: embeddings are served on the host beside it.

Taken from a machine as it was seen: 22,308 of 23,034 MiB were held.
"""

from pathlib import Path
from typing import Any

import psutil
import pytest
from lab.drivers.nvidia import SimulatedGpu

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import shipped
from tests.telemetry.switching import tenant

MIB = 1024 * 1024
TOTAL_BYTES, HELD_BYTES = 23_034 * MIB, 22_308 * MIB
SMALL = {"model": "minilm", "input": "a question"}
LARGE = {"model": "minilm", "input": [f"passage {number}" for number in range(9)]}


@pytest.fixture
def gpu(tmp_path: Path, nvml_library: Path, monkeypatch: pytest.MonkeyPatch) -> SimulatedGpu:
    """The controller's machine: one GPU, as large as that one was."""
    gpu = SimulatedGpu(tmp_path, library=nvml_library, total_bytes=(TOTAL_BYTES,))
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in gpu.environment().items():
        monkeypatch.setenv(name, value)
    return gpu


def files() -> dict[str, Any]:
    catalogue = shipped("models.yaml", default_model=None)
    catalogue["models"]["minilm"]["spill"] = "embedding-cpu"
    needs = {"memory": {"need_bytes": 1024 * MIB}}
    return {"models.yaml": catalogue, "embedding.yaml": shipped("embedding.yaml", **needs)}


async def embed(controller: RunningController, body: dict[str, Any]) -> tuple[int, Any, Any]:
    """Return the status, who served, and the answer."""
    async with controller.client.post(f"{controller.url}/v1/embeddings", json=body) as answer:
        return answer.status, answer.headers.get("X-Served-By"), await answer.json()


async def test_embeddings_are_served_with_no_byte_of_a_gpu_that_an_image_model_holds(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    with tenant() as image_model:
        gpu.allocate(image_model, HELD_BYTES)
        controller = await start_controller(files=files(), auto_switch=True)

        status, served_by, answer = await embed(controller, SMALL)
        assert (status, served_by) == (200, "embedding-cpu")
        assert len(answer["data"][0]["embedding"]) == 384
        refused, _, why = await embed(controller, LARGE)  # which is the GPU's
        assert refused == 503
        assert f"(pid {image_model})" in why["error"]["message"]
        assert (await embed(controller, SMALL))[:2] == (200, "embedding-cpu")

        (backend,) = (await controller.json("GET", "/status"))["backends"]
        assert (backend["twin"], backend["device"]) == (True, "host")
        environment = psutil.Process(backend["pid"]).environ()
        assert environment["CUDA_VISIBLE_DEVICES"] == "-1"
        assert gpu.used_bytes() == HELD_BYTES
        assert psutil.pid_exists(image_model)


async def test_twin_serves_while_the_gpu_cannot_be_read(
    start_controller: StartController, gpu: SimulatedGpu
) -> None:
    controller = await start_controller(files=files(), auto_switch=True)
    gpu.lose(0)

    assert (await embed(controller, SMALL))[:2] == (200, "embedding-cpu")
