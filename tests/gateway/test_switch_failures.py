"""Switches that fail after the old backend has left: what callers and waiters learn."""

import asyncio
import json
from typing import Any

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, endless_stream, requests_now, shipped, until

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


async def test_server_that_dies_before_it_is_ready_is_told_with_its_last_lines(
    start_controller: StartController, engine: str, unloadable: dict[str, Any]
) -> None:
    controller = await start_controller(engine=engine, files={"models.yaml": unloadable})
    await controller.switch_to("demo-chat")

    status, answer = await switch(controller, model_name="unloadable")

    error = answer["error"]
    assert (status, error["code"], error["type"]) == (502, "backend_died", "server_error")
    assert any("lemma" in line for line in error["last_lines"])
    assert "before it was ready: unknown model architecture: 'lemma'" in error["message"]
    assert error["exit_code"] == 1
    assert error["switch"]["outcome"] == "failed"
    assert json.dumps(error).count(error["message"]) == 1
    assert error["rolled_back"] is True
    assert await server_mode(controller) == "generation"
    chat = {**CHAT, "model": "demo-chat"}
    assert (await ask_json(controller, "POST", "/v1/chat/completions", chat))[0] == 200


async def test_start_that_dies_of_its_model_is_not_to_be_repeated(
    start_controller: StartController, unloadable: dict[str, Any]
) -> None:
    controller = await start_controller(files={"models.yaml": unloadable})

    order = {"model_name": "unloadable"}
    async with controller.client.post(f"{controller.url}/switch-backend", json=order) as answer:
        assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")


async def test_first_switch_has_nothing_to_roll_back_to(
    start_controller: StartController, unloadable: dict[str, Any]
) -> None:
    controller = await start_controller(files={"models.yaml": unloadable})

    status, answer = await switch(controller, model_name="unloadable")

    assert (status, "rolled_back" in answer["error"]) == (502, False)
    assert await server_mode(controller) == "none"
    assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 503


async def test_server_that_is_not_ready_in_time_is_stopped_and_told_with_its_last_lines(
    start_controller: StartController, engine: str
) -> None:
    hasty = shipped("generation.yaml", start_timeout_s=0.03)
    controller = await start_controller(engine=engine, files={"hasty.yaml": hasty})

    status, answer = await switch(controller, model_name="bench-chat", profile="hasty")

    error = answer["error"]
    assert (status, error["code"]) == (502, "backend_start_timeout")
    assert "not ready 0.03 s after its start" in error["message"]
    assert isinstance(error["last_lines"], list)
    snapshot = await controller.json("GET", "/status")
    assert (snapshot["state"], snapshot["backends"]) == ("idle", [])
    assert snapshot["last_exit"]["model"] == "bench-chat"


async def test_memory_that_is_not_released_fails_the_switch_closed(
    start_controller: StartController,
) -> None:
    memory = {"margin_bytes": 1 << 50, "release_timeout_s": 0.2}
    greedy = shipped("generation.yaml", memory=memory)
    controller = await start_controller(files={"greedy.yaml": greedy})

    status, answer = await switch(controller, model_name="demo-chat", profile="greedy")

    error = answer["error"]
    assert (status, error["code"]) == (504, "memory_not_released")
    assert "not confirmed within 0." in error["message"]
    assert "margin of 1048576.0 GiB" in error["message"]
    assert "starting" not in error["switch"]["seconds"]
    assert await server_mode(controller) == "none"


async def test_requests_held_for_a_switch_that_fails_learn_why(
    start_controller: StartController, unloadable: dict[str, Any]
) -> None:
    controller = await start_controller(files={"models.yaml": unloadable})
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        await switch(controller, model_name="unloadable", wait=False)
        body = {**CHAT, "model": "unloadable"}
        asking = asyncio.create_task(ask_json(controller, "POST", "/v1/chat/completions", body))
        await until(lambda: is_somebody_waiting(controller))
        stream.close()
        status, answer = await asking

    assert (status, answer["error"]["code"]) == (503, "switch_failed")
    assert "the server of 'unloadable' ended (exit code 1)" in answer["error"]["message"]


async def switch(controller: RunningController, **order: Any) -> tuple[int, Any]:
    return await ask_json(controller, "POST", "/switch-backend", order)


async def server_mode(controller: RunningController) -> str:
    return str((await controller.json("GET", "/status"))["server_mode"])


async def is_somebody_waiting(controller: RunningController) -> bool:
    return (await requests_now(controller))["waiting"] > 0
