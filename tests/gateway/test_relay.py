"""What reaches the live server, and what comes back: unchanged, at once, and to its end."""

import asyncio
import io
import json
import os
import signal
from typing import Any

import pytest

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    ENDLESS,
    ask,
    ask_child,
    ask_json,
    backend_of,
    both_doors,
    busy_slots,
    endless_stream,
    raw_request,
    requests_now,
    shipped,
    unchunk,
    until,
)

pytestmark = both_doors


CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12, "temperature": 0}
TEXTS = ["a cat sits on a mat", "the memory of the device is free", "한국어 문장"]

GENERATION_CALLS: tuple[tuple[str, str, Any], ...] = (
    ("GET", "/props", None),
    ("GET", "/metrics", None),
    ("GET", "/slots", None),
    ("POST", "/tokenize", {"content": "a cat"}),
    ("POST", "/detokenize", {"tokens": [1, 2, 3]}),
    ("POST", "/apply-template", {"messages": CHAT["messages"]}),
    ("POST", "/completion", {"prompt": "a", "n_predict": 2}),
    ("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2}),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/responses", {"input": "a", "max_output_tokens": 2}),
    ("POST", "/v1/messages", {"messages": CHAT["messages"], "max_tokens": 2}),
    ("POST", "/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 2}),
)
FAULTY_CALLS: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/chat/completions", {"messages": "not a list"}),
    ("POST", "/v1/chat/completions", {}),
    ("POST", "/completion", {"prompt": "word " * 9000, "n_predict": 1}),
    ("POST", "/props", {"system_prompt": "x"}),
    ("GET", "/no/such/path", None),
    ("DELETE", "/props", None),
)


async def test_chat_is_answered(start_controller: StartController, engine: str) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")

    answer = await controller.json("POST", "/v1/chat/completions", {"model": "chat", **CHAT})

    assert answer["choices"][0]["message"]["content"].split()
    assert answer["usage"]["completion_tokens"] <= 12


async def test_large_body_that_curl_calls_a_form_is_answered(
    start_controller: StartController,
) -> None:
    """llama-server's HTTP library takes no more than 1 MiB of a form."""
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    body = io.BytesIO(json.dumps({"content": "a " * 600_000}).encode())

    async with controller.client.post(
        f"{controller.url}/tokenize",
        data=body,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    ) as answer:
        assert answer.status == 200
        assert len((await answer.json())["tokens"]) > 600_000


async def test_streamed_chat_says_the_same_and_ends_with_done(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")
    whole = await controller.json("POST", "/v1/chat/completions", CHAT)

    async with controller.client.post(
        f"{controller.url}/v1/chat/completions", json={**CHAT, "stream": True}
    ) as answer:
        assert answer.content_type == "text/event-stream"
        events = [line async for line in answer.content if line.startswith(b"data: ")]

    assert events[-1] == b"data: [DONE]\n"
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]
    words = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
    assert "".join(words) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
async def test_embeddings_equal_those_of_the_child(
    start_controller: StartController, engine: str, encoding_format: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("minilm")
    body = {"input": TEXTS, "encoding_format": encoding_format}

    relayed = await ask(controller, "POST", "/upstream/minilm/v1/embeddings", body)

    assert relayed[0] == 200
    assert relayed == await ask_child(controller, "POST", "/v1/embeddings", body)


async def test_every_route_of_the_child_is_relayed(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")

    for method, path, body in GENERATION_CALLS:
        relayed = await ask(controller, method, path, body)
        direct = await ask_child(controller, method, path, body)
        assert relayed[:2] == direct[:2], (path, relayed)


async def test_errors_of_the_child_pass_unchanged(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")
    seen = set()

    for method, path, body in FAULTY_CALLS:
        relayed = await ask(controller, method, path, body)
        assert relayed == await ask_child(controller, method, path, body), path
        seen.add(relayed[0])

    assert seen >= {400, 404, 501}


async def test_text_that_is_too_long_gets_the_childs_500(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("minilm")
    body = {"input": "word " * 3000}

    relayed = await ask(controller, "POST", "/upstream/minilm/v1/embeddings", body)

    assert relayed == await ask_child(controller, "POST", "/v1/embeddings", body)
    assert relayed[0] in {400, 500}


async def test_head_gets_the_head_that_get_would_get(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")
    status, content_type, body = await ask(controller, "GET", "/props")

    async with controller.client.head(f"{controller.url}/props") as answer:
        assert (answer.status, answer.headers["Content-Type"]) == (status, content_type)
        assert answer.headers["Content-Length"] == str(len(body))
        assert await answer.read() == b""


async def test_many_requests_outlive_the_childs_connections(
    start_controller: StartController, engine: str
) -> None:
    """The child closes a connection after 100 requests."""
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")

    for _ in range(250):
        status, _, _ = await ask(controller, "POST", "/tokenize", {"content": "a cat"})
        assert status == 200


async def test_events_arrive_while_the_child_still_works(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("bench-chat")

    async with endless_stream(controller):
        assert await busy_slots(controller) == 1


async def test_slot_is_free_soon_after_its_client_left(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("bench-chat")

    async with endless_stream(controller) as answer:
        answer.close()
        await until(lambda: is_idle(controller))

    async def is_cancelled() -> bool:
        return any("cancel task" in line for line in backend_of(controller).process.last_lines)

    await until(is_cancelled)  # it did not come to its end
    assert (await requests_now(controller))["in_flight"] == 0


async def test_child_killed_in_a_stream_breaks_it_visibly(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("bench-chat")
    body = json.dumps({**ENDLESS, "stream": True}).encode()
    head = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body

    async with raw_request(controller, request) as (reader, _):
        received = await reader.readuntil(b"\n\n")
        os.kill(backend_of(controller).process.pid, signal.SIGKILL)
        received += await reader.read()

    content, is_complete = unchunk(received.partition(b"\r\n\r\n")[2])
    *events, rest = content.split(b"\n\n")
    errors = [event for event in events if b'"error"' in event]
    assert not is_complete
    assert events
    assert all(event.startswith(b"data: {") for event in events)
    assert errors in ([], events[-1:])
    assert b'"error"' not in rest


async def test_child_killed_before_its_first_byte_is_told_with_a_reason(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("bench-chat")
    asking = asyncio.create_task(ask_json(controller, "POST", "/completion", ENDLESS))
    await until(lambda: is_busy(controller))

    os.kill(backend_of(controller).process.pid, signal.SIGKILL)
    status, answer = await asking

    assert (status, answer["error"]["type"]) == (502, "server_error")
    assert answer["error"]["code"] == "backend_unreachable"
    assert "'bench-chat' closed the connection" in answer["error"]["message"]


async def test_request_that_a_switch_cuts_is_told_which_and_after_how_long(
    start_controller: StartController,
) -> None:
    hasty = shipped("generation.yaml", drain_timeout_s=0.1)
    controller = await start_controller(files={"generation.yaml": hasty})
    await controller.switch_to("bench-chat")
    asking = asyncio.create_task(ask_json(controller, "POST", "/completion", ENDLESS))
    await until(lambda: is_busy(controller))

    await controller.switch_to("minilm")
    status, answer = await asking

    assert (status, answer["error"]["code"]) == (502, "backend_unreachable")
    assert "for a switch to 'minilm'" in answer["error"]["message"]
    assert answer["error"]["after_s"] > 0


async def test_upstream_reaches_the_raw_child(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("demo-chat")

    for name in ("demo-chat", "chat"):
        assert await ask_json(controller, "GET", f"/upstream/{name}/health") == (
            200,
            {"status": "ok"},
        )
    models = await controller.json("GET", "/upstream/demo-chat/v1/models?x=1")
    assert models["data"][0]["meta"]["n_ctx_train"] == 4096


async def test_upstream_of_a_model_that_is_not_live_names_the_live_one(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")

    status, answer = await ask_json(controller, "GET", "/upstream/minilm/props")

    assert (status, answer["error"]["code"]) == (409, "model_not_live")
    assert answer["error"]["live_models"] == ["demo-chat"]


async def test_upstream_of_an_unknown_model_names_the_known_ones(
    start_controller: StartController,
) -> None:
    controller = await start_controller()

    status, answer = await ask_json(controller, "GET", "/upstream/nobody/props")

    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    assert answer["error"]["known_models"] == ["bench-chat", "demo-chat", "minilm"]


async def is_idle(controller: RunningController) -> bool:
    return await busy_slots(controller) == 0


async def is_busy(controller: RunningController) -> bool:
    return await busy_slots(controller) > 0


async def is_nothing_live(controller: RunningController) -> bool:
    return bool((await controller.json("GET", "/status"))["server_mode"] == "none")
