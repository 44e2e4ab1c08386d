"""Prompts saved before a stop and restored after a start, with the real engines."""

import asyncio
import errno
import json
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from aiohttp import web
from structlog.testing import capture_logs

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.core.byte_size import MIB
from supervisor.core.machine.values import Mode, Stop, Target
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.launcher import Launcher
from supervisor.engine.port import Address, Launch
from supervisor.engine.prompts.prompt_cache import (
    RESERVE_BYTES,
    PromptCache,
    PromptFiles,
    SavedSlot,
)
from supervisor.engine.prompts.prompt_slots import (
    KeptPrompts,
    SlotClient,
    restore_prompts,
    save_prompts,
)
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.channel import Channel
from supervisor.engine.servers.framing import Request
from supervisor.errors import UnfitProfile
from tests.conftest import ROOT
from tests.patience import PATIENCE_S

Start = Callable[..., Any]
Serve = Callable[[web.Application], Any]
Eventually = Callable[..., Awaitable[None]]

CHAT = Target(model="demo-chat", mode=Mode.GENERATION, profile="generation", device="host")
STORY = "Once upon a time there was a lighthouse keeper. " * 4
RECIPE = "Take two eggs, a spoon of flour and some milk. " * 4


@pytest.fixture
def cache(tmp_path: Path) -> PromptCache:
    """A folder for saved prompts, on a disk with room."""
    return PromptCache(
        tmp_path / "prompt-cache",
        max_bytes=64 * MIB,
        keeps_at_exit=False,
        free_bytes=lambda _: RESERVE_BYTES + 64 * MIB,
    )


@pytest.fixture
async def start(
    models_dir: Path,
    engines: Engines,
    run_dir: Path,
    cache: PromptCache,
    tmp_path: Path,
) -> AsyncIterator[Start]:
    """Starts demo-chat and returns it ready; keyword arguments override its profile."""
    backends: list[Backend] = []
    models = tmp_path / "models"
    models.mkdir()
    (models / "demo-chat.gguf").symlink_to(models_dir / "demo-chat.gguf")

    async def launch(**overrides: Any) -> Backend:
        folder = tmp_path / "profiles"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(ROOT / "profiles", folder)
        entry = {
            "path": "demo-chat.gguf",
            "overrides": {"ctx_size": 512, "parallel": 3, **overrides},
        }
        (folder / "models.yaml").write_text(yaml.safe_dump({"models": {"demo-chat": entry}}))
        launcher = Launcher(
            configuration=ConfigurationHolder(load(folder, models, {})),
            engines=engines,
            run_dir=run_dir,
            device_env=lambda _: {},
            prompt_cache=cache,
        )
        launcher.check(CHAT)
        backend = launcher.launch(CHAT, len(backends) + 1)
        backends.append(backend)
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        return backend

    yield launch
    for backend in backends:
        await backend.give_up_memory(Stop(grace_s=5))


async def say(backend: Backend, slot: int, prompt: str) -> tuple[str, int]:
    """Continue a prompt in a slot. Returns the words, and how many tokens were cached."""
    body = {"prompt": prompt, "id_slot": slot, "n_predict": 8, "temperature": 0}
    async with backend.exchange(completion(body)) as answer:
        told = json.loads(await answer.read())
        return told["content"], told["timings"]["cache_n"]


def completion(body: Any) -> Request:
    headers = ((b"Content-Type", b"application/json"),)
    content = json.dumps(body).encode()
    return Request(method="POST", path="/completion", headers=headers, body=content)


async def converse(backend: Backend) -> dict[int, str]:
    """Begin one conversation in the first slot and one in the last; the second stays unused."""
    texts = {0: STORY, 2: RECIPE}
    return {slot: text + (await say(backend, slot, text))[0] for slot, text in texts.items()}


def saved_by(backend: Backend) -> KeptPrompts:
    assert backend.prompts_saved is not None
    return backend.prompts_saved


async def test_each_conversation_goes_on_as_if_nothing_had_happened(start: Start) -> None:
    uninterrupted = await start()
    texts = await converse(uninterrupted)
    wanted = {slot: await say(uninterrupted, slot, text + " And") for slot, text in texts.items()}
    await uninterrupted.give_up_memory(Stop(grace_s=5))

    first = await start()
    assert first.prompts_restored is None
    assert await converse(first) == texts
    await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    second = await start()

    assert [slot.slot for slot in saved_by(first).slots] == [0, 2]
    assert second.prompts_restored == replace(
        saved_by(first), took_s=second.prompts_restored.took_s
    )
    found = {slot: await say(second, slot, text + " And") for slot, text in texts.items()}
    assert found == wanted
    assert all(cached > 40 for _, cached in found.values())


async def test_conversations_that_nobody_went_on_with_survive_the_next_switch_too(
    start: Start,
) -> None:
    first = await start()
    texts = await converse(first)
    await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    second = await start()
    await second.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    assert saved_by(second).slots == saved_by(first).slots
    third = await start()
    assert (await say(third, 2, texts[2] + " And"))[1] > 40


@pytest.mark.parametrize(
    "changed",
    [{"cache_type_k": "f16"}, {"ctx_size": 768}, {"extra_args": ["--sse-ping-interval", "3"]}],
)
async def test_other_settings_get_none_of_it_and_the_old_ones_get_it_back(
    start: Start, changed: dict[str, Any]
) -> None:
    first = await start()
    await converse(first)
    await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    other = await start(**changed)
    assert other.prompts_restored is None
    await other.give_up_memory(Stop(grace_s=5))
    assert (await start()).prompts_restored is not None


async def test_another_file_of_the_same_name_gets_none_of_it(
    start: Start, tmp_path: Path, models_dir: Path
) -> None:
    first = await start()
    await converse(first)
    await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    (tmp_path / "models" / "demo-chat.gguf").unlink()
    shutil.copy(models_dir / "demo-chat.gguf", tmp_path / "models")
    assert (await start()).prompts_restored is None


async def test_what_only_the_controller_heeds_changes_nothing(start: Start) -> None:
    first = await start()
    await converse(first)
    await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    assert (await start(drain_timeout_s=7)).prompts_restored is not None


async def test_a_stop_that_is_not_told_to_keep_keeps_nothing(start: Start) -> None:
    first = await start()
    await converse(first)
    await first.give_up_memory(Stop(grace_s=5))
    assert first.prompts_saved is None
    assert (await start()).prompts_restored is None


async def test_profile_that_does_not_ask_for_it_gets_no_folder(start: Start) -> None:
    backend = await start(keep_prompt_cache=False)
    assert backend.launch.prompt_files is None
    assert "--slot-save-path" not in backend.launch.argv
    await converse(backend)
    await backend.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    assert backend.prompts_saved is None


async def test_server_that_was_never_asked_leaves_nothing(start: Start) -> None:
    backend = await start()
    with capture_logs() as lines:
        await backend.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    (line,) = [line for line in lines if line["event"] == "prompts.saved"]
    assert line["log_level"] == "info"
    assert saved_by(backend).slots == ()
    assert not any(file.is_file() for file in backend.launch.prompt_files.path.iterdir())


async def test_damaged_file_empties_its_slot_and_fails_nothing(start: Start) -> None:
    first = await start()
    texts = await converse(first)
    await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    file = first.launch.prompt_files.path / "slot-0.bin"
    file.write_bytes(b"\0" * file.stat().st_size)

    second = await start()

    assert [slot.slot for slot in second.prompts_restored.slots] == [2]
    assert "slot 0" in second.prompts_restored.reason
    assert not file.exists()
    assert (await say(second, 0, texts[0] + " And"))[1] == 0
    assert (await say(second, 2, texts[2] + " And"))[1] > 40


async def test_request_that_is_cut_by_the_stop_leaves_its_prompt(start: Start) -> None:
    first = await start(ctx_size=4096)
    body = {"prompt": STORY, "id_slot": 1, "n_predict": 4000, "stream": True, "ignore_eos": True}
    async with first.exchange(completion(body)) as answer:
        await anext(answer)
        await first.give_up_memory(Stop(grace_s=5, keeps_prompts=True))
    assert [slot.slot for slot in saved_by(first).slots] == [1]
    second = await start(ctx_size=4096)
    assert (await say(second, 1, STORY))[1] > 40


@pytest.mark.parametrize("engine", ["llama-server"], indirect=True)
async def test_its_end_begins_once_the_prompts_are_saved(start: Start) -> None:
    backend = await start()
    await converse(backend)
    found: list[KeptPrompts | None] = []
    how = Stop(grace_s=5, keeps_prompts=True)
    await backend.give_up_memory(how, lambda: found.append(backend.prompts_saved))
    assert found == [saved_by(backend)]


@pytest.mark.parametrize("engine", ["llama-server"], indirect=True)
async def test_server_that_hangs_holds_the_stop_for_a_bounded_time_only(
    start: Start, cache: PromptCache
) -> None:
    backend = await start()
    await converse(backend)
    files = cache.files_for("hanging", slot_kv_bytes=0)
    psutil.Process(backend.process.pid).send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(PATIENCE_S):
            slots = SlotClient(backend._channel.ask, "/slots")
            kept = await save_prompts(slots, files, None, min_time_s=0.2)
    finally:
        os.kill(backend.process.pid, signal.SIGCONT)
    assert kept.slots == ()
    assert kept.reason == "the server did not answer in time"
    assert files.take() == ()


# A server that answers oddly


@pytest.fixture
async def serve(run_dir: Path) -> AsyncIterator[Serve]:
    """Serves an application on a socket; yields what opens its slots."""
    runners: list[web.AppRunner] = []
    address = Address(socket_path=run_dir / "odd.sock")
    channel = Channel(address, "Bearer key", 1)
    try:

        async def listen(application: web.Application) -> SlotClient:
            runner = web.AppRunner(application, handler_cancellation=True)
            runners.append(runner)
            await runner.setup()
            await web.UnixSite(runner, str(address.socket_path)).start()
            return SlotClient(channel.ask, "/slots")

        yield listen
    finally:
        channel.close()
        for runner in runners:
            await runner.cleanup()


class OddServer:
    """Three used slots of five tokens. `faults`: what it does instead, by action and slot."""

    def __init__(self, folder: Path, faults: dict[tuple[str, int], str]) -> None:
        self.folder = folder
        self.faults = faults
        self.asked: list[tuple[str, int]] = []
        self.application = web.Application()
        self.application.router.add_get("/slots", self.list)
        self.application.router.add_post("/slots/{slot}", self.act)

    async def list(self, _: web.Request) -> web.Response:
        return web.json_response([{"id": n, "n_ctx": 10, "id_task": 1} for n in range(3)])

    async def act(self, request: web.Request) -> web.Response:
        action, slot = request.query["action"], int(request.match_info["slot"])
        self.asked.append((action, slot))
        fault = self.faults.get((action, slot))
        if fault == "refuse":
            return web.json_response({"error": {"message": "no"}}, status=500)
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "die" and request.transport is not None:
            request.transport.abort()
        if action == "save":
            (self.folder / (await request.json())["filename"]).write_bytes(b"x" * 100)
        tokens = 0 if fault == "empty" else 5
        return web.json_response({"n_saved": tokens, "n_restored": tokens})


@pytest.fixture
def files(cache: PromptCache) -> PromptFiles:
    """Where the odd server saves."""
    return cache.files_for("odd", slot_kv_bytes=1000)


def left(files: PromptFiles) -> set[str]:
    return {path.name for path in files.path.iterdir()}


@pytest.mark.parametrize(
    ("fault", "kept", "reason"),
    [
        ("refuse", [0, 2], "slot 1: it answered 500: no"),
        ("empty", [0, 2], None),
        ("hang", [0], "the server did not answer in time"),
    ],
)
async def test_slot_that_cannot_be_saved_leaves_no_file_and_the_others_are_kept(
    serve: Serve, files: PromptFiles, fault: str, kept: list[int], reason: str | None
) -> None:
    server = OddServer(files.path, {("save", 1): fault})
    slots = await serve(server.application)
    saved = await save_prompts(slots, files, None, min_time_s=0.3)
    assert ([slot.slot for slot in saved.slots], saved.reason) == (kept, reason)
    assert left(files) == {"manifest.json", *(f"slot-{slot}.bin" for slot in kept)}
    assert [slot.slot for slot in files.take()] == kept


@pytest.mark.parametrize(
    ("fault", "kept", "reason"),
    [
        ("refuse", [0, 2], "slot 1: it answered 500: no"),
        ("empty", [0, 2], "slot 1: 0 of 5 tokens were restored"),
        ("hang", [0], "the server did not answer in time"),
    ],
)
async def test_slot_that_cannot_be_restored_is_not_tried_again(
    serve: Serve, files: PromptFiles, fault: str, kept: list[int], reason: str
) -> None:
    server = OddServer(files.path, {("restore", 1): fault})
    slots = await serve(server.application)
    await save_prompts(slots, files, None)
    restored = await restore_prompts(slots, files, min_time_s=0.3)
    assert restored is not None
    assert ([slot.slot for slot in restored.slots], restored.reason) == (kept, reason)
    assert (("erase", 1) in server.asked) is (fault == "empty")
    assert left(files) == {"manifest.json", *(f"slot-{slot}.bin" for slot in kept)}


@pytest.mark.parametrize("is_stopping", [True, False])
async def test_restoring_that_our_stop_breaks_off_keeps_all_and_a_death_what_was_restored(
    serve: Serve, files: PromptFiles, *, is_stopping: bool
) -> None:
    slots = await serve(OddServer(files.path, {("restore", 1): "die"}).application)
    saved = await save_prompts(slots, files, None)
    restored = await restore_prompts(slots, files, is_stopping=lambda: is_stopping)
    assert restored is not None
    assert [slot.slot for slot in restored.slots] == [0]
    assert files.take() == (saved.slots if is_stopping else saved.slots[:1])


async def test_restoring_that_is_cancelled_by_our_stop_keeps_all(
    serve: Serve, files: PromptFiles, eventually: Eventually
) -> None:
    server = OddServer(files.path, {("restore", 1): "hang"})
    slots = await serve(server.application)
    saved = await save_prompts(slots, files, None)
    restoring = asyncio.create_task(restore_prompts(slots, files, is_stopping=lambda: True))
    await eventually(lambda: ("restore", 1) in server.asked)
    restoring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert files.take() == saved.slots


async def test_server_that_is_stopped_while_it_restores_loses_nothing(
    make_launch: Callable[..., Launch],
    stub_server: Callable[..., tuple[str, ...]],
    files: PromptFiles,
    run_dir: Path,
    eventually: Eventually,
) -> None:
    kept = (SavedSlot(slot=0, tokens=5, size_bytes=3),)
    assert files.begin(3) is None
    (files.path / kept[0].file_name).write_bytes(b"old")
    assert files.finish(kept) is None
    address = Address(socket_path=run_dir / "stub.sock")
    argv = stub_server(str(address.socket_path), "200,hang")
    launch = make_launch(*argv, address=address, slots_path="/slots", saves_slots=True)
    said: list[str] = []
    backend = Backend(replace(launch, prompt_files=files), lambda line, _: said.append(line))
    readying = asyncio.create_task(backend.become_ready())
    try:
        await eventually(lambda: "answered hang" in said)
    finally:
        await backend.give_up_memory(Stop(grace_s=5))
    await eventually(lambda: backend.prompts_restored)
    readying.cancel()
    assert files.take() == kept


async def test_restoring_ends_in_time_for_the_start(serve: Serve, files: PromptFiles) -> None:
    server = OddServer(files.path, {("restore", 1): "hang"})
    slots = await serve(server.application)
    await save_prompts(slots, files, None)
    restored = await restore_prompts(slots, files, within_s=0.3)
    assert restored is not None
    assert [slot.slot for slot in restored.slots] == [0]


async def test_start_that_took_all_of_its_time_keeps_what_it_cannot_restore(
    serve: Serve, files: PromptFiles
) -> None:
    server = OddServer(files.path, {})
    slots = await serve(server.application)
    saved = await save_prompts(slots, files, None)
    restored = await restore_prompts(slots, files, within_s=0.0)
    assert restored is not None
    assert not restored.slots
    assert files.take() == saved.slots


class SlowDiskCache(PromptCache):
    """A folder whose disk takes its time to remove files, until `goes_on`."""

    goes_on = threading.Event()

    def finish(self, path: Path, slots: tuple[SavedSlot, ...]) -> str | None:
        assert self.goes_on.wait(PATIENCE_S)
        return super().finish(path, slots)


async def test_disk_that_removes_files_slowly_holds_nobody_else_up(
    serve: Serve, tmp_path: Path
) -> None:
    cache = SlowDiskCache(
        tmp_path / "slow", max_bytes=MIB, keeps_at_exit=True, free_bytes=lambda _: 2 * RESERVE_BYTES
    )
    files = cache.files_for("odd", slot_kv_bytes=1000)
    slots = await serve(OddServer(files.path, {}).application)
    saving = asyncio.create_task(save_prompts(slots, files, None))
    asyncio.get_running_loop().call_later(0.2, cache.goes_on.set)  # by a loop that runs on
    saved = await saving
    assert [slot.slot for slot in saved.slots] == [0, 1, 2]


class ReadOnlyCache(PromptCache):
    """A folder whose disk has been mounted read-only since."""

    def take(self, path: Path) -> tuple[SavedSlot, ...]:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))


async def test_disk_that_became_read_only_restores_nothing_and_fails_nothing(
    serve: Serve, tmp_path: Path
) -> None:
    cache = ReadOnlyCache(tmp_path / "read-only", max_bytes=MIB, keeps_at_exit=True)
    files = cache.files_for("odd", slot_kv_bytes=1000)
    server = OddServer(files.path, {})
    restored = await restore_prompts(await serve(server.application), files)
    assert restored is not None
    assert restored.slots == ()
    assert "Read-only file system" in str(restored.reason)
    assert restored.has_failed


@pytest.mark.parametrize("answer", [{}, [7], {"slots": [{"id": 0}]}, [{"id": "first"}], None])
async def test_server_that_lists_its_slots_in_another_form_keeps_nothing(
    serve: Serve, files: PromptFiles, answer: Any
) -> None:
    async def tell(_: web.Request) -> web.Response:
        return web.json_response(answer)

    application = web.Application()
    application.router.add_get("/slots", tell)
    saved = await save_prompts(await serve(application), files, None)
    assert saved.slots == ()
    assert saved.reason


async def test_disk_that_is_short_is_not_written_to(serve: Serve, tmp_path: Path) -> None:
    full = PromptCache(
        tmp_path / "full",
        max_bytes=64 * MIB,
        keeps_at_exit=False,
        free_bytes=lambda _: RESERVE_BYTES + 100,
    )
    files = full.files_for("odd", slot_kv_bytes=1000)
    server = OddServer(files.path, {})
    saved = await save_prompts(await serve(server.application), files, None)
    assert saved.slots == ()
    assert "is nearly full" in str(saved.reason)
    assert server.asked == []
    assert left(files) == set()


# Engines that cannot


@pytest.mark.parametrize("engine", ["llama-server"], indirect=True)
@pytest.mark.parametrize("name", ["llama-cpp-python", "command"])
async def test_engine_that_cannot_keep_prompts_says_so(
    resolved_with: Callable[..., Any], engines: Engines, name: str
) -> None:
    fields: dict[str, Any] = {"engine": name, "keep_prompt_cache": True}
    if name == "command":
        fields["command"] = {"argv": ["sleep", "{port}"]}
    with pytest.raises(UnfitProfile) as caught:
        engines.choose(name).check(resolved_with(**fields))
    assert "false" in caught.value.problems["keep_prompt_cache"]
