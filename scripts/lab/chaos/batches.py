"""Clients of batches: what they hand in must be done in the end, each line of it exactly once."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lab.chaos.controller import Controller
from lab.chaos.exchange import Answer, Exchanger, Request
from lab.chaos.known import PROMPTS, TEXTS, Known, chat_content
from lab.chaos.ledger import Ledger
from lab.chaos.setting import BATCHES_BOUND_S, EMBEDDING_MODEL, GENERATION_MODELS

FindFault = Callable[[Answer], str | None]

_ENDS = frozenset({"completed", "failed", "expired", "cancelled"})
_MAY_REFUSE = frozenset({"shutting_down", "storage_full", "queue_unreachable"})
_GIVEN_UP = frozenset({"attempts_exhausted"})
"""Why a line may stand in the error file of a batch that was done: it met fault after fault."""

_CANCELLED = _GIVEN_UP | {"batch_cancelled"}
_MARK = "chaos-form"
_PAUSE_S = 0.3
_CHAT, _EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"


@dataclass(slots=True, kw_only=True)
class Batch:
    """A batch that was taken. `lines`: how the answer to each is judged, by its `custom_id`."""

    id: str
    lines: Mapping[str, FindFault]
    was_cancelled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A batch to come."""

    endpoint: str
    content: bytes
    lines: Mapping[str, FindFault]
    cancels: bool
    pause_s: float


def draw_plan(choices: random.Random, known: Known, number: int) -> Plan:
    """Draw the lines of a batch."""
    is_chat = choices.random() < 0.4
    texts: dict[str, FindFault] = {}
    lines = []
    for position in range(choices.randint(2, 8) if is_chat else choices.randint(5, 60)):
        custom_id = f"{number}-{position}"
        model, prompt = choices.choice(GENERATION_MODELS), choices.choice(PROMPTS)
        text = choices.choice(TEXTS)
        if is_chat:
            body = chat_content(prompt, model=model)
            texts[custom_id] = partial(known.chat_fault, model, prompt)
        else:
            body = {"model": EMBEDDING_MODEL, "input": text}
            texts[custom_id] = partial(known.vector_fault, text)
        url = _CHAT if is_chat else _EMBEDDINGS
        lines.append({"custom_id": custom_id, "method": "POST", "url": url, "body": body})
    return Plan(
        endpoint=_CHAT if is_chat else _EMBEDDINGS,
        content="\n".join(json.dumps(line) for line in lines).encode(),
        lines=texts,
        cancels=choices.random() < 0.15,
        pause_s=choices.uniform(1.0, 4.0),
    )


class BatchClient:
    """Hands batches in during the storm, and judges what became of them behind it."""

    def __init__(
        self, exchanger: Exchanger, controller: Controller, ledger: Ledger, known: Known
    ) -> None:
        self._exchanger = exchanger
        self._controller = controller
        self._ledger = ledger
        self._known = known
        self._batches: list[Batch] = []
        self._unanswered: Counter[str] = Counter()

    async def play(self, choices: random.Random, is_over: Callable[[], bool]) -> None:
        """Hand one batch in after the other until the storm is over."""
        number = 0
        while True:
            number += 1
            plan = draw_plan(choices, self._known, number)
            await self._controller.is_up.wait()
            if is_over():
                return
            await self._hand_in(plan)
            await asyncio.sleep(plan.pause_s)

    async def settle(self) -> dict[str, float]:
        """Wait for all batches to end, and hold their files against what was asked.

        Returns figures.
        """
        deadline = time.monotonic() + BATCHES_BOUND_S
        for batch in self._batches:
            ended = await self._ended(batch, deadline)
            if ended is None:
                within = f"within {BATCHES_BOUND_S:g} s of the storm's end"
                status = await self._ask("GET", "/status")
                self._ledger.note(f"/status, as {batch.id} is not done: {json.dumps(status)}")
                self._ledger.violate("batch", f"{batch.id} was not done {within}")
            else:
                await self._judge(batch, ended)
        return {
            "batches": float(len(self._batches)),
            "lines": float(sum(len(batch.lines) for batch in self._batches)),
            **{f"lines_{code}": float(self._unanswered[code]) for code in sorted(_CANCELLED)},
        }

    async def _hand_in(self, plan: Plan) -> None:
        file = await self._ask("POST", "/v1/files", _form(plan.content), form=True)
        if file is None:
            return
        body = {
            "input_file_id": file["id"],
            "endpoint": plan.endpoint,
            "completion_window": "24h",
        }
        taken = await self._ask("POST", "/v1/batches", json.dumps(body).encode())
        if taken is None:
            return
        batch = Batch(id=taken["id"], lines=plan.lines)
        self._batches.append(batch)
        self._ledger.note(f"{batch.id} was taken: {len(plan.lines)} lines to {plan.endpoint}")
        if plan.cancels:
            batch.was_cancelled = True  # also where the answer to that is lost
            await self._ask("POST", f"/v1/batches/{batch.id}/cancel", also="job_not_cancellable")

    async def _ended(self, batch: Batch, deadline: float) -> Any:
        """Return a batch once it has ended; None where it does not in time."""
        while time.monotonic() < deadline:
            found = await self._ask("GET", f"/v1/batches/{batch.id}")
            if found is not None and found["status"] in _ENDS:
                return found
            await asyncio.sleep(_PAUSE_S)
        return None

    async def _judge(self, batch: Batch, ended: Any) -> None:
        written = [await self._lines_of(ended[f"{name}_file_id"]) for name in ("output", "error")]
        self._unanswered.update(code_of(line) for line in written[1])
        for problem in problems_of(batch, ended, *written):
            self._ledger.violate("batch", f"{batch.id}: {problem}")

    async def _lines_of(self, file_id: str | None) -> list[Any]:
        if file_id is None:
            return []
        content = await self._ask("GET", f"/v1/files/{file_id}/content", lines=True)
        return [] if content is None else list(content)

    async def _ask(  # noqa: PLR0913 - of how many kinds requests are
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        form: bool = False,
        lines: bool = False,
        also: str = "",
    ) -> Any:
        """Make an exchange; returns its JSON, or None where it was not answered with 200."""
        request = Request(
            kind="batch",
            path=path,
            method=method,
            body=body,
            headers={"Content-Type": f"multipart/form-data; boundary={_MARK}"} if form else {},
            is_lines=lines,
            may_refuse=_MAY_REFUSE | ({also} if also else set()),
        )
        entry, content = await self._exchanger.exchange(request)
        return content if entry.seen.status == 200 and entry.seen.code is None else None


def problems_of(
    batch: Batch, ended: Any, output: Sequence[Any], errors: Sequence[Any]
) -> list[str]:
    """Return what is wrong with the files of a batch that has ended."""
    if ended["status"] != "completed" and not batch.was_cancelled:
        return [f"it is {ended['status']}: {ended['errors']}"]
    found = Counter(line["custom_id"] for line in (*output, *errors))
    problems = [f"line {each} is there {n} times" for each, n in found.items() if n > 1]
    was_read = ended["status"] != "cancelled" or ended["request_counts"]["total"]
    if was_read:  # one that was cancelled at once has no lines yet
        problems += [f"line {each} is missing" for each in batch.lines if not found[each]]
    problems += [f"line {each} was never asked" for each in found if each not in batch.lines]
    may_fail = _CANCELLED if ended["status"] == "cancelled" else _GIVEN_UP
    problems += [
        f"line {line['custom_id']} failed: {json.dumps(line)[:300]}"
        for line in errors
        if code_of(line) not in may_fail
    ]
    for line in output:
        response = line["response"]
        answer = Answer(status=response["status_code"], content=response["body"])
        judge = batch.lines.get(line["custom_id"])
        if judge is not None and (fault := judge(answer)):
            problems.append(f"line {line['custom_id']}: {fault}")
    counts = ended["request_counts"]
    if counts["total"] and counts["completed"] != len(output):
        problems.append(f"{counts} are counted, and {len(output)} are in the output file")
    return problems


def code_of(line: Any) -> str:
    """Return why a line of an error file failed."""
    if line["error"]:
        return str(line["error"]["code"])
    body = line["response"]["body"]
    return str(body.get("error", {}).get("code")) if isinstance(body, dict) else "unknown"


def _form(content: bytes) -> bytes:
    """Write a form with a file (RFC 7578)."""
    disposition = 'Content-Disposition: form-data; name="{}"'
    purpose = f"--{_MARK}\r\n{disposition.format('purpose')}\r\n\r\nbatch\r\n"
    file = f'--{_MARK}\r\n{disposition.format("file")}; filename="in.jsonl"\r\n\r\n'
    return purpose.encode() + file.encode() + content + f"\r\n--{_MARK}--\r\n".encode()
