"""Conversations over a switch: a client that goes on finds its prompt computed already."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, backend_of, shipped

OPENINGS = (
    "Once upon a time there was a keeper of a lighthouse. " * 5,
    "Take two eggs, a spoon of flour and a cup of milk. " * 5,
)
MIN_CACHED = 50
"""Tokens; each opening has more, and what all conversations have in common has far fewer."""


def files(*, in_data: bool = False) -> dict[str, Any]:
    """Let bench-chat serve two conversations, and be able to embed."""
    catalogue = shipped("models.yaml", default_model=None)
    catalogue["models"]["bench-chat"]["overrides"] = {"ctx_size": 1024, "parallel": 2}
    switch = shipped("supervisor.yaml")["switch"] | {"keep_prompt_cache_at_exit": in_data}
    return {
        "models.yaml": catalogue,
        "supervisor.yaml": shipped("supervisor.yaml", switch=switch),
    }


async def say(controller: RunningController, prompt: str) -> tuple[str, int]:
    """Continue a prompt as any client does. Returns the words, and how many tokens were cached."""
    body = {"model": "bench-chat", "prompt": prompt, "n_predict": 6, "temperature": 0}
    status, answer = await ask_json(controller, "POST", "/completion", body)
    assert status == 200, answer
    return answer["content"], answer["timings"]["cache_n"]


async def begin(controller: RunningController) -> list[str]:
    """Begin both conversations. Returns each as it stands."""
    await controller.switch_to("bench-chat")
    return [opening + (await say(controller, opening))[0] for opening in OPENINGS]


async def go_on(controller: RunningController, texts: list[str]) -> list[tuple[str, int]]:
    return [await say(controller, text + " And then") for text in texts]


def kept_in(data_dir: Path) -> list[Path]:
    return [path for path in data_dir.glob("prompt-cache/**/*") if path.is_file()]


@pytest.mark.parametrize("engine", ["llama-server", "embedded"])
async def test_conversations_go_on_after_a_switch_to_embedding_and_back(
    start_controller: StartController, engine: str
) -> None:
    uninterrupted = await start_controller(engine=engine, files=files())
    wanted = await go_on(uninterrupted, await begin(uninterrupted))
    await uninterrupted.stop()

    controller = await start_controller(engine=engine, files=files())
    texts = await begin(controller)
    leaving = await controller.switch_to("minilm")
    coming = await controller.switch_to("bench-chat")

    assert await go_on(controller, texts) == wanted
    (saved,), restored = leaving["prompt_cache"]["saved"], coming["prompt_cache"]["restored"]
    assert (saved["model"], saved["slots"], saved["reason"]) == ("bench-chat", 2, None)
    assert (restored["slots"], restored["tokens"]) == (2, saved["tokens"])
    assert all(cached > MIN_CACHED for _, cached in wanted)


@pytest.mark.parametrize(
    "path",
    [
        "/slots/0?action=save",
        "/slots/0?action=restore",
        "/slots/0?action=x&action=save",
        "/%73lots/0?acti%6Fn=save",
    ],
)
async def test_clients_write_and_read_no_files_of_slots(
    start_controller: StartController, tmp_path: Path, path: str
) -> None:
    controller = await start_controller(files=files(), data_dir=tmp_path / "data")
    await begin(controller)
    status, answer = await ask_json(controller, "POST", path, {"filename": "mine.bin"})
    assert (status, answer["error"]["code"]) == (403, "slot_files_reserved")
    assert not [found for found in kept_in(tmp_path / "data") if found.name == "mine.bin"]


async def test_clients_cannot_hide_what_they_ask_of_slots_in_a_body(
    start_controller: StartController,
) -> None:
    """llama-server's HTTP library takes the body of a form for more of the query."""
    controller = await start_controller(files=files())
    await begin(controller)
    async with controller.client.post(
        f"{controller.url}/slots/0",
        data='{"filename": "mine.bin", "x": "&action=save&"}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (
            403,
            "slot_files_reserved",
        )


async def test_nothing_that_clients_wrote_is_left_at_exit(
    start_controller: StartController, tmp_path: Path
) -> None:
    controller = await start_controller(files=files(), data_dir=tmp_path / "data")
    await begin(controller)
    await controller.switch_to("minilm")
    assert kept_in(tmp_path / "data")
    await controller.stop()
    assert not kept_in(tmp_path / "data")


async def test_conversations_outlive_the_controller_where_it_is_told_so(
    start_controller: StartController, tmp_path: Path
) -> None:
    options = {"files": files(in_data=True), "data_dir": tmp_path / "data"}
    controller = await start_controller(**options)
    texts = await begin(controller)
    await controller.stop()

    controller = await start_controller(**options)
    await controller.switch_to("bench-chat")
    assert all(cached > MIN_CACHED for _, cached in await go_on(controller, texts))


async def test_reloading_the_same_model_keeps_its_conversations(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files())
    texts = await begin(controller)
    assert (await ask_json(controller, "POST", "/unload"))[0] == 200
    await controller.switch_to("bench-chat")
    assert backend_of(controller).prompts_restored is not None
    assert all(cached > MIN_CACHED for _, cached in await go_on(controller, texts))
