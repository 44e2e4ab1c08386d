"""Saves the prompts of a server's slots to files, and restores them, over HTTP.

A save waits until the slot is idle, and a server that is wedged never answers: both are bounded in
time. Nothing here fails a stop or a start; what went wrong is given as the reason.

Source of the routes and their answers: tools/server/server-context.cpp of llama.cpp.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from pathlib import Path
from typing import Any

from supervisor.core.machine.saving import MIN_TIME_S, time_for_prompts_s
from supervisor.engine.prompts.prompt_cache import PromptFiles, SavedSlot, slot_file_name
from supervisor.errors import BackendUnreachable, EngineError

_OTHER_FORM = (ValueError, LookupError, TypeError, AttributeError)
_FAILURES = (EngineError, BackendUnreachable, OSError, *_OTHER_FORM)  # OSError: TimeoutError, too


NOTHING_TO_SAVE = "no slot holds a prompt"
"""The reason where nothing was saved, and nothing is lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPrompts:
    """What was saved or restored, how long it took, and why it was not all, where it was not."""

    slots: tuple[SavedSlot, ...] = ()
    took_s: float = 0.0
    reason: str | None = None

    @property
    def has_failed(self) -> bool:
        """Whether something that was there could not be kept."""
        return self.reason not in {None, NOTHING_TO_SAVE}

    @property
    def tokens(self) -> int:
        """Tokens that need not be computed again."""
        return sum(slot.tokens for slot in self.slots)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(slot.size_bytes for slot in self.slots)


Ask = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""Sends a method, a path and JSON to the server; gives the answer's status and body.

Raises BackendUnreachable.
"""


class SlotClient:
    """The slots of one server.

    Every method raises EngineError when the server refuses, BackendUnreachable when it cannot be
    reached, and any of `_OTHER_FORM` when its answer is not what llama-server answers. `path` is
    where it lists them, such as `/slots`.
    """

    def __init__(self, ask: Ask, path: str) -> None:
        self._ask_server = ask
        self._path = path

    async def list(self) -> list[dict[str, Any]]:
        """Return the slots as the server lists them: `id`, `n_ctx`, and once used its tokens."""
        listed: list[dict[str, Any]] = await self._ask("GET", self._path, b"")
        return listed

    async def save(self, slot: int) -> int:
        """Save a slot to its file, and return how many tokens it held."""
        return int((await self._act(slot, "save"))["n_saved"])

    async def restore(self, slot: int) -> int:
        """Restore a slot from its file, and return how many tokens it holds."""
        return int((await self._act(slot, "restore"))["n_restored"])

    async def erase(self, slot: int) -> None:
        """Empty a slot."""
        await self._act(slot, "erase")

    async def _act(self, slot: int, action: str) -> dict[str, Any]:
        path = f"{self._path}/{slot}?action={action}"
        body = json.dumps({"filename": slot_file_name(slot)}).encode()
        answer: dict[str, Any] = await self._ask("POST", path, body)
        return answer

    async def _ask(self, method: str, path: str, body: bytes) -> Any:
        status, content = await self._ask_server(method, path, body)
        said = json.loads(content)
        if status != HTTPStatus.OK:
            raise EngineError(f"it answered {status}: {_message(said)}")
        return said


async def save_prompts(
    slots: SlotClient,
    files: PromptFiles,
    restored: KeptPrompts | None,
    *,
    min_time_s: float = MIN_TIME_S,
) -> KeptPrompts:
    """Save every slot that holds a prompt, in `min_time_s` and what their bytes take.

    `restored`: what slots that nobody used since hold.
    """
    clock = asyncio.get_running_loop().time
    begun_at = clock()
    saved: list[SavedSlot] = []
    reason: str | None = None
    has_begun = False
    try:
        async with asyncio.timeout(min_time_s) as bound:
            used = _used_slots(await slots.list(), restored)
            expected_bytes = sum(int(files.slot_kv_bytes * fraction) for fraction in used.values())
            bound.reschedule(begun_at + time_for_prompts_s(expected_bytes, min_time_s))
            reason = NOTHING_TO_SAVE
            if used:
                has_begun = True  # what a thread began goes on when the time is over
                reason = await asyncio.to_thread(files.begin, expected_bytes)
                has_begun = reason is None
            if has_begun:
                reason = await _save_each(slots, files.path, tuple(used), saved)
    except _FAILURES as error:
        reason = _words(error)
    finally:
        if has_begun:
            dropped = await _finish(files, tuple(saved))
            saved, reason = ([], dropped) if dropped else (saved, reason)
    took_s = clock() - begun_at
    return KeptPrompts(slots=tuple(saved), took_s=took_s, reason=reason)


async def _save_each(
    slots: SlotClient, folder: Path, used: tuple[int, ...], saved: list[SavedSlot]
) -> str | None:
    """Save slot after slot, and note those that are whole. Returns why one of them is not."""
    reason = None
    for slot in used:
        try:
            tokens = await slots.save(slot)
        except EngineError as error:  # this one only: the next may be sound
            reason = f"slot {slot}: {error}"
            continue
        size_bytes = (folder / slot_file_name(slot)).stat().st_size
        if tokens:
            saved.append(SavedSlot(slot=slot, tokens=tokens, size_bytes=size_bytes))
    return reason


async def restore_prompts(
    slots: SlotClient,
    files: PromptFiles,
    *,
    is_stopping: Callable[[], bool] = lambda: False,
    within_s: float = inf,
    min_time_s: float = MIN_TIME_S,
) -> KeptPrompts | None:
    """Restore every slot that was saved, in the same time; None where there is nothing.

    It takes no more than `within_s`, so that a start is not late over it. A slot that cannot be
    restored is empty, and its file removed: what its server may have died of is not tried again.
    Where it is broken off because we stop the server (`is_stopping`), all others are kept.
    """
    if within_s <= 0:
        return KeptPrompts(took_s=0.0, reason="the start took all of its time; they are kept")
    clock = asyncio.get_running_loop().time
    begun_at = clock()
    try:
        kept = await asyncio.to_thread(files.take)
    except OSError as error:
        return KeptPrompts(took_s=clock() - begun_at, reason=_words(error))
    if not kept:
        return None
    untried, restored = list(kept), list[SavedSlot]()
    reason: str | None = None
    try:
        time_s = time_for_prompts_s(sum(slot.size_bytes for slot in kept), min_time_s)
        async with asyncio.timeout_at(begun_at + min(time_s, within_s)):
            for saved in kept:
                problem = await _restore_one(slots, saved)
                untried.remove(saved)
                reason = problem or reason
                restored += [] if problem else [saved]
    except _FAILURES as error:
        reason = _words(error)
    finally:
        whole = (*restored, *untried) if is_stopping() else tuple(restored)
        reason = await _finish(files, whole) or reason
    took_s = clock() - begun_at
    return KeptPrompts(slots=tuple(restored), took_s=took_s, reason=reason)


async def _restore_one(slots: SlotClient, saved: SavedSlot) -> str | None:
    """Restore a slot; return why it is empty instead. The server empties one that it refuses."""
    try:
        tokens = await slots.restore(saved.slot)
    except EngineError as error:
        return f"slot {saved.slot}: {error}"
    if tokens == saved.tokens:
        return None
    await slots.erase(saved.slot)
    return f"slot {saved.slot}: {tokens} of {saved.tokens} tokens were restored"


def _used_slots(listed: list[dict[str, Any]], restored: KeptPrompts | None) -> Mapping[int, float]:
    """Return the slots that may hold a prompt, and which share of their context it fills.

    A slot names a task once it has had one; only newer builds say how many tokens it holds.
    """
    kept = {saved.slot: saved.tokens for saved in restored.slots} if restored else {}
    used: dict[int, float] = {}
    for slot in listed:
        number, context = int(slot["id"]), max(1, int(slot.get("n_ctx", 1)))
        tokens = slot.get("n_prompt_tokens", context) if "id_task" in slot else kept.get(number, 0)
        if tokens:
            used[number] = min(1.0, int(tokens) / context)
    return used


async def _finish(files: PromptFiles, slots: tuple[SavedSlot, ...]) -> str | None:
    """List what is whole, in a thread that ends its work even where we are cancelled.

    Files of gigabytes are removed, which takes a disk seconds. Returns why nothing was kept.
    """

    def finish() -> str | None:
        try:
            return files.finish(slots)
        except OSError as error:
            return _words(error)

    return await asyncio.shield(asyncio.to_thread(finish))


def _message(said: Any) -> str:
    error = said.get("error") if isinstance(said, dict) else None
    return str(error.get("message") if isinstance(error, dict) else said)[:300]


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, _OTHER_FORM):
        return f"the server's answer cannot be read ({type(error).__name__}: {error})"
    return str(error) or type(error).__name__
