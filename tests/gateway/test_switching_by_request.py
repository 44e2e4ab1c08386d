"""Requests that switch: each waits for the turn of its model, and nothing else moves the device."""

import asyncio
from collections.abc import Iterable
from typing import Any

from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, both_doors, endless_stream, shipped, until

CHAT_PATH, EMBED_PATH = "/v1/chat/completions", "/v1/embeddings"
RELAYED_EMBED_PATH = "/embeddings"  # the server’s own, without the service and its batches
CHAT = {"model": "demo-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
EMBED = {"model": "minilm", "input": "a cat"}


@both_doors
async def test_both_modes_are_served_in_turns_without_any_switch_by_hand(
    start_controller: StartController,
) -> None:
    controller = await start_controller(auto_switch=True)

    for _ in range(2):
        chat = await controller.json("POST", CHAT_PATH, CHAT)
        assert chat["choices"][0]["finish_reason"]
        embedded = await controller.json("POST", EMBED_PATH, EMBED)
        assert len(embedded["data"][0]["embedding"]) == 384

    switches = (await controller.json("GET", "/switches"))["switches"]
    assert [each["model"] for each in switches] == ["minilm", "demo-chat"] * 2
    assert {each["requested_by"] for each in switches} == {"scheduler"}


async def test_clients_of_both_modes_at_once_are_all_served(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(auto_switch=True, engine=engine)

    asked = [(CHAT_PATH, CHAT), (EMBED_PATH, EMBED)] * 6
    answers = await asyncio.gather(
        *(ask_json(controller, "POST", path, body) for path, body in asked)
    )

    assert [status for status, _ in answers] == [200] * len(asked)


async def test_request_that_names_no_model_switches_to_the_default_of_its_route(
    start_controller: StartController,
) -> None:
    controller = await start_controller(auto_switch=True)

    for path, body, model in (
        (EMBED_PATH, {"input": "a"}, "minilm"),
        ("/completion", {"prompt": "a", "n_predict": 1}, "demo-chat"),
    ):
        assert (await ask_json(controller, "POST", path, body))[0] == 200
        assert await live_model(controller) == model


async def test_what_cannot_be_read_moves_no_device(start_controller: StartController) -> None:
    """What model it names is not known, and all that a server could do is to refuse it."""
    controller = await start_controller(auto_switch=True)
    await ask_json(controller, "POST", EMBED_PATH, EMBED)
    for body, headers, status, said in (
        (b'{"model": "minilm", "mess', {}, 400, "cannot be read"),
        (b"\x0b\x02\x80{}\x03", {"Content-Encoding": "br"}, 415, "(?model=)"),
    ):
        async with controller.client.post(
            controller.url + CHAT_PATH, data=body, headers=headers
        ) as answer:
            assert answer.status == status
            assert said in (await answer.json())["error"]["message"]
    assert await live_model(controller) == "minilm"


async def test_raw_work_switches(start_controller: StartController) -> None:
    controller = await start_controller(auto_switch=True)

    for model in ("minilm", "demo-chat"):
        path = f"/upstream/{model}/tokenize"
        status, answer = await ask_json(controller, "POST", path, {"content": "a cat"})
        assert (status, bool(answer["tokens"])) == (200, True)
        assert await live_model(controller) == model


@both_doors
async def test_nothing_but_work_moves_the_device(start_controller: StartController) -> None:
    """A scrape, a page that polls, a look at another model: each is told what is live."""
    controller = await start_controller(auto_switch=True)
    await controller.json("POST", CHAT_PATH, CHAT)

    looks: Iterable[tuple[str, str]] = (
        *(("GET", f"/{path}?model=minilm") for path in ("metrics", "props", "slots")),
        *(("GET", f"/upstream/minilm/{path}") for path in ("metrics", "lora-adapters", "health")),
        ("POST", "/upstream/minilm/lora-adapters"),
        ("POST", "/upstream/minilm/slots/0?action=erase"),
        ("OPTIONS", "/upstream/minilm/v1/embeddings"),
        ("GET", "/v1/embeddings?model=minilm"),
    )
    for method, path in looks:
        status, answer = await ask_json(controller, method, path)
        assert (status, answer["error"]["code"]) == (409, "model_not_live"), path
    async with controller.client.head(f"{controller.url}/upstream/minilm/props") as answer:
        assert answer.status == 409
    wrong = await ask_json(controller, "POST", CHAT_PATH, {**CHAT, "model": "minilm"})
    raw = await ask_json(controller, "POST", f"/upstream/minilm{CHAT_PATH}", CHAT)

    assert (wrong[0], raw[0]) == (422, 409)
    assert await live_model(controller) == "demo-chat"
    assert await switches(controller) == 1


async def test_only_an_operator_switches_where_that_is_wanted(
    start_controller: StartController,
) -> None:
    controller = await start_controller(auto_switch=False)
    await controller.switch_to("demo-chat")

    status, answer = await ask_json(controller, "POST", EMBED_PATH, EMBED)

    assert (status, answer["error"]["code"]) == (409, "model_not_live")
    assert await switches(controller) == 1


async def test_model_that_cannot_load_is_refused_with_the_loaders_reason_and_seldom_tried(
    start_controller: StartController, unloadable: dict[str, Any]
) -> None:
    """Its requests come again and again; the live model is stopped for them once in a pause."""
    controller = await start_controller(auto_switch=True, files={"models.yaml": unloadable})
    await controller.json("POST", EMBED_PATH, EMBED)
    body = {**CHAT, "model": "unloadable"}

    refused = await asyncio.gather(*(refusal(controller, body) for _ in range(50)))
    again = [await refusal(controller, body) for _ in range(50)]
    status, _ = await ask_json(controller, "POST", EMBED_PATH, EMBED)

    for code, message, retry_after_s in again:
        assert code == "switch_failed"
        assert "lemma" in message
        assert int(retry_after_s) >= 1
    assert {code for code, _, _ in refused} == {"switch_failed"}
    assert status == 200
    failed = [s for s in await history(controller) if s["outcome"] == "failed"]
    assert len(failed) == 1


async def test_stream_that_waits_is_shown_where_it_stands_and_what_it_waits_for(
    start_controller: StartController,
) -> None:
    hasty = shipped("supervisor.yaml", queue={"early_answer_after_s": 0})
    controller = await start_controller(auto_switch=True, files={"supervisor.yaml": hasty})
    await controller.json("POST", "/completion", {"model": "bench-chat", "n_predict": 1})

    async with endless_stream(controller) as running:
        first = asyncio.create_task(stream(controller))
        await until(lambda: are_waiting(controller, 1))
        second = asyncio.create_task(stream(controller))
        await until(lambda: are_waiting(controller, 2))
        running.close()
        contents = await asyncio.gather(first, second)

    for position, content in enumerate(contents, start=1):
        comments, _, answer = content.partition("\n\ndata: ")
        assert comments.startswith(f": position {position}, "), comments
        assert "demo-chat" in comments
        assert answer.endswith("data: [DONE]\n\n")
        assert ": position" not in answer


async def test_refusal_says_where_a_request_stood(start_controller: StartController) -> None:
    few = shipped("supervisor.yaml", queue={"hold_max_requests": 4, "model_share": 0.5})
    controller = await start_controller(auto_switch=True, files={"supervisor.yaml": few})
    await controller.json("POST", "/completion", {"model": "bench-chat", "n_predict": 1})

    async with endless_stream(controller) as running:
        waiting = [asyncio.create_task(ask_json(controller, "POST", RELAYED_EMBED_PATH, EMBED))]
        waiting += [asyncio.create_task(ask_json(controller, "POST", RELAYED_EMBED_PATH, EMBED))]
        await until(lambda: are_waiting(controller, 2))
        async with controller.client.post(
            controller.url + RELAYED_EMBED_PATH, json=EMBED
        ) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (429, "queue_full")
            assert answer.headers["X-Queue-Position"] == "3"
            assert answer.headers["x-should-retry"] == "true"
            assert int(answer.headers["Retry-After"]) >= 1
        other = asyncio.create_task(ask_json(controller, "POST", CHAT_PATH, CHAT))
        await until(lambda: are_waiting(controller, 3))  # there is room for another model's
        running.close()
        answers = await asyncio.gather(*waiting, other)

    assert [status for status, _ in answers] == [200] * 3


async def test_bodies_that_wait_for_one_model_leave_room_for_those_of_another(
    start_controller: StartController,
) -> None:
    small = shipped(
        "supervisor.yaml", server={"bodies_max_bytes": 10_000}, queue={"model_share": 0.5}
    )
    controller = await start_controller(auto_switch=True, files={"supervisor.yaml": small})
    await controller.json("POST", "/completion", {"model": "bench-chat", "n_predict": 1})
    padding = {"user": "u" * 3000}
    large = {**EMBED, **padding}

    async with endless_stream(controller) as running:
        waiting = asyncio.create_task(ask_json(controller, "POST", EMBED_PATH, large))
        await until(lambda: are_waiting(controller, 1))
        async with controller.client.post(controller.url + EMBED_PATH, json=large) as answer:
            assert (answer.status, (await answer.json())["error"]["code"]) == (429, "queue_full")
            assert answer.headers["X-Queue-Position"] == "2"
        other = asyncio.create_task(ask_json(controller, "POST", CHAT_PATH, {**CHAT, **padding}))
        await until(lambda: are_waiting(controller, 2))
        running.close()
        answers = await asyncio.gather(waiting, other)

    assert [status for status, _ in answers] == [200, 200]


@both_doors
async def test_priority_that_is_none_is_refused(start_controller: StartController) -> None:
    controller = await start_controller(auto_switch=True)
    headers = {"X-Priority": "urgent"}

    answer = await controller.json("POST", EMBED_PATH, EMBED, headers=headers)

    assert answer["error"]["code"] == "bad_request"
    assert "X-Priority" in answer["error"]["message"]


async def refusal(controller: RunningController, body: Any) -> tuple[str, str, str]:
    """Ask, and return code, message and Retry-After of the 503."""
    async with controller.client.post(controller.url + CHAT_PATH, json=body) as answer:
        error = (await answer.json())["error"]
        assert answer.status == 503, error
        return error["code"], error["message"], answer.headers.get("Retry-After", "0")


async def stream(controller: RunningController) -> str:
    body = {**CHAT, "stream": True}
    async with controller.client.post(controller.url + CHAT_PATH, json=body) as answer:
        return await answer.text()


async def live_model(controller: RunningController) -> Any:
    return (await controller.json("GET", "/status"))["loaded_model"]


async def history(controller: RunningController) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (await controller.json("GET", "/switches"))["switches"]
    return listed


async def switches(controller: RunningController) -> int:
    return len(await history(controller))


async def are_waiting(controller: RunningController, count: int) -> bool:
    counts = (await controller.json("GET", "/status"))["requests"]
    return bool(counts["waiting"] == count)
