"""What a model cannot do is refused before anything is switched for it, with those that can."""

import pytest

from tests.conftest import StartController
from tests.gateway.conftest import ask_json

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("path", "model", "lacking", "able"),
    [
        ("/v1/chat/completions", "minilm", "a model for embedding", ["bench-chat", "demo-chat"]),
        ("/v1/embeddings", "demo-chat", "a model for generation", ["minilm"]),
        ("/v1/rerank", "minilm", "`pooling: rank`", []),
        ("/rerank", "demo-chat", "a model for generation", []),
        ("/v1/audio/transcriptions", "demo-chat", "`mmproj` with an audio encoder", []),
    ],
)
async def test_model_that_cannot_do_the_task_is_refused_and_never_switched_to(
    start_controller: StartController, path: str, model: str, lacking: str, able: list[str]
) -> None:
    controller = await start_controller(auto_switch=True)

    status, answer = await ask_json(controller, "POST", path, {"model": model, "documents": []})

    assert (status, answer["error"]["code"]) == (422, "model_type_mismatch")
    assert lacking in answer["error"]["message"]
    assert answer["error"]["models"] == able
    assert (await controller.json("GET", "/switches"))["switches"] == []


@pytest.mark.parametrize("path", ["/v1/reranking", "/v1/audio/transcriptions"])
async def test_task_that_no_model_can_do_is_refused_where_none_is_named(
    start_controller: StartController, path: str
) -> None:
    controller = await start_controller()

    status, answer = await ask_json(controller, "POST", path, {})

    assert (status, answer["error"]["code"]) == (422, "model_type_mismatch")


async def test_raw_server_is_asked_whatever_it_is(start_controller: StartController) -> None:
    controller = await start_controller()
    await controller.switch_to("minilm")

    raw, _ = await ask_json(controller, "POST", "/upstream/minilm/v1/chat/completions", CHAT)

    assert raw == 500
