"""Jobs outlive whoever works on them."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Serve, Served, change

LINES = 400


def lines() -> bytes:
    asked = [
        {
            "custom_id": f"t{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "minilm", "input": f"text number {number}"},
        }
        for number in range(LINES)
    ]
    return b"\n".join(json.dumps(each).encode() for each in asked)


async def upload(served: Served) -> str:
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", lines(), filename="in.jsonl")
    async with (
        aiohttp.ClientSession() as client,
        client.post(await served.url() + "/v1/files", data=form) as answer,
    ):
        return str((await answer.json())["id"])


async def content_of(served: Served, file_id: str) -> list[dict[str, Any]]:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{await served.url()}/v1/files/{file_id}/content") as answer,
    ):
        return [json.loads(line) for line in (await answer.read()).splitlines()]


async def until_done(served: Served, batch_id: str, count: int) -> dict[str, Any]:
    """Wait until so many lines of a batch are done, or it has ended."""
    deadline = time.monotonic() + 90
    while True:
        _, batch = await served.json("GET", f"/v1/batches/{batch_id}")
        if batch["request_counts"]["completed"] >= count or batch["status"] == "completed":
            return dict(batch)
        assert time.monotonic() < deadline, (batch, served.log()[-6000:])
        await asyncio.sleep(0.05)


@pytest.fixture(autouse=True)
def one_thread(profiles: Path) -> None:
    """Servers of the model compute on one thread: threads that wait for others keep a core."""
    change(profiles / "embedding.yaml", lambda profile: profile.update(threads=1))


async def test_a_batch_goes_on_after_its_controller_died(serve: Serve, tmp_path: Path) -> None:
    served = serve(log_file=tmp_path / "first.log")
    asked = {"input_file_id": await upload(served), "endpoint": "/v1/embeddings"}
    _, begun = await served.json("POST", "/v1/batches", asked)
    for number, done in enumerate((0, 1, LINES // 2, LINES - 1)):
        batch = await until_done(served, begun["id"], done)
        served.process.send_signal(signal.SIGKILL)
        served.process.wait()
        served = serve("--data-wait", "20", log_file=tmp_path / f"{number}.log")
    batch = await until_done(served, begun["id"], LINES + 1)
    assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert batch["error_file_id"] is None
    output = await content_of(served, batch["output_file_id"])
    assert sorted(each["custom_id"] for each in output) == sorted(f"t{n}" for n in range(LINES))


async def test_a_shutdown_gives_work_back_at_once(serve: Serve, tmp_path: Path) -> None:
    served = serve(log_file=tmp_path / "first.log")
    asked = {"input_file_id": await upload(served), "endpoint": "/v1/embeddings"}
    _, begun = await served.json("POST", "/v1/batches", asked)
    await until_done(served, begun["id"], 1)
    served.terminate()
    assert await served.exit_code() == 0
    served = serve(log_file=tmp_path / "second.log")
    batch = await until_done(served, begun["id"], LINES + 1)
    assert batch["request_counts"]["completed"] == LINES
    assert "Traceback" not in (tmp_path / "first.log").read_text()


async def test_an_idle_controller_has_nothing_of_jobs(serve: Serve) -> None:
    served = serve(env={"PYTHONPROFILEIMPORTTIME": "1"})
    await served.url()
    assert "supervisor.gateway" in served.log()
    for room in ("supervisor.jobs", "supervisor.vector_store.edge", "redis"):
        assert f" {room}" not in served.log(), room
