"""Servers that die while they serve: restarted, requests repeated where that is safe, a breaker."""

import asyncio
import json
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

from supervisor.core.machine.events import TimePassed
from supervisor.engine.servers.backend import Backend
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import (
    ask_json,
    backend_of,
    both_doors,
    endless_stream,
    raw_request,
    shipped,
    until,
)

pytestmark = both_doors


TEXTS = ["a text about servers that die and come back " * 8] * 64


async def test_server_that_is_killed_comes_back_by_itself(
    start_controller: StartController, engine: str
) -> None:
    controller = await start_controller(engine=engine)
    await controller.switch_to("minilm")

    kill(controller)
    status, answer = await ask_json(
        controller, "POST", "/v1/embeddings", {"model": "minilm", "input": "held meanwhile"}
    )

    assert (status, len(answer["data"])) == (200, 1)
    newest = (await controller.json("GET", "/switches"))["switches"][0]
    assert (newest["requested_by"], newest["outcome"]) == ("recovery", "switched")
    assert re.fullmatch(r"s\d+-t1", newest["switch_id"])
    last_exit = (await controller.json("GET", "/status"))["last_exit"]
    assert (last_exit["signal"], last_exit["was_wanted"]) == (signal.SIGKILL, False)


async def test_embedding_whose_server_dies_under_it_is_answered_by_the_next_one(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("minilm")
    first = backend_of(controller).epoch
    body = {"model": "minilm", "input": TEXTS}
    asking = asyncio.create_task(ask_json(controller, "POST", "/v1/embeddings", body))
    await until(lambda: is_in_flight(controller))

    kill(controller)
    status, answer = await asking

    assert (status, len(answer["data"])) == (200, len(TEXTS))
    assert backend_of(controller).epoch == first + 1


async def test_half_closed_client_whose_server_dies_is_answered_by_the_next_one(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("minilm")
    body = json.dumps({"model": "minilm", "input": TEXTS})
    head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    async with raw_request(controller, f"{head}\r\n{body}".encode()) as (reader, writer):
        writer.write_eof()
        await until(lambda: is_in_flight(controller))

        kill(controller)
        received = await reader.read()

    *_, answer = received.split(b"HTTP/1.1 ")  # behind what asked whether the client is there
    assert answer.startswith(b"200 ")
    assert answer.count(b'"index"') == len(TEXTS)


async def test_request_that_finds_its_server_dead_waits_for_the_restart(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    body = {"prompt": "a", "n_predict": 1}

    for _ in range(3):
        assert (await ask_json(controller, "POST", "/completion", body))[0] == 200
        backend = backend_of(controller)
        kill(controller)
        # Idle connections are closed by now, or closing; whatever is met, nothing was asked yet.
        await until(lambda child=backend: has_ended(child))  # type: ignore[misc]
        status, answer = await ask_json(controller, "POST", "/completion", body)
        assert status == 200, answer


async def test_generation_is_repeated_only_where_the_operator_allows_it(
    start_controller: StartController,
) -> None:
    allowing = shipped("supervisor.yaml", queue={"retry_generation": True})
    body = {"model": "bench-chat", "prompt": "on", "n_predict": 1500, "ignore_eos": True}
    answers: list[int] = []
    for files in ({}, {"supervisor.yaml": allowing}):
        controller = await start_controller(files=files)
        await controller.switch_to("bench-chat")
        asking = asyncio.create_task(ask_json(controller, "POST", "/completion", body))
        await until(partial(is_in_flight, controller))
        kill(controller)
        answers.append((await asking)[0])

    assert answers == [502, 200]


async def test_server_that_dies_again_and_again_stays_down_until_somebody_restarts_it(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("demo-chat")
    for _ in range(4):
        epoch = backend_of(controller).epoch
        kill(controller)
        await until(partial(is_recovering, controller, epoch))
        hasten_retry(controller)
        await until(partial(is_live_after, controller, epoch))
    kill(controller)
    await until(lambda: is_breaker_open(controller))

    status, answer = await ask_json(controller, "POST", "/v1/chat/completions", {"messages": []})
    assert (status, answer["error"]["code"]) == (503, "backend_down")
    assert "5 times in 120 s" in answer["error"]["message"]
    assert (await controller.json("GET", "/status"))["state"] == "failed"

    restarted = await controller.json("POST", "/backend/restart")
    assert (restarted["outcome"], restarted["model"]) == ("switched", "demo-chat")
    assert (await controller.json("GET", "/status"))["recoveries"] == []


async def test_switch_that_may_not_cut_streams_is_given_up_at_the_deadline(
    start_controller: StartController,
) -> None:
    hasty = shipped("generation.yaml", drain_timeout_s=0.1)
    controller = await start_controller(files={"generation.yaml": hasty})
    await controller.switch_to("bench-chat")
    async with endless_stream(controller):
        status, answer = await ask_json(
            controller,
            "POST",
            "/switch-backend",
            {"model_name": "minilm", "drain_policy": "refuse"},
        )

        assert (status, answer["error"]["code"]) == (409, "drain_refused")
        assert answer["error"]["in_flight"] == 1
        assert (await controller.json("GET", "/status"))["loaded_model"] == "bench-chat"


async def test_history_of_switches_outlives_the_controller(
    start_controller: StartController, tmp_path: Path
) -> None:
    first = await start_controller(data_dir=tmp_path / "kept")
    report = await first.switch_to("demo-chat")
    await first.stop()

    second = await start_controller(data_dir=tmp_path / "kept")

    kept = await second.json("GET", f"/switches/{report['switch_id']}")
    assert (kept["model"], kept["outcome"]) == ("demo-chat", "switched")


async def test_disk_that_takes_nothing_stops_no_switch_and_is_shown_until_it_does(
    start_controller: StartController, tmp_path: Path
) -> None:
    data_dir = tmp_path / "kept"
    controller = await start_controller(data_dir=data_dir)
    names = ("history.sqlite", "learned-needs.sqlite", "children.json")
    for name in names:
        (data_dir / name).unlink()
        (data_dir / name).mkdir()  # a file cannot be made there
    report = await controller.switch_to("demo-chat")
    await until(lambda: has_status(controller, "degraded"))
    kill(controller)
    await until(lambda: is_live_after(controller, report["epoch"]))

    impairments = (await controller.json("GET", "/status"))["impairments"]
    assert {sentence.partition(":")[0] for sentence in impairments} >= {"history", "children.json"}

    for name in names:
        (data_dir / name).rmdir()
    await until(lambda: has_status(controller, "healthy"))
    await controller.stop()
    again = await start_controller(data_dir=data_dir)
    kept = await again.json("GET", f"/switches/{report['switch_id']}")
    assert (kept["model"], kept["outcome"]) == ("demo-chat", "switched")


async def has_status(controller: RunningController, status: str) -> bool:
    answer = await controller.json("GET", "/management/health")
    return bool(answer["status"] == status)


def kill(controller: RunningController) -> None:
    os.kill(backend_of(controller).process.pid, signal.SIGKILL)


async def has_ended(backend: Backend) -> bool:
    return not backend.process.is_running


def hasten_retry(controller: RunningController) -> None:
    """End the pause before the restart, which grows with each death."""
    arbiter: Any = controller.parts.arbiter
    (recovery,) = arbiter.snapshot.recoveries
    arbiter.post(TimePassed(at=max(arbiter._clock(), recovery.retry_at)))


async def is_in_flight(controller: RunningController) -> bool:
    """Asked without HTTP, which may take longer on a busy machine than the request itself."""
    return any(backend.in_flight for backend in controller.parts.arbiter.snapshot.backends)


async def is_recovering(controller: RunningController, epoch: int) -> bool:
    snapshot = controller.parts.arbiter.snapshot
    return bool(snapshot.recoveries) and snapshot.backend(epoch) is None


async def is_live_after(controller: RunningController, epoch: int) -> bool:
    return any(b.epoch > epoch for b in controller.parts.arbiter.snapshot.ready_backends())


async def is_breaker_open(controller: RunningController) -> bool:
    return any(r.is_open for r in controller.parts.arbiter.snapshot.recoveries)
