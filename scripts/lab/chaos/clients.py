"""Clients of models: ordinary ones, some that leave, read slowly or send what cannot be read."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lab.chaos.controller import Controller
from lab.chaos.exchange import PATIENT, Answer, Exchanger, Request, Temper
from lab.chaos.known import PROMPTS, TEXTS, Known, chat_content
from lab.chaos.layout import CORRUPT, DEFAULT_MODEL, SWAPPED
from lab.chaos.setting import (
    BODY_LIMIT_BYTES,
    EMBEDDING_MODEL,
    GENERATION_MODELS,
    MODELS,
    Setting,
)

INFERENCE_REFUSALS = frozenset(
    {
        "switch_failed",
        "hold_timeout",
        "hold_queue_full",
        "backend_down",
        "shutting_down",
    }
)
"""What a request that computes may be told in a storm. That another model is live is no reason."""

BROKEN_BODY_REFUSALS = INFERENCE_REFUSALS | {"no_model_loaded", "model_type_mismatch"}
"""How a request is refused that names no model, or one that is not for the path."""

NON_READERS = 6
"""More than a model has slots: others must be served nevertheless."""

_LONG_TOKENS = 160
_REFUSED_PAUSE_S = 0.15
_CHAT_PATH = "/v1/chat/completions"
_BROKEN_STATUSES = frozenset({400, 404, 500, 501})
_PRIORITIES = (None, None, "interactive", "batch")
_CHANGING = (*CORRUPT, SWAPPED)
_SETBACKS = INFERENCE_REFUSALS | {"target_cannot_start", "backend_died", "backend_start_timeout"}
"""What a request may be told whose model cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a client does, and how long it rests afterwards."""

    request: Request
    temper: Temper
    pause_s: float


Steps = Iterator[Step]


def chat(
    known: Known,
    model: str | None,
    prompt: str,
    kind: str,
    *,
    priority: str | None = None,
    **more: Any,
) -> Request:
    """Build a chat whose answer is held against what is known; without a model: the default's."""

    def find_fault(answer: Answer) -> str | None:
        if answer.status != 200:
            return _fault_of_refusal(answer)
        return known.chat_fault(model or DEFAULT_MODEL, prompt, answer)

    return Request(
        kind=kind,
        path=_CHAT_PATH,
        model=model,
        body=json.dumps(chat_content(prompt, model=model, **more)).encode(),
        headers=_headers(priority),
        may_refuse=INFERENCE_REFUSALS,
        find_fault=find_fault,
    )


def _headers(priority: str | None) -> dict[str, str]:
    return {} if priority is None else {"X-Priority": priority}


def embedding(known: Known, text: str, priority: str | None = None) -> Request:
    """Build an embedding whose vector is held against what is known."""
    return Request(
        kind="embedding",
        path="/v1/embeddings",
        model=EMBEDDING_MODEL,
        body=json.dumps({"model": EMBEDDING_MODEL, "input": text}).encode(),
        headers=_headers(priority),
        may_refuse=INFERENCE_REFUSALS,
        find_fault=partial(known.vector_fault, text),
    )


def slow_stream(known: Known, model: str, prompt: str) -> Request:
    """Build a long stream of fat events, so that a slow reader fills every buffer on the way."""
    more: dict[str, Any] = {"logprobs": True, "top_logprobs": 20}
    more |= {"stream": True, "tokens": _LONG_TOKENS}
    return chat(known, model, prompt, "slow reader", **more)


def chats(
    known: Known, model: str | None, choices: random.Random, *, is_stream: bool = False
) -> Steps:
    """Chat with one model (None: with the default one), for ever."""
    kind = "stream" if is_stream else "chat"
    more = {"stream": True} if is_stream else {}
    while True:
        prompt, priority = choices.choice(PROMPTS), choices.choice(_PRIORITIES)
        request = chat(known, model, prompt, kind, priority=priority, **more)
        yield Step(request=request, temper=PATIENT, pause_s=choices.uniform(0, 0.1))


def embeddings(known: Known, choices: random.Random) -> Steps:
    """Embed texts, for ever."""
    while True:
        request = embedding(known, choices.choice(TEXTS), choices.choice(_PRIORITIES))
        yield Step(request=request, temper=PATIENT, pause_s=choices.uniform(0, 0.05))


def queue_leavers(known: Known, choices: random.Random) -> Steps:
    """Ask for one model or another, and often leave before its turn has come."""
    while True:
        text, prompt = choices.choice(TEXTS), choices.choice(PROMPTS)
        model, priority = choices.choice(MODELS), choices.choice(_PRIORITIES)
        request = (
            embedding(known, text, priority)
            if model == EMBEDDING_MODEL
            else chat(known, model, prompt, "queue leaver", priority=priority)
        )
        temper = Temper(leave_after_s=choices.uniform(0.05, 3.0))
        request = replace(request, kind="queue leaver")
        yield Step(request=request, temper=temper, pause_s=choices.uniform(0, 0.3))


def changing_models(known: Known, choices: random.Random) -> Steps:
    """Ask for models whose files are cut short; only one of them is whole now and then."""
    while True:
        model, prompt = choices.choice(_CHANGING), choices.choice(PROMPTS)
        request = replace(chat(known, model, prompt, "changing model"), may_refuse=_SETBACKS)
        yield Step(request=request, temper=PATIENT, pause_s=choices.uniform(0.3, 1.5))


def leavers(known: Known, choices: random.Random) -> Steps:
    """Leave: before the head, or in the stream, or in the middle of the own body."""
    while True:
        model, prompt = choices.choice(GENERATION_MODELS), choices.choice(PROMPTS)
        after_s, events = choices.uniform(0.001, 0.4), choices.randint(1, 12)
        temper = choices.choice(
            (
                Temper(leave_after_s=after_s),
                Temper(leave_after_events=events),
                Temper(leave_after_s=after_s, sends_half=True),
            )
        )
        request = chat(known, model, prompt, "leaver", stream=True, tokens=_LONG_TOKENS)
        yield Step(request=request, temper=temper, pause_s=choices.uniform(0, 0.2))


def slow_readers(known: Known, choices: random.Random) -> Steps:
    """Read long streams slowly."""
    while True:
        model, prompt = choices.choice(GENERATION_MODELS), choices.choice(PROMPTS)
        temper = Temper(pause_per_event_s=choices.uniform(0.005, 0.05))
        request = slow_stream(known, model, prompt)
        yield Step(request=request, temper=temper, pause_s=choices.uniform(0, 0.3))


def non_readers(known: Known, choices: random.Random) -> Steps:
    """Ask for long streams, read nothing of them, and leave much later."""
    while True:
        model, prompt = choices.choice(GENERATION_MODELS), choices.choice(PROMPTS)
        temper = Temper(leave_after_s=choices.uniform(0.5, 3.0), reads_nothing=True)
        request = replace(slow_stream(known, model, prompt), kind="non-reader")
        yield Step(request=request, temper=temper, pause_s=choices.uniform(0, 0.3))


def half_closers(known: Known, choices: random.Random) -> Steps:
    """Send a request and close the own side of the connection; the answer must come."""
    while True:
        model, prompt = choices.choice(GENERATION_MODELS), choices.choice(PROMPTS)
        request = chat(known, model, prompt, "half-closer")
        pause_s = choices.uniform(0, 0.2)
        yield Step(request=request, temper=Temper(half_closes=True), pause_s=pause_s)


def uploaders(choices: random.Random) -> Steps:
    """Upload bodies of exactly the largest size that is taken, and of one byte more."""
    while True:
        model, excess = choices.choice(GENERATION_MODELS), choices.choice((0, 0, 1))
        start, end = b'{"model":"%s","content":"a","pad":"' % model.encode(), b'"}'
        pad = b"x" * (BODY_LIMIT_BYTES + excess - len(start) - len(end))
        request = Request(
            kind="upload",
            path="/tokenize",
            model=model,
            body=start + pad + end,
            right_statuses=frozenset({413 if excess else 200}),
            may_refuse=INFERENCE_REFUSALS,
            find_fault=lambda answer: None if answer.content else "an empty answer",
        )
        yield Step(request=request, temper=PATIENT, pause_s=choices.uniform(0.2, 1.0))


def broken_bodies(choices: random.Random) -> Steps:
    """Send what cannot be understood; it must be refused by us or by the live server."""
    bodies: tuple[tuple[bytes, str], ...] = (
        (b'{"messages": [{"role": "user", "con', ""),
        (b'{"messages": 7, "model": "demo-chat"}', ""),
        (b"\xff\xfe\x00 no text", ""),
        (b"", ""),
        (b'{"model": "nobody-knows-it", "messages": []}', "model_not_found"),
        (b'{"model": {"name": "demo-chat"}, "messages": "x"}', ""),
        (b"[" * 5000, ""),
    )
    while True:
        body, code = choices.choice(bodies)
        path = choices.choice((_CHAT_PATH, "/v1/embeddings", "/tokenize"))
        statuses = frozenset({404}) if code else _BROKEN_STATUSES
        yield Step(
            request=Request(
                kind="broken body",
                path=path,
                body=body,
                right_statuses=statuses | ({422} if path == "/tokenize" else set()),  # in no form
                may_refuse=BROKEN_BODY_REFUSALS,
                find_fault=_fault_of_refusal,
            ),
            temper=PATIENT,
            pause_s=choices.uniform(0.1, 0.4),
        )


def _fault_of_refusal(answer: Answer) -> str | None:
    """The controller may fail on no body, however broken."""
    error = answer.content.get("error") if isinstance(answer.content, dict) else None
    failed = "the controller failed"  # in whichever form it says so
    return failed if failed in str(error) else None


def readers_of_state(choices: random.Random) -> Steps:
    """Read what operators and probes read; it must always be there."""
    while True:
        path = choices.choice(
            ("/status", "/switches", "/v1/models", "/health", "/ready", "/management/health")
        )
        may_refuse = frozenset({"shutting_down"}) if path == "/ready" else frozenset[str]()
        may_be_unwell = path in {"/ready", "/management/health"}
        statuses = frozenset({200, 503}) if may_be_unwell else frozenset({200})
        yield Step(
            request=Request(
                kind="state",
                path=path,
                method="GET",
                right_statuses=statuses,
                may_refuse=may_refuse,
            ),
            temper=PATIENT,
            pause_s=choices.uniform(0.1, 0.5),
        )


def crowd(known: Known, setting: Setting) -> dict[str, Steps]:
    """Return every client of a run by its name, which is the seed of its choices."""
    choose = setting.choices
    crowd: dict[str, Steps] = {}
    for model in GENERATION_MODELS:
        for name, is_stream in (("chat", False), ("stream", True)):
            actor = f"{model} {name}"
            crowd[actor] = chats(known, model, choose(actor), is_stream=is_stream)
    crowd["nameless"] = chats(known, None, choose("nameless"))
    for number in (1, 2):
        actor = f"embedding {number}"
        crowd[actor] = embeddings(known, choose(actor))
    crowd["leaver"] = leavers(known, choose("leaver"))
    crowd["queue leaver"] = queue_leavers(known, choose("queue leaver"))
    crowd["changing model"] = changing_models(known, choose("changing model"))
    crowd["slow reader"] = slow_readers(known, choose("slow reader"))
    if "non-readers" in setting.faults:
        for number in range(NON_READERS):
            crowd[f"non-reader {number}"] = non_readers(known, choose(f"non-reader {number}"))
    if "half-close" in setting.faults:
        crowd["half-closer"] = half_closers(known, choose("half-closer"))
    if "uploads" in setting.faults:
        crowd["uploader"] = uploaders(choose("uploader"))
    crowd["broken body"] = broken_bodies(choose("broken body"))
    crowd["state"] = readers_of_state(choose("state"))
    return crowd


async def play(
    steps: Steps, exchanger: Exchanger, controller: Controller, is_over: Callable[[], bool]
) -> None:
    """Let a client do its steps one after the other until the storm is over."""
    for step in steps:
        await controller.is_up.wait()
        if is_over():
            return
        entry, _ = await exchanger.exchange(step.request, step.temper)
        was_served = entry.seen.status == 200
        await asyncio.sleep(step.pause_s + (0 if was_served else _REFUSED_PAUSE_S))
