"""Requests for two models that want one device: both are served, and no hand switches."""

import asyncio
from typing import Any

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, endless_stream, is_draining, until

CHAT = {"model": "bench-chat", "prompt": "a", "n_predict": 4}
EMBEDDING = {"model": "minilm", "input": "a"}
ROUNDS = 6


async def ask_in_turns(controller: RunningController, path: str, body: Any) -> list[int]:
    """One client, one request after the other. Returns the statuses."""
    return [(await ask_json(controller, "POST", path, body))[0] for _ in range(ROUNDS)]


async def test_two_models_are_both_served(start_controller: StartController) -> None:
    controller = await start_controller(auto_switch=True)
    chat, embedding = await asyncio.gather(
        ask_in_turns(controller, "/completion", CHAT),
        ask_in_turns(controller, "/v1/embeddings", EMBEDDING),
    )
    assert chat == embedding == [200] * ROUNDS

    history = (await controller.json("GET", "/switches"))["switches"]
    assert {switch["requested_by"] for switch in history} == {"scheduler"}
    assert all(switch["reason"].startswith("switching to ") for switch in history)
    scheduling = (await controller.json("GET", "/status"))["scheduling"]
    assert set(scheduling["models"]) == {"bench-chat", "minilm"}


async def test_what_polls_moves_nothing(start_controller: StartController) -> None:
    controller = await start_controller(auto_switch=True)
    await controller.switch_to("bench-chat")
    for path in ("/props", "/slots", "/metrics"):
        status, answer = await ask_json(controller, "GET", f"/upstream/minilm{path}")
        assert (status, answer["error"]["code"]) == (409, "model_not_live")


async def test_switch_of_the_scheduler_waits_for_a_stream(
    start_controller: StartController,
) -> None:
    controller = await start_controller(auto_switch=True)
    status, _ = await ask_json(controller, "POST", "/completion", CHAT)
    assert status == 200
    async with endless_stream(controller) as stream:
        asking = asyncio.create_task(ask_json(controller, "POST", "/v1/embeddings", EMBEDDING))
        await until(lambda: is_draining(controller))
        shown = (await controller.json("GET", "/status"))["scheduling"]
        assert shown["waits_for"] == "'bench-chat': 1 in flight"
        stream.close()
        assert (await asking)[0] == 200
