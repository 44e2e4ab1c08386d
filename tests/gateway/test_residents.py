"""Residents with real servers: pinned, unloaded when idle, back to the idle model, bounded."""

import asyncio
from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, endless_stream, shipped, until

MIB = 1024 * 1024
CHAT = {"model": "demo-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
TEXT = {"model": "minilm", "input": "Hello"}


def files(
    budget_bytes: int, *, chosen: dict[str, dict[str, Any]], idle_model: str | None = None
) -> dict[str, Any]:
    """Let each model need 100 MiB of host memory, and have what is chosen for it."""
    catalogue = shipped("models.yaml", default_model=None) | {"idle_model": idle_model}
    for name, entry in catalogue["models"].items():
        entry["overrides"] = {"memory": {"need_bytes": 100 * MIB}}
        entry.update(chosen.get(name, {}))
    devices = {"host": {"exclusive": False, "budget_bytes": budget_bytes}}
    settings = shipped("supervisor.yaml", devices=devices)
    settings["scheduler"] = {"idle_model_after_s": 0.3, "manual_hold_s": 0}
    return {"models.yaml": catalogue, "supervisor.yaml": settings}


async def backends(controller: RunningController) -> dict[str, Any]:
    status = await controller.json("GET", "/status")
    return {backend["model"]: backend for backend in status["backends"]}


async def test_pinned_model_stays_and_is_named_and_goes_when_it_is_unloaded_by_its_name(
    start_controller: StartController,
) -> None:
    chosen = {"minilm": {"pinned": True}}
    controller = await start_controller(files=files(150 * MIB, chosen=chosen), auto_switch=True)
    await controller.switch_to("minilm")
    asked = {"model_name": "demo-chat"}
    status, answer = await ask_json(controller, "POST", "/switch-backend", asked)
    assert (status, answer["error"]["code"]) == (409, "pinned_in_the_way")
    assert answer["error"]["pinned"] == ["minilm"]
    status, answer = await ask_json(controller, "POST", "/v1/chat/completions", CHAT)
    assert status == 503
    assert "'minilm' stays (pinned)" in answer["error"]["message"]
    told = (await backends(controller))["minilm"]
    assert (told["pinned"], told["gives_way"]) == (True, None)
    assert "pinned" in told["stays"]

    assert (await controller.json("POST", "/unload"))["outcome"] == "unchanged"
    status, report = await ask_json(controller, "POST", "/unload", {"model_name": "minilm"})
    assert (status, report["outcome"]) == (200, "switched")
    assert await backends(controller) == {}
    assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200


async def test_idle_model_is_stopped_and_its_next_request_brings_it_back(
    start_controller: StartController,
) -> None:
    chosen = {"minilm": {"idle_unload_s": 0.2}}
    controller = await start_controller(files=files(900 * MIB, chosen=chosen), auto_switch=True)
    await controller.switch_to("demo-chat")
    await controller.switch_to("minilm")

    async def is_gone() -> bool:
        is_over = (await controller.json("GET", "/status"))["switch"] is None
        return is_over and set(await backends(controller)) == {"demo-chat"}

    await until(is_gone)
    (last, *_) = (await controller.json("GET", "/switches"))["switches"]
    assert (last["requested_by"], last["outcome"]) == ("idleness", "switched")
    assert last["reason"] == "'minilm' has had nothing to do for 0.2 s (idle_unload_s)"
    assert (await ask_json(controller, "POST", "/v1/embeddings", TEXT))[0] == 200
    await until(is_gone)


async def test_idle_model_comes_back_when_nothing_was_asked_for(
    start_controller: StartController,
) -> None:
    controller = await start_controller(
        files=files(150 * MIB, chosen={}, idle_model="demo-chat"), auto_switch=True
    )
    assert (await ask_json(controller, "POST", "/v1/embeddings", TEXT))[0] == 200

    async def is_back() -> bool:
        return set(await backends(controller)) == {"demo-chat"}

    await until(is_back)
    told = (await controller.json("GET", "/status"))["idle_model"]
    assert told == {"model": "demo-chat", "comes_back_in_s": None}


@pytest.mark.parametrize("auto_switch", [True, False])
async def test_so_many_requests_as_are_allowed_use_a_model_at_once(
    start_controller: StartController, *, auto_switch: bool
) -> None:
    chosen = {"bench-chat": {"max_concurrency": 1}}
    controller = await start_controller(
        files=files(900 * MIB, chosen=chosen), auto_switch=auto_switch
    )
    await controller.switch_to("bench-chat")
    ask = {"model": "bench-chat", "prompt": "on", "n_predict": 2}

    async def waits() -> bool:
        status = await controller.json("GET", "/status")
        return bool(status["requests"] == {"in_flight": 1, "waiting": 1})

    async with endless_stream(controller):
        waiting = asyncio.create_task(ask_json(controller, "POST", "/completion", ask))
        await until(waits)
    assert (await waiting)[0] == 200
