"""A configuration that is applied while the controller runs is used from then on, everywhere."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from tests.conftest import RunningController, StartController, write_configuration
from tests.gateway.conftest import (
    ask_json,
    endless_stream,
    is_draining,
    requests_now,
    shipped,
    until,
)

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture
def changed(tmp_path: Path, profiles_dir: Path, models_dir: Path) -> Any:
    """Loads the shipped configuration with some files replaced."""

    def read(files: Mapping[str, Any]) -> Configuration:
        folder = tmp_path / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_configuration(folder, profiles_dir, None, files)
        return load(folder, models_dir, {})

    return read


async def test_applied_configuration_is_used_without_a_restart(
    start_controller: StartController, changed: Any
) -> None:
    """A new limit on waiting requests, a new model, a changed profile: each is seen at once."""
    controller = await start_controller()
    await controller.switch_to("bench-chat")
    before = await props(controller)
    assert (await switch(controller, "added"))[0] == 404

    models = shipped("models.yaml")["models"]
    added = models | {"added": {"path": "demo-chat.gguf", "aliases": ["new"]}}
    files = {
        "models.yaml": shipped("models.yaml", default_model=None, models=added),
        "supervisor.yaml": shipped(
            "supervisor.yaml", queue={"hold_max_requests": 0}, server={"max_body_bytes": 200}
        ),
        "generation.yaml": shipped("generation.yaml", parallel=2, drain_timeout_s=60),
    }
    controller.parts.configuration.apply(changed(files))

    status, answer = await ask_json(controller, "POST", "/v1/chat/completions", {"x": "y" * 300})
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert "added" in [
        model["id"] for model in (await controller.json("GET", "/v1/models"))["data"]
    ]
    async with endless_stream(controller) as stream:
        _, accepted = await switch(controller, "new", wait=False)
        await until(lambda: is_draining(controller))
        status, answer = await ask_json(
            controller, "POST", "/v1/chat/completions", {**CHAT, "model": "added"}
        )
        assert (status, answer["error"]["code"]) == (503, "hold_queue_full")
        stream.close()
        await until(lambda: is_live(controller, "added"))
    report = await controller.json("GET", accepted["location"])
    assert (report["outcome"], report["model"]) == ("switched", "added")
    assert (before, await props(controller)) == (4, 2)


async def test_live_model_serves_on_until_a_switch_starts_it_with_its_new_profile(
    start_controller: StartController, changed: Any
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    fewer = shipped("generation.yaml", parallel=2)
    controller.parts.configuration.apply(changed({"generation.yaml": fewer}))

    assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200
    assert await props(controller) == 4

    _, report = await switch(controller, "demo-chat")
    assert (report["outcome"], report["epoch"], await props(controller)) == ("switched", 2, 2)
    assert (await switch(controller, "demo-chat"))[1]["outcome"] == "unchanged"


async def test_model_that_is_waited_for_starts_with_what_was_applied_meanwhile(
    start_controller: StartController, changed: Any
) -> None:
    settings = shipped("supervisor.yaml", scheduler={"manual_hold_s": 4})
    controller = await start_controller(auto_switch=True, files={"supervisor.yaml": settings})
    await controller.switch_to("demo-chat")
    question = {**CHAT, "model": "bench-chat"}
    answer = asyncio.create_task(ask_json(controller, "POST", "/v1/chat/completions", question))
    await until(lambda: is_anybody_waiting(controller))
    fewer = shipped("generation.yaml", parallel=2)
    controller.parts.configuration.apply(changed({"generation.yaml": fewer}))

    assert (await answer)[0] == 200
    assert await props(controller) == 2


async def test_what_the_controller_alone_goes_by_starts_nothing_again(
    start_controller: StartController, changed: Any
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    patient = shipped("generation.yaml", drain_timeout_s=60, stop_grace_s=9)
    controller.parts.configuration.apply(changed({"generation.yaml": patient}))

    assert (await switch(controller, "demo-chat"))[1]["outcome"] == "unchanged"


async def test_rollback_brings_back_what_ran_whatever_its_profile_says_now(
    start_controller: StartController, changed: Any
) -> None:
    alone = {"supervisor.yaml": {"devices": {"host": {"exclusive": True}}}}
    controller = await start_controller(files=alone)
    await controller.switch_to("demo-chat")
    broken = shipped("generation.yaml", parallel=2, extra_args=["--lora", "/no/such/adapter"])
    controller.parts.configuration.apply(changed({**alone, "generation.yaml": broken}))

    status, answer = await switch(controller, "demo-chat")

    assert (status, answer["error"]["rolled_back"]) == (502, True)
    assert await is_live(controller, "demo-chat")
    assert await props(controller) == 4


async def test_applied_bounds_of_the_stores_are_used(
    start_controller: StartController, changed: Any
) -> None:
    controller = await start_controller()
    for model in ("demo-chat", "minilm", "demo-chat"):
        await controller.switch_to(model)

    controller.parts.configuration.apply(
        changed({"supervisor.yaml": shipped("supervisor.yaml", switch={"history_size": 2})})
    )
    await controller.switch_to("minilm")

    switches = (await controller.json("GET", "/switches"))["switches"]
    assert [one["model"] for one in switches] == ["minilm", "demo-chat"]


async def test_applied_budget_refuses_what_no_longer_fits(
    start_controller: StartController, changed: Any
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")

    small = {"devices": {"host": {"budget_bytes": "1MiB", "exclusive": True}}}
    controller.parts.configuration.apply(changed({"supervisor.yaml": small}))

    status, answer = await switch(controller, "minilm")
    assert (status, answer["error"]["code"]) == (422, "target_does_not_fit")


async def test_profile_that_contradicts_a_models_overrides_is_refused(
    start_controller: StartController,
) -> None:
    models = shipped("models.yaml")["models"]
    models["demo-chat"] |= {
        "profile": "plain",
        "overrides": {"kv_unified": True, "cache_ram_mib": 64},
    }
    files = {
        "models.yaml": shipped("models.yaml", default_model=None, models=models),
        "plain.yaml": {"mode": "generation"},
        "keeping.yaml": {"mode": "generation", "keep_prompt_cache": True},
    }
    controller = await start_controller(files=files)
    await controller.switch_to("bench-chat")

    status, answer = await switch(controller, "demo-chat", profile="keeping")

    assert (status, answer["error"]["code"]) == (422, "profile_conflict")
    assert "'demo-chat' cannot run with profile 'keeping'" in answer["error"]["message"]
    assert "keep_prompt_cache" in answer["error"]["message"]
    assert await is_live(controller, "bench-chat")


async def switch(controller: RunningController, model: str, **order: Any) -> tuple[int, Any]:
    return await ask_json(controller, "POST", "/switch-backend", {"model_name": model, **order})


async def props(controller: RunningController) -> int:
    """Return how many slots the live server has."""
    slots: int = (await controller.json("GET", "/props"))["total_slots"]
    return slots


async def is_anybody_waiting(controller: RunningController) -> bool:
    return (await requests_now(controller))["waiting"] > 0


async def is_live(controller: RunningController, model: str) -> bool:
    return bool((await controller.json("GET", "/status"))["loaded_model"] == model)
