"""Two controllers on one queue: what one was given, both do, and the death of one costs nothing."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from lab.harness.redis_server import RedisServer
from standardwebhooks.webhooks import Webhook

from tests.e2e.conftest import Serve, Served, change

LINES = 600
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    folder = tmp_path / "redis"
    folder.mkdir()
    with RedisServer(folder) as server:
        yield server


@pytest.fixture
def start(
    serve: Serve, tmp_path: Path, profiles: Path, redis_server: RedisServer
) -> Callable[[str], Served]:
    """Starts a controller of that name on the shared queue."""
    change(profiles / "embedding.yaml", lambda profile: profile.update(threads=1))
    jobs = {
        "queue_url": "${QUEUE_URL}",
        "callback_hosts": ["127.0.0.1"],
        "callback_key_env": "CALLBACK_KEY",
    }
    change(profiles / "supervisor.yaml", lambda settings: settings.update(jobs=jobs))
    environment = {"QUEUE_URL": redis_server.url, "CALLBACK_KEY": KEY}

    def begin(name: str) -> Served:
        data = ("--data", str(tmp_path / name))
        return serve(*data, env=environment, log_file=tmp_path / f"{name}.log")

    return begin


@pytest.fixture
async def told() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver's URL, and the messages that it has verified."""
    messages: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        messages.append(Webhook(KEY).verify(await request.read(), dict(request.headers)))
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/hook", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/hook", messages
    await runner.cleanup()


async def begin_batch(served: Served, count: int, **fields: Any) -> str:
    """Have a controller take a batch of embeddings; returns its id."""
    asked = [
        {
            "custom_id": f"t{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "minilm", "input": f"text number {number}"},
        }
        for number in range(count)
    ]
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", b"\n".join(json.dumps(each).encode() for each in asked), filename="in")
    async with (
        aiohttp.ClientSession() as client,
        client.post(await served.url() + "/v1/files", data=form) as answer,
    ):
        file = await answer.json()
    body = {"input_file_id": file["id"], "endpoint": "/v1/embeddings", **fields}
    status, batch = await served.json("POST", "/v1/batches", body)
    assert status == 200, batch
    return str(batch["id"])


async def until_done(served: Served, batch_id: str, count: int) -> dict[str, Any]:
    """Wait until so many lines of a batch are done, or it has ended."""
    deadline = time.monotonic() + 120
    while True:
        status, batch = await served.json("GET", f"/v1/batches/{batch_id}")
        if status == 200 and (
            batch["request_counts"]["completed"] >= count or batch["status"] == "completed"
        ):
            return dict(batch)
        assert time.monotonic() < deadline, (batch, served.log()[-6000:])
        await asyncio.sleep(0.05)


async def ids_in(served: Served, file_id: str) -> list[str]:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{await served.url()}/v1/files/{file_id}/content") as answer,
    ):
        return [json.loads(line)["custom_id"] for line in (await answer.read()).splitlines()]


def works(served: Served) -> bool:
    """Whether it has started the model of the batch, which nothing else asks for."""
    return any(event["model"] == "minilm" for event in served.events("switch.finished"))


async def test_batch_of_a_killed_controller_is_done_by_the_other_and_told_once(
    start: Callable[[str], Served], told: tuple[str, list[dict[str, Any]]]
) -> None:
    url, messages = told
    one, other = start("one"), start("other")
    batch_id = await begin_batch(one, LINES, callback_url=url)
    await until_done(other, batch_id, LINES // 4)
    await one.until(lambda: works(one))
    await other.until(lambda: works(other))
    one.process.send_signal(signal.SIGKILL)
    one.process.wait()
    batch = await until_done(other, batch_id, LINES + 1)

    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert batch["error_file_id"] is None
    written = await ids_in(other, batch["output_file_id"])
    assert sorted(written) == sorted(f"t{number}" for number in range(LINES))
    await other.until(lambda: messages)
    assert [(each["type"], each["data"]["id"]) for each in messages] == [
        ("batch.completed", batch_id)
    ]


async def test_queue_server_that_is_restarted_costs_no_line(
    start: Callable[[str], Served], redis_server: RedisServer
) -> None:
    served = start("one")
    batch_id = await begin_batch(served, LINES)
    for done in (1, LINES // 2):
        await until_done(served, batch_id, done)
        _, before = await served.json("GET", "/status")
        assert before["jobs"]["durable"], before["jobs"]
        redis_server.kill()
        _, after = await served.json("GET", "/status")
        assert "does not answer" in after["jobs"]["not_durable_because"]
        status, answer = await served.json("GET", f"/v1/batches/{batch_id}")
        assert (status, answer["error"]["code"]) == (503, "queue_unreachable")
        redis_server.start()
    batch = await until_done(served, batch_id, LINES + 1)

    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    written = await ids_in(served, batch["output_file_id"])
    assert sorted(written) == sorted(f"t{number}" for number in range(LINES))


async def test_end_of_a_document_is_told_and_only_to_hosts_that_are_allowed(
    start: Callable[[str], Served], told: tuple[str, list[dict[str, Any]]]
) -> None:
    url, messages = told
    served = start("one")
    document = {"text": "A cat sits on the mat.", "store": False}
    status, answer = await served.json("POST", "/documents", {**document, "callback_url": url})
    assert status == 200, answer
    await served.until(lambda: messages)
    assert messages[0]["type"] == "document.completed"

    document["callback_url"] = "http://169.254.169.254/latest"
    status, answer = await served.json("POST", "/documents", document)
    assert (status, answer["error"]["code"]) == (422, "callback_not_allowed")
    batch_id = await begin_batch(served, 1)
    batch = await until_done(served, batch_id, 2)
    body = {
        "input_file_id": batch["input_file_id"],
        "endpoint": "/v1/embeddings",
        "callback_url": "http://169.254.169.254/latest",
    }
    status, answer = await served.json("POST", "/v1/batches", body)

    assert (status, answer["error"]["code"]) == (422, "callback_not_allowed")
