"""Servers that hang: found by what does not move, told, and replaced where that is wanted."""

import asyncio
import os
import signal
from typing import Any

import aiohttp
import pytest

from supervisor.engine.servers.backend import Backend
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, backend_of, busy_slots, endless_stream, shipped, until

TEXT = {"model": "minilm", "input": "a text whose server hangs"}
STALL_TIMEOUT_S = 0.8
PATIENT_S = 3.0  # a server that moves must not be taken for stalled on a busy machine
ENOUGH_LOOKS = 12  # of which eight take the time after which one that does not move is stalled


def files(*, restart_on_stall: bool, timeout_s: float = STALL_TIMEOUT_S) -> dict[str, Any]:
    """Let servers be taken for stalled soon."""
    profile = {
        "extends": "embedding",
        "mode": "embedding",
        "stall_timeout_s": timeout_s,
        "restart_on_stall": restart_on_stall,
        "stop_grace_s": 0.2,
    }
    catalogue = shipped("models.yaml", default_model=None)
    catalogue["models"]["minilm"]["profile"] = "impatient"
    chatty = {**profile, "extends": "generation", "mode": "generation"}
    catalogue["models"]["bench-chat"]["profile"] = "impatient-chat"
    return {
        "models.yaml": catalogue,
        "impatient.yaml": profile,
        "impatient-chat.yaml": chatty,
    }


async def stalled_s(controller: RunningController) -> float | None:
    (backend,) = (await controller.json("GET", "/status"))["backends"]
    seconds: float | None = backend["stalled_s"]
    return seconds


async def test_server_that_hangs_is_reported_until_it_moves_again(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files(restart_on_stall=False))
    await controller.switch_to("minilm")
    pid = backend_of(controller).process.pid
    os.kill(pid, signal.SIGSTOP)
    asking = asyncio.create_task(ask_json(controller, "POST", "/v1/embeddings", TEXT))

    async def is_stalled() -> bool:
        return await stalled_s(controller) is not None

    await until(is_stalled)
    assert (await stalled_s(controller) or 0) >= STALL_TIMEOUT_S
    os.kill(pid, signal.SIGCONT)

    assert (await asking)[0] == 200

    async def moves() -> bool:
        return await stalled_s(controller) is None

    await until(moves)
    assert backend_of(controller).process.pid == pid


async def test_server_that_hangs_is_replaced_and_its_request_served_by_the_next_one(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files(restart_on_stall=True, timeout_s=PATIENT_S))
    await controller.switch_to("minilm")
    pid = backend_of(controller).process.pid
    os.kill(pid, signal.SIGSTOP)

    status, answer = await ask_json(controller, "POST", "/v1/embeddings", TEXT)

    assert (status, len(answer["data"])) == (200, 1)
    assert backend_of(controller).process.pid != pid
    last_exit = (await controller.json("GET", "/status"))["last_exit"]
    assert (last_exit["signal"], last_exit["was_wanted"]) == (signal.SIGKILL, False)
    newest = (await controller.json("GET", "/switches"))["switches"][0]
    assert (newest["requested_by"], newest["outcome"]) == ("recovery", "switched")


async def test_long_answer_that_sends_no_byte_is_no_stall_while_its_slot_moves(
    start_controller: StartController, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = await start_controller(files=files(restart_on_stall=True, timeout_s=PATIENT_S))
    await controller.switch_to("bench-chat")
    pid = backend_of(controller).process.pid
    body = {"model": "bench-chat", "prompt": "on", "n_predict": 10**6, "ignore_eos": True}
    looks = count_looks(backend_of(controller), monkeypatch)

    asking = asyncio.create_task(ask_json(controller, "POST", "/completion", body))
    while len(looks) < ENOUGH_LOOKS:
        assert await stalled_s(controller) is None
        assert not asking.done()
        await asyncio.sleep(0.02)
    asking.cancel()

    status, _ = await ask_json(controller, "POST", "/completion", body | {"n_predict": 4})
    assert status == 200
    assert backend_of(controller).process.pid == pid


def count_looks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return what gets longer with each look at the server's slots."""
    ask_slots, looks = backend.ask_slots, list[None]()

    async def ask(patience_s: float) -> bytes | None:
        looks.append(None)
        return await ask_slots(patience_s)

    monkeypatch.setattr(backend, "ask_slots", ask)
    return looks


async def test_stream_that_hangs_ends_visibly_and_frees_the_way(
    start_controller: StartController,
) -> None:
    controller = await start_controller(files=files(restart_on_stall=True, timeout_s=PATIENT_S))
    await controller.switch_to("bench-chat")
    async with endless_stream(controller) as stream:
        assert await busy_slots(controller) == 1
        os.kill(backend_of(controller).process.pid, signal.SIGSTOP)
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.content.read()
