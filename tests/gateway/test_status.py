"""Health, readiness, the catalogue and the snapshot, in each state of the controller."""

import asyncio
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from supervisor import __version__
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, backend_of, endless_stream, shipped, until

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


async def test_controller_is_healthy_and_ready_without_a_model(
    start_controller: StartController,
) -> None:
    controller = await start_controller()

    assert await ask_json(controller, "GET", "/health") == (200, {"status": "healthy"})
    assert await ask_json(controller, "GET", "/ready") == (200, {"status": "ready"})


async def test_controller_is_ready_once_its_default_model_serves_and_stays_so(
    start_controller: StartController,
) -> None:
    controller = await start_controller(default_model="demo-chat")
    assert await ask_json(controller, "GET", "/ready") == (503, {"status": "starting"})

    await controller.switch_to("demo-chat")
    await controller.json("POST", "/unload")

    assert await ask_json(controller, "GET", "/ready") == (200, {"status": "ready"})


async def test_probes_are_debug_lines_whatever_they_are_answered(
    start_controller: StartController,
) -> None:
    controller = await start_controller(default_model="demo-chat")

    with capture_logs() as lines:
        for path in ("/health", "/ready", "/gpu"):
            await ask_json(controller, "GET", path)
        ended = [(e["path"], e["status"], e["log_level"]) for e in lines if "path" in e]

    assert ended == [("/health", 200, "debug"), ("/ready", 503, "debug"), ("/gpu", 200, "info")]


async def test_controller_whose_default_model_cannot_load_is_unhealthy_until_one_serves(
    start_controller: StartController,
) -> None:
    catalogue = shipped("models.yaml", default_model="broken")
    catalogue["models"]["broken"] = {"path": "/no/such/file.gguf"}
    controller = await start_controller(files={"models.yaml": catalogue})
    await ask_json(controller, "POST", "/switch-backend", {"model_name": "broken"})

    status, health = await ask_json(controller, "GET", "/management/health")
    assert (status, health["status"], health["loaded_model"]) == (503, "unhealthy", None)
    assert await ask_json(controller, "GET", "/ready") == (503, {"status": "starting"})

    await controller.switch_to("demo-chat")
    status, health = await ask_json(controller, "GET", "/management/health")
    assert (status, health["status"], health["loaded_model"]) == (200, "healthy", "demo-chat")
    assert health["gpu_memory_usage"][0]["children_bytes"] > 0


async def test_closing_line_tells_the_wait_in_vain_and_for_which_model(
    start_controller: StartController,
) -> None:
    settings = shipped("supervisor.yaml") | {
        "queue": {"hold_timeout_s": 0.2},
        "scheduler": {"manual_hold_s": 60.0},
    }
    controller = await start_controller(auto_switch=True, files={"supervisor.yaml": settings})
    await controller.switch_to("minilm")  # by hand: it holds for longer than anybody waits

    with capture_logs() as lines:
        status, answer = await ask_json(
            controller, "POST", "/v1/chat/completions", CHAT | {"model": "demo-chat"}
        )

    (ended,) = (line for line in lines if line.get("path") == "/v1/chat/completions")
    assert (status, answer["error"]["code"]) == (503, "hold_timeout")
    assert ended["model"] == "demo-chat"
    assert ended["waited_s"] >= 0.2


async def test_request_without_a_model_loaded_is_told_to_switch(
    start_controller: StartController,
) -> None:
    controller = await start_controller()

    async with controller.client.post(f"{controller.url}/v1/chat/completions", json=CHAT) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (503, "no_model_loaded")
    assert "POST /switch-backend" in error["message"]
    assert "Retry-After" not in answer.headers  # waiting loads no model
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize("path", ["/management/health", "/api/management/health"])
async def test_management_health_tells_mode_model_and_memory(
    start_controller: StartController, path: str
) -> None:
    controller = await start_controller()
    modes = []

    for model in (None, "demo-chat", "minilm"):
        if model is not None:
            await controller.switch_to(model)
        health = await controller.json("GET", path)
        assert health["status"] == "healthy"
        modes.append((health["server_mode"], health["loaded_model"]))
        for device in health["gpu_memory_usage"]:
            assert 0 < device["used_bytes"] <= device["total_bytes"]
            assert 0 < device["free_bytes"] <= device["total_bytes"]
            assert device["source"]

    assert modes == [("none", None), ("generation", "demo-chat"), ("embedding", "minilm")]


async def test_two_models_beside_each_other_are_a_mixed_mode(
    start_controller: StartController,
) -> None:
    shared = shipped("supervisor.yaml", devices={"host": {"exclusive": False}})
    controller = await start_controller(files={"supervisor.yaml": shared})
    await controller.switch_to("demo-chat")
    await controller.switch_to("minilm")

    assert (await controller.json("GET", "/status"))["server_mode"] == "mixed"
    chat = {"model": "demo-chat", **CHAT}
    assert (await ask_json(controller, "POST", "/v1/chat/completions", chat))[0] == 200
    assert (await ask_json(controller, "POST", "/v1/embeddings", {"input": "a"}))[0] == 200
    assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200


async def test_catalogue_lists_models_with_type_and_state(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")
    assert await states(controller) == {
        "demo-chat": ("generation", "available"),
        "bench-chat": ("generation", "live"),
        "minilm": ("embedding", "available"),
    }

    async with endless_stream(controller):
        await ask_json(
            controller, "POST", "/switch-backend", {"model_name": "minilm", "wait": False}
        )
        await until(lambda: is_model_state(controller, "bench-chat", "draining"))
        assert await ask_json(controller, "GET", "/ready") == (200, {"status": "ready"})

    await until(lambda: is_model_state(controller, "minilm", "live"))
    assert (await states(controller))["bench-chat"] == ("generation", "available")


async def test_status_shows_the_backend_that_runs(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")
    backend = backend_of(controller)

    status = await controller.json("GET", "/status")

    assert (status["state"], status["server_mode"]) == ("ready", "generation")
    assert (status["loaded_model"], status["switch"]) == ("demo-chat", None)
    (shown,) = status["backends"]
    assert shown["pid"] == backend.process.pid
    assert shown["address"] == str(backend.launch.address.socket_path)
    assert (shown["epoch"], shown["model"], shown["state"]) == (1, "demo-chat", "ready")
    assert status["engine"]["name"] == engine
    assert status["engine"]["version"] not in {"", "unknown", "not installed"}
    assert status["version"] == __version__
    assert status["last_exit"] is None
    assert {"used_bytes", "free_bytes", "total_bytes"} <= status["memory"][0].keys()


async def test_status_counts_requests_in_flight_and_waiting(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller):
        order = {"model_name": "minilm", "wait": False}
        await ask_json(controller, "POST", "/switch-backend", order)
        waiting = asyncio.create_task(
            ask_json(controller, "POST", "/v1/embeddings", {"input": "a", "model": "minilm"})
        )
        await until(lambda: is_counted(controller, in_flight=1, waiting=1))
        status = await controller.json("GET", "/status")
        assert (status["state"], status["switch"]["model"]) == ("switching", "minilm")

    assert (await waiting)[0] == 200
    await until(lambda: is_counted(controller, in_flight=0, waiting=0))


async def test_status_tells_how_a_backend_died(start_controller: StartController) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    await until(lambda: has_said(controller, "loading model"))
    os.kill(backend_of(controller).process.pid, signal.SIGKILL)
    await until(lambda: has_died(controller))

    status = await controller.json("GET", "/status")

    assert (status["last_exit"]["signal"], status["last_exit"]["was_wanted"]) == (9, False)
    assert (status["last_exit"]["model"], status["last_exit"]["epoch"]) == ("demo-chat", 1)
    assert any("loading model" in line for line in status["last_exit"]["last_lines"])


async def has_died(controller: RunningController) -> bool:
    return (await controller.json("GET", "/status"))["last_exit"] is not None


async def test_controller_that_shuts_down_is_not_ready_and_takes_no_requests(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        closing = asyncio.create_task(controller.parts.arbiter.shut_down(30))
        await until(lambda: is_state(controller, "shutting_down"))
        assert await ask_json(controller, "GET", "/ready") == (503, {"status": "shutting_down"})
        assert (await ask_json(controller, "GET", "/health"))[0] == 200
        for path, body in (
            ("/v1/chat/completions", CHAT),
            ("/switch-backend", {"model_name": "minilm"}),
        ):
            status, answer = await ask_json(controller, "POST", path, body)
            assert (status, answer["error"]["code"]) == (503, "shutting_down")
        stream.close()
        await closing


async def test_path_that_is_not_reserved_goes_to_the_child(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")

    status, answer = await ask_json(controller, "GET", "/status/of/nothing")

    assert (status, answer["error"]["type"]) == (404, "not_found_error")


async def test_status_says_that_jobs_in_memory_do_not_last(
    start_controller: StartController,
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        controller = await start_controller(data_dir=Path(folder) / "data")
        jobs = (await controller.json("GET", "/status"))["jobs"]
        await controller.stop()
    assert jobs["durable"] is False
    assert "in memory (tmpfs)" in jobs["not_durable_because"]
    assert jobs["is_open"] is False


async def states(controller: RunningController) -> dict[str, tuple[str, str]]:
    models = (await controller.json("GET", "/v1/models"))["data"]
    return {model["id"]: (model["type"], model["state"]) for model in models}


async def has_said(controller: RunningController, words: str) -> bool:
    return any(words in line for line in backend_of(controller).process.last_lines)


async def is_model_state(controller: RunningController, model: str, state: str) -> bool:
    return (await states(controller))[model][1] == state


async def is_counted(controller: RunningController, **wanted: int) -> bool:
    return bool((await controller.json("GET", "/status"))["requests"] == wanted)


async def is_state(controller: RunningController, state: str) -> bool:
    status: dict[str, Any] = await controller.json("GET", "/status")
    return bool(status["state"] == state)
