"""Devices that carry several models, and budgets that carry one."""

from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, shipped

MIB = 1024 * 1024
CHAT = {"model": "demo-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
TEXT = {"model": "minilm", "input": "Hello"}


def files(budget_bytes: int | None) -> dict[str, Any]:
    """Let each model need 100 MiB of host memory, which is not exclusive."""
    catalogue = shipped("models.yaml", default_model=None)
    for entry in catalogue["models"].values():
        entry["overrides"] = {"memory": {"need_bytes": 100 * MIB}}
    host = {"exclusive": False} | ({"budget_bytes": budget_bytes} if budget_bytes else {})
    return {
        "models.yaml": catalogue,
        "supervisor.yaml": shipped("supervisor.yaml", devices={"host": host}),
    }


@pytest.mark.parametrize("budget_bytes", [None, 460 * MIB])
async def test_models_that_fit_together_are_both_live_and_each_gets_its_requests(
    start_controller: StartController, budget_bytes: int | None
) -> None:
    controller = await start_controller(files=files(budget_bytes))
    await controller.switch_to("demo-chat")
    await controller.switch_to("minilm")

    assert (await health(controller))["server_mode"] == "mixed"
    assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200
    assert (await ask_json(controller, "POST", "/v1/embeddings", TEXT))[0] == 200


async def test_budget_that_carries_one_model_makes_the_older_one_give_way(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files(150 * MIB))
    await controller.switch_to("demo-chat")
    await controller.switch_to("minilm")

    assert (await health(controller))["server_mode"] == "embedding"
    status, answer = await ask_json(controller, "POST", "/v1/chat/completions", CHAT)
    assert (status, answer["error"]["live_models"]) == (409, ["minilm"])


async def test_model_larger_than_the_budget_is_refused_and_the_live_one_goes_on(
    start_controller: StartController,
) -> None:
    small = files(150 * MIB)
    small["models.yaml"]["models"]["minilm"]["overrides"]["memory"]["need_bytes"] = 200 * MIB
    controller = await start_controller(files=small)
    await controller.switch_to("demo-chat")

    status, answer = await ask_json(controller, "POST", "/switch-backend", {"model_name": "minilm"})

    assert (status, answer["error"]["code"]) == (422, "target_does_not_fit")
    assert answer["error"]["available_bytes"] == 150 * MIB
    assert "devices.host.budget_bytes" in answer["error"]["message"]
    assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200


async def health(controller: RunningController) -> Any:
    return await controller.json("GET", "/management/health")
