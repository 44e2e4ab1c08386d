"""Clients of documents: in the end the store has the last state of each, whole, each chunk once."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.chaos.controller import Controller
from lab.chaos.exchange import Exchanger, Request
from lab.chaos.ledger import Ledger
from lab.chaos.setting import BATCHES_BOUND_S, EMBEDDING_MODEL
from lab.harness.texts import short_texts

COLLECTION = "storm"
_DOCUMENTS = 5
"""So many documents are sent in, again and again in other states."""

_ENDS = frozenset({"completed", "failed", "expired", "cancelled"})
_MAY_REFUSE = frozenset({"shutting_down", "storage_full", "queue_unreachable", "store_failed"})
_GIVEN_UP = "document_not_embedded"
"""Why a document may fail: one of its parts met fault after fault."""

_PAUSE_S = 0.3
_PAGE = 256
_PARAGRAPHS = short_texts(200, min_words=20, max_words=60)


@dataclass(slots=True, kw_only=True)
class State:
    """A state of a document that was sent in. `job`: None where no answer told whether it was."""

    document: str
    text: str
    job: str | None = None
    is_stored: bool = False
    """Whether its job says that it was."""


def draw_text(choices: random.Random, number: int) -> str:
    """Write a state of a document, which no other state has a chunk in common with."""
    paragraphs = choices.choices(_PARAGRAPHS, k=choices.randint(1, 30))
    return "\n\n".join(f"State {number}, {at}: {text}" for at, text in enumerate(paragraphs))


class DocumentClient:
    """Sends documents in during the storm, and looks behind it at what is stored."""

    def __init__(self, exchanger: Exchanger, controller: Controller, ledger: Ledger) -> None:
        self._exchanger = exchanger
        self._controller = controller
        self._ledger = ledger
        self._states: list[State] = []

    async def play(self, choices: random.Random, is_over: Callable[[], bool]) -> None:
        """Send one state after the other until the storm is over."""
        number = 0
        while True:
            number += 1
            document = f"document-{choices.randrange(_DOCUMENTS)}"
            text = draw_text(choices, number)
            pause_s = choices.uniform(1.0, 4.0)
            await self._controller.is_up.wait()
            if is_over():
                return
            await self._send_in(State(document=document, text=text))
            await asyncio.sleep(pause_s)

    async def settle(self) -> dict[str, float]:
        """Wait for all documents to be done, and hold the store against them. Returns figures."""
        if not await self._until_all_are_done():
            what = f"not all are done, and none was for {BATCHES_BOUND_S:g} s behind the storm"
            self._ledger.violate("document", what)
        given_up = 0
        for state in self._states:
            if state.job is not None:
                given_up += await self._note_end(state, state.job)
        points = [point async for point in self._points()]
        for name in sorted({state.document for state in self._states}):
            states = [state for state in self._states if state.document == name]
            own = [point for point in points if point["document"] == name]
            for problem in problems_of(states, own):
                self._ledger.violate("document", f"{name}: {problem}")
        chunks = sum(point["kind"] == "chunk" for point in points)
        return {
            "documents": float(len(self._states)),
            "documents_given_up": float(given_up),
            "chunks_stored": float(chunks),
        }

    async def _send_in(self, state: State) -> None:
        body = {
            "id": state.document,
            "text": state.text,
            "collection": COLLECTION,
            "model": EMBEDDING_MODEL,
            "wait": False,
        }
        request = Request(
            kind="document",
            path="/documents",
            body=json.dumps(body).encode(),
            right_statuses=frozenset({200, 202}),
            may_refuse=_MAY_REFUSE,
        )
        entry, content = await self._exchanger.exchange(request)
        if entry.seen.code is not None:
            return  # it was refused
        state.job = content["job"] if content else None
        self._states.append(state)
        self._ledger.note(f"{state.document} was sent in: {state.job}")

    async def _until_all_are_done(self) -> bool:
        """Wait until no document is left to be worked on: also those whose answer was lost.

        Returns False where none is done for too long: how many there are, others decide.
        """
        seen, deadline = None, time.monotonic() + BATCHES_BOUND_S
        while time.monotonic() < deadline:
            status = await self._ask("/status")
            counts = None if status is None else status["jobs"]["counts"]
            if counts is not None:
                own = counts.get("document", {})
                if not set(own) - _ENDS:
                    return True
                if own != seen:
                    seen, deadline = own, time.monotonic() + BATCHES_BOUND_S
            await asyncio.sleep(_PAUSE_S)
        return False

    async def _note_end(self, state: State, job_id: str) -> bool:
        """Note what came of a state; returns whether it was given up."""
        job = await self._ask(f"/jobs/{job_id}")
        if job is None:
            self._ledger.violate("document", f"{job_id} of {state.document} is gone")
            return False
        outcome = job["outcome"]
        state.is_stored = job["state"] == "completed" and not outcome.get("superseded")
        is_given_up: bool = outcome.get("error", {}).get("code") == _GIVEN_UP
        if job["state"] != "completed" and not is_given_up:
            self._ledger.violate("document", f"{job_id} is {job['state']}: {job['reason']}")
        return is_given_up

    async def _points(self) -> AsyncIterator[Mapping[str, Any]]:
        start = ""
        while True:
            page = await self._ask(f"/collections/{COLLECTION}/points?limit={_PAGE}{start}")
            if page is None:
                return
            for point in page["points"]:
                yield point
            if page["next"] is None:
                return
            start = f"&start={page['next']}"

    async def _ask(self, path: str) -> Any:
        """Return what a path answers, or None where that is not 200."""
        request = Request(
            kind="state",
            path=path,
            method="GET",
            may_refuse=_MAY_REFUSE | {"collection_not_found", "job_not_found"},
        )
        entry, content = await self._exchanger.exchange(request)
        return content if entry.seen.status == 200 and entry.seen.code is None else None


def problems_of(states: Sequence[State], points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what is wrong with what is stored of a document, of which states were sent in so."""
    newest = max((i for i, state in enumerate(states) if state.is_stored), default=None)
    may_be = [
        state
        for place, state in enumerate(states)
        if place == newest or _may_have_come(place, state, newest)
    ]
    if not points:
        return [] if newest is None else [f"nothing is stored of {states[newest].job}"]
    owns = [point for point in points if point["kind"] == "document"]
    chunks = sorted(
        (point for point in points if point["kind"] == "chunk"),
        key=lambda point: point["payload"]["index"],
    )
    if len(owns) != 1 or len({point["generation"] for point in points}) != 1:
        return [f"{len(owns)} states of {len({p['generation'] for p in points})} are stored"]
    indexes = [point["payload"]["index"] for point in chunks]
    if indexes != list(range(owns[0]["payload"]["chunks"])):
        return [f"chunks {indexes} are stored of {owns[0]['payload']['chunks']}"]
    if not any(is_whole(state.text, [point["payload"] for point in chunks]) for state in may_be):
        jobs = ", ".join(str(state.job) for state in may_be)
        return [f"the chunks are not those of {jobs}: {chunks[0]['payload']['text'][:80]!r}"]
    return []


def _may_have_come(place: int, state: State, newest: int | None) -> bool:
    """Whether a state may be stored though nobody says so: the answer to it was lost."""
    return state.job is None and (newest is None or place > newest)


def is_whole(text: str, chunks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether chunks, in their order, are a text, with nothing but white space between them."""
    end = 0
    for chunk in chunks:
        if text[chunk["start"] : chunk["stop"]] != chunk["text"]:
            return False
        if text[end : chunk["start"]].strip():
            return False
        end = max(end, chunk["stop"])
    return not text[end:].strip()
