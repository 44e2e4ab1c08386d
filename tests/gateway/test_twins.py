"""Small requests for an embedding model are served by its twin while chat has the device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.embedding.vectors import cosine, pack
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import shipped, until

MIB = 1024 * 1024
SMALL = {"model": "minilm", "input": "a question"}
LARGE = {"model": "minilm", "input": [f"passage {number}" for number in range(9)]}


def files(**twin: Any) -> dict[str, Any]:
    """Room for chat and the twin at once, and not for chat and the model itself."""

    def needing(name: str, mib: int, **changes: Any) -> dict[str, Any]:
        memory = {"need_bytes": mib * MIB, "margin_bytes": MIB, "release_timeout_s": 5.0}
        return shipped(f"{name}.yaml", memory=memory, **changes)

    catalogue = shipped("models.yaml", default_model=None)
    catalogue["models"]["minilm"]["spill"] = "embedding-cpu"
    host = {"exclusive": False, "budget_bytes": 300 * MIB}
    return {
        "models.yaml": catalogue,
        "supervisor.yaml": shipped(
            "supervisor.yaml", devices={"host": host}, scheduler={"manual_hold_s": 0}
        ),
        "generation.yaml": needing("generation", 200),
        "embedding.yaml": needing("embedding", 200),
        "embedding-cpu.yaml": needing("embedding-cpu", 50, **twin),
    }


async def embed(
    controller: RunningController,
    body: Mapping[str, Any],
    path: str = "/v1/embeddings",
    **headers: str,
) -> tuple[str | None, Any]:
    """Return who served it, and the answer."""
    async with controller.client.post(controller.url + path, json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers.get("X-Served-By"), await answer.json()


async def twin_of(controller: RunningController) -> dict[str, Any]:
    (twin,) = (await controller.json("GET", "/status"))["twins"]
    return dict(twin)


async def live(controller: RunningController) -> set[tuple[str, str]]:
    backends = (await controller.json("GET", "/status"))["backends"]
    return {(each["model"], each["profile"]) for each in backends}


async def become_comparable(controller: RunningController) -> None:
    """Have the model live once, and then chat."""
    await controller.switch_to("minilm")

    async def is_known() -> bool:
        return (await twin_of(controller))["reason"] is None

    await until(is_known)
    await controller.switch_to("demo-chat")


@pytest.fixture
async def controller(start_controller: StartController, tmp_path: Path) -> RunningController:
    """Chat is live, and the twin can be compared."""
    controller = await start_controller(files=files(), auto_switch=True, data_dir=tmp_path / "kept")
    await become_comparable(controller)
    return controller


async def test_small_requests_are_served_by_the_twin_beside_chat_in_every_form(
    controller: RunningController,
) -> None:
    served_by, answer = await embed(controller, SMALL)
    assert served_by == "embedding-cpu"
    assert await live(controller) == {
        ("demo-chat", "generation"),
        ("minilm", "embedding-cpu"),
    }
    twin = await twin_of(controller)
    assert (twin["state"], twin["reason"]) == ("ready", None)
    assert twin["cosine"] >= 0.9999

    for path, body in (
        ("/embed", {"model": "minilm", "inputs": "a question"}),
        ("/api/embed", {"model": "minilm", "input": "a question"}),
        ("/embeddings", {"model": "minilm", "content": "a question"}),  # relayed
    ):
        assert (await embed(controller, body, path))[0] == "embedding-cpu", path
    assert ("demo-chat", "generation") in await live(controller)

    served_by, many = await embed(controller, LARGE)
    assert served_by == "embedding"
    assert len(many["data"]) == 9
    served_by, again = await embed(controller, SMALL)  # its model is live now
    assert served_by == "embedding"
    both = [pack(each["data"][0]["embedding"]) for each in (answer, again)]
    assert cosine(*both) >= 0.9999


async def test_batch_work_waits_for_the_models_turn(controller: RunningController) -> None:
    served_by, _ = await embed(controller, SMALL, **{"X-Priority": "batch"})

    assert served_by == "embedding"


async def test_twin_is_known_to_do_as_its_model_behind_a_restart(
    controller: RunningController, start_controller: StartController, tmp_path: Path
) -> None:
    await controller.stop()
    again = await start_controller(
        files=files(), auto_switch=True, data_dir=tmp_path / "kept", default_model=None
    )
    await again.switch_to("demo-chat")

    assert (await embed(again, SMALL))[0] == "embedding-cpu"


async def test_twin_that_makes_other_vectors_is_not_used_and_that_is_said(
    start_controller: StartController,
) -> None:
    """As a broken kernel would: here it pools in another way, behind the back of the checks."""
    other = files(extra_args=["--override-kv", "bert.pooling_type=int:3"])
    controller = await start_controller(files=other, auto_switch=True)
    await become_comparable(controller)

    served_by, _ = await embed(controller, SMALL)

    assert served_by == "embedding"
    twin = await twin_of(controller)
    assert "differ from its model's" in twin["reason"]
    assert twin["cosine"] < 0.9999
    status = await controller.json("GET", "/status")
    (said,) = [each for each in status["impairments"] if each.startswith("twin of minilm")]
    assert "not used" in said
