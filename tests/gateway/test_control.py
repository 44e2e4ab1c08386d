"""Switching and unloading over HTTP: orders that succeed, and those refused before they begin."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, backend_of, endless_stream, shipped, until

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


async def test_switch_reports_model_mode_seconds_and_memory(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")

    status, report = await switch(controller, model_name="minilm", model_type="embedding")

    assert status == 200
    assert (report["outcome"], report["model"], report["mode"]) == (
        "switched",
        "minilm",
        "embedding",
    )
    assert (report["profile"], report["epoch"], report["error"]) == ("embedding", 2, None)
    assert report["last_phase"] == "ready"
    phases = ["preflight", "warming", "draining", "stopping", "confirming", "starting"]
    assert [*report["seconds"]] == [*phases, "total"]
    total_s = report["seconds"]["total"]
    assert sum(report["seconds"][phase] for phase in phases) == pytest.approx(total_s, abs=0.01)
    for moment in ("before", "released", "after"):
        sample = report["memory"][moment]
        assert 0 < sample["used_bytes"] <= sample["total_bytes"]


async def test_order_may_come_compressed(start_controller: StartController) -> None:
    controller = await start_controller()
    order = gzip.compress(json.dumps({"model_name": "minilm"}).encode())

    async with controller.client.post(
        f"{controller.url}/switch-backend", data=order, headers={"Content-Encoding": "gzip"}
    ) as answer:
        assert (await answer.json())["model"] == "minilm"


async def test_order_in_an_encoding_that_is_not_read_is_refused(
    start_controller: StartController,
) -> None:
    controller = await start_controller()

    for encoding, sent, code in (
        ("br", b"{}", "encoding_not_supported"),
        ("gzip, zstd", b"{}", "encoding_not_supported"),
        ("br", b"", "nothing_is_down"),
    ):
        async with controller.client.post(
            f"{controller.url}/backend/restart", data=sent, headers={"Content-Encoding": encoding}
        ) as answer:
            assert (await answer.json())["error"]["code"] == code


async def test_switch_there_and_back_serves_each_mode(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)

    for _ in range(2):
        await controller.switch_to("demo-chat")
        assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200
        await controller.switch_to("minilm")
        status, answer = await ask_json(controller, "POST", "/v1/embeddings", {"input": "a"})
        assert (status, len(answer["data"][0]["embedding"])) == (200, 384)


@pytest.mark.parametrize("name", ["demo-chat", "chat"])
async def test_same_target_again_restarts_nothing(
    start_controller: StartController, name: str
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    before = await live_backend(controller)

    status, report = await switch(controller, model_name=name)

    assert (status, report["outcome"], report["epoch"]) == (200, "unchanged", before["epoch"])
    assert [*report["seconds"]] == ["total"]
    after = await live_backend(controller)
    assert (after["pid"], after["epoch"]) == (before["pid"], before["epoch"])


async def test_same_model_with_another_profile_is_restarted(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("minilm")
    before = await live_backend(controller)

    status, report = await switch(controller, model_name="minilm", profile="embedding-cpu")

    assert (status, report["profile"]) == (200, "embedding-cpu")
    after = await live_backend(controller)
    assert (after["profile"], after["pid"] != before["pid"]) == ("embedding-cpu", True)


async def test_order_may_stand_in_the_query(start_controller: StartController) -> None:
    controller = await start_controller()

    status, report = await ask_json(
        controller, "POST", "/switch-backend?model_name=demo-chat&model_type=generation"
    )

    assert (status, report["model"]) == (200, "demo-chat")


async def test_unawaited_switch_can_be_followed_to_its_end(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        async with controller.client.post(
            f"{controller.url}/switch-backend", json={"model_name": "minilm", "wait": False}
        ) as answer:
            accepted = await answer.json()
            assert answer.status == 202
            assert answer.headers["Location"] == f"/switches/{accepted['switch_id']}"
        running = await until_phase(controller, accepted["location"], "draining")
        assert (running["outcome"], running["model"]) == ("running", "minilm")
        stream.close()
        await until(lambda: has_ended(controller, accepted["location"]))

    ended = await controller.json("GET", accepted["location"])
    assert (ended["outcome"], ended["model"], ended["epoch"]) == ("switched", "minilm", 2)
    assert (await controller.json("GET", "/switches"))["switches"][0] == ended


async def test_unknown_switch_is_not_found(start_controller: StartController) -> None:
    controller = await start_controller()

    status, answer = await ask_json(controller, "GET", "/switches/s0-0")

    assert (status, answer["error"]["code"]) == (404, "switch_not_found")


async def test_same_target_joins_the_running_switch_and_another_is_refused(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        _, accepted = await switch(controller, model_name="minilm", wait=False)
        joining = asyncio.create_task(switch(controller, model_name="minilm"))
        again, joined = await switch(controller, model_name="minilm", wait=False)
        assert (again, joined["switch_id"]) == (202, accepted["switch_id"])

        status, refused = await switch(controller, model_name="demo-chat")
        assert (status, refused["error"]["code"]) == (409, "switch_in_progress")
        assert refused["error"]["target"] == "minilm"
        assert accepted["switch_id"] in refused["error"]["message"]
        stream.close()
        status, report = await joining

    assert (status, report["switch_id"]) == (200, accepted["switch_id"])
    assert (await live_backend(controller))["model"] == "minilm"


async def test_switch_that_waits_for_one_of_the_scheduler_can_be_followed_from_the_start(
    start_controller: StartController,
) -> None:
    hasty = shipped("supervisor.yaml", scheduler={"manual_hold_s": 0, "policy": "fifo"})
    controller = await start_controller(files={"supervisor.yaml": hasty}, auto_switch=True)
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        embedding = asyncio.create_task(
            ask_json(controller, "POST", "/v1/embeddings", {"model": "minilm", "input": "a"})
        )
        await until(lambda: is_switching(controller))
        status, accepted = await switch(controller, model_name="demo-chat", wait=False)
        assert status == 202
        waiting = await controller.json("GET", accepted["location"])
        assert (waiting["outcome"], waiting["phase"]) == ("running", "waiting")
        listed = (await controller.json("GET", "/switches"))["switches"]
        assert [each["model"] for each in listed[:2]] == ["demo-chat", "minilm"]
        stream.close()
        await until(lambda: has_ended(controller, accepted["location"]))
        assert (await embedding)[0] == 200

    assert (await live_backend(controller))["model"] == "demo-chat"


async def test_switch_goes_on_when_its_caller_leaves(start_controller: StartController) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as stream:
        calling = asyncio.create_task(switch(controller, model_name="minilm"))
        await until(lambda: is_state(controller, "switching"))
        calling.cancel()
        stream.close()
        await until(lambda: is_live(controller, "minilm"))


async def test_unload_frees_the_device(start_controller: StartController, engine: str) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")
    process = backend_of(controller).process

    status, report = await ask_json(controller, "POST", "/unload")

    assert (status, report["outcome"], report["model"]) == (200, "switched", None)
    assert not process.is_running
    assert report["memory"]["released"]["children_bytes"] == 0
    assert (await ask_json(controller, "POST", "/unload"))[1]["outcome"] == "unchanged"


async def test_unload_need_not_be_awaited(start_controller: StartController) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")

    status, accepted = await ask_json(controller, "POST", "/unload?wait=false")

    assert status == 202
    await until(lambda: has_ended(controller, accepted["location"]))
    assert (await controller.json("GET", "/status"))["backends"] == []


async def test_type_alone_means_its_default_model(start_controller: StartController) -> None:
    """As the reference's `switch_to_embedding_mode()` asks for it."""
    controller = await start_controller()

    for mode, model in (("embedding", "minilm"), ("generation", "demo-chat")):
        status, report = await switch(controller, model_type=mode)
        assert (status, report["model"], report["mode"]) == (200, model, mode)


async def test_type_of_several_models_without_a_default_is_refused_with_their_names(
    start_controller: StartController,
) -> None:
    models = shipped("models.yaml", default_model=None, default_models={})
    controller = await start_controller(files={"models.yaml": models})

    status, answer = await switch(controller, model_type="generation")

    assert (status, answer["error"]["code"]) == (400, "model_not_named")
    assert answer["error"]["models"] == ["bench-chat", "demo-chat"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"model_name": "minilm", "model_type": "chat"}', "model_type"),
        (b'{"model_name": "minilm", "modeltype": "embedding"}', "modeltype"),
        (b'{"wait": true}', "model_name and model_type are missing"),
        (b'{"model_name": "minilm", "wait": "perhaps"}', "wait"),
        (b'{"model_name": ', "JSON object"),
        (b'["minilm"]', "JSON object"),
        (b"", "model_name"),
    ],
)
async def test_order_that_cannot_be_read_is_refused(
    start_controller: StartController, body: bytes, problem: str
) -> None:
    controller = await start_controller()

    async with controller.client.post(f"{controller.url}/switch-backend", data=body) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (400, "bad_request")
    assert problem in error["message"]


async def test_unknown_model_is_refused_with_the_known_names(
    start_controller: StartController,
) -> None:
    controller = await start_controller()

    status, answer = await switch(controller, model_name="nobody")

    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert answer["error"]["known_models"] == ["bench-chat", "demo-chat", "minilm"]
    assert "bench-chat, demo-chat, minilm" in answer["error"]["message"]


async def test_target_that_cannot_start_leaves_the_live_backend_alone(
    start_controller: StartController, engine: str, tmp_path: Path
) -> None:
    """Whatever can be known before: contradiction, profile, flags, file, size."""
    (tmp_path / "text.gguf").write_text("not a model")
    models = shipped("models.yaml")["models"] | {
        "missing": {"path": str(tmp_path / "missing.gguf")},
        "text": {"path": str(tmp_path / "text.gguf")},
        "huge": {"path": "demo-chat.gguf", "overrides": {"memory": {"need_bytes": 1 << 50}}},
    }
    files = {
        "models.yaml": shipped("models.yaml", default_model=None, models=models),
        "odd.yaml": shipped("generation.yaml", extra_args=["--no-such-flag"]),
    }
    controller = await start_controller(engine=engine, files=files)
    await controller.switch_to("demo-chat")
    before = await live_backend(controller)

    for order, code, reason in (
        ({"model_name": "minilm", "model_type": "generation"}, "model_type_mismatch", "embedding"),
        ({"model_name": "bench-chat", "profile": "none"}, "unknown_profile", "generation"),
        ({"model_name": "bench-chat", "profile": "embedding"}, "unknown_profile", "generation"),
        ({"model_name": "bench-chat", "profile": "odd"}, "target_cannot_start", "--no-such-flag"),
        ({"model_name": "missing"}, "target_cannot_start", "no such file"),
        ({"model_name": "text"}, "target_cannot_start", "text.gguf"),
        ({"model_name": "huge"}, "target_does_not_fit", "budget_bytes"),
    ):
        status, answer = await switch(controller, **order)
        assert (status, answer["error"]["code"]) == (422, code), order
        assert reason in answer["error"]["message"], order
        after = await live_backend(controller)
        assert (after["pid"], after["state"]) == (before["pid"], "ready"), order
        assert (await ask_json(controller, "POST", "/v1/chat/completions", CHAT))[0] == 200, order


async def switch(controller: RunningController, **order: Any) -> tuple[int, Any]:
    return await ask_json(controller, "POST", "/switch-backend", order)


async def live_backend(controller: RunningController) -> dict[str, Any]:
    (backend,) = (await controller.json("GET", "/status"))["backends"]
    return dict(backend)


async def until_phase(controller: RunningController, location: str, phase: str) -> dict[str, Any]:
    async def is_there() -> bool:
        return bool((await controller.json("GET", location)).get("phase") == phase)

    await until(is_there)
    return dict(await controller.json("GET", location))


async def has_ended(controller: RunningController, location: str) -> bool:
    return bool((await controller.json("GET", location))["outcome"] != "running")


async def is_state(controller: RunningController, state: str) -> bool:
    return bool((await controller.json("GET", "/status"))["state"] == state)


async def is_live(controller: RunningController, model: str) -> bool:
    return bool((await controller.json("GET", "/status"))["loaded_model"] == model)


async def is_switching(controller: RunningController) -> bool:
    return (await controller.json("GET", "/status"))["switch"] is not None
