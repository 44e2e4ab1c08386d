"""A model that changes its profile where there is room for both: nobody waits, nothing is cut."""

import asyncio
from typing import Any

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, endless_stream, shipped, until

MIB = 1024 * 1024
CHAT = {"model": "bench-chat", "prompt": "on", "n_predict": 2}
ROOMY = {"extends": "generation", "mode": "generation", "ctx_size": 2048}


def files(**switch: Any) -> dict[str, Any]:
    """Let host memory carry two models of 100 MiB, and the margin."""
    catalogue = shipped("models.yaml", default_model=None)
    for entry in catalogue["models"].values():
        entry["overrides"] = {"memory": {"need_bytes": 100 * MIB}}
    host = {"exclusive": False, "budget_bytes": 460 * MIB}
    settings = shipped("supervisor.yaml", devices={"host": host}, switch=switch)
    return {"models.yaml": catalogue, "supervisor.yaml": settings, "roomy.yaml": ROOMY}


async def change_profile(controller: RunningController) -> tuple[int, Any]:
    order = {"model_name": "bench-chat", "profile": "roomy"}
    return await ask_json(controller, "POST", "/switch-backend", order)


async def test_no_request_waits_for_a_new_profile(start_controller: StartController) -> None:
    controller = await start_controller(files=files())
    await controller.switch_to("bench-chat")
    is_over = asyncio.Event()

    async def ask_on() -> list[int]:
        answers = []
        while not is_over.is_set():
            answers.append((await ask_json(controller, "POST", "/completion", CHAT))[0])
        return answers

    waited: list[str] = []
    arbiter = controller.parts.arbiter
    arbiter._observers = (
        *arbiter._observers,
        lambda *step: waited.extend(step[2].requests.places),
    )
    asking = asyncio.create_task(ask_on())
    status, report = await change_profile(controller)
    is_over.set()
    answers = await asking

    assert (status, report["outcome"], report["profile"]) == (200, "switched", "roomy")
    assert "draining" not in report["seconds"]
    assert set(answers) == {200}
    assert waited == []


async def test_stream_of_the_old_profile_is_not_cut_and_its_server_goes_after_it(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files())
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        status, report = await change_profile(controller)
        assert (status, report["epoch"]) == (200, 2)
        retiring = (await controller.json("GET", "/status"))["backends"][0]
        assert (retiring["retiring"], retiring["in_flight"]) == (True, 1)
        assert await stream.content.readany()

    async def is_alone() -> bool:
        backends = (await controller.json("GET", "/status"))["backends"]
        return [backend["profile"] for backend in backends] == ["roomy"]

    await until(is_alone)
    last_exit = (await controller.json("GET", "/status"))["last_exit"]
    assert last_exit["was_wanted"]


async def test_target_replaces_what_is_live_without_a_pause_where_the_operator_wants_it_alone(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files(residents="replace"))
    await controller.switch_to("bench-chat")

    report = await controller.switch_to("minilm")

    assert "draining" not in report["seconds"]
    assert (await controller.json("GET", "/management/health"))["server_mode"] == "embedding"
