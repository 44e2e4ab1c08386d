"""Right answers, known from a direct run of each model before the storm."""

import asyncio
import contextlib
import json
import math
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import aiohttp

from chaos_runner.exchange import Answer
from chaos_runner.layout import SWAPPED, SWAPPED_FOR
from chaos_runner.processes import die_with_runner
from chaos_runner.setting import EMBEDDING_MODEL, GENERATION_MODELS, ChaosError, Setting

PROMPTS = (
    "Tell me of memory.",
    "What is a supervisor?",
    "Hello, who are you?",
    "How long does a switch take, and why?",
    "Write a few words about the weather and the sea.",
)
TEXTS = (
    "The cat sat on the mat.",
    "Graphics memory is proven free before the next start.",
    "Rain is expected in the north, with wind from the west.",
    "a",
    "Ten thousand requests wait for one switch, and none of them fails or is answered twice.",
)
TOKENS = 16
"""Tokens of an ordinary answer."""

LARGEST_DIFFERENCE = 2e-3
"""By which a component of a unit vector may differ between batches of another composition."""

COMPARED = 24
"""Characters of an answer that are compared. Near ties may be decided otherwise beside others in a
batch, and what follows is then another text: the fewer tokens, the rarer that is."""

SHORTEST_PREFIX = 12
"""Characters of an answer that must be the same in every direct run, or it proves nothing."""

_READY_WITHIN_S = 30.0
_REPEATS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """`texts`: by model and prompt the beginning that every answer has; `vectors`: by text."""

    texts: Mapping[str, Mapping[str, str]]
    vectors: Mapping[str, Sequence[float]]

    def chat_fault(self, model: str | None, prompt: str, answer: Answer) -> str | None:
        """Say what is wrong with a chat answer, or with the part of it that came.

        `model` None: any generation model may have answered, but the one that it names.
        """
        content = answer.content
        text = content.get("text")
        if text is None:
            text = content["choices"][0]["message"]["content"]
        named = served_by(content)
        if model is not None and named != model:
            return f"asked for {model}, answered by {named}"
        right = self.texts.get(named, {}).get(prompt)
        if right is None:
            return f"answered by {named}, which is no model for this"
        size = min(len(right), len(text))
        if text[:size] != right[:size]:
            return f"{named} said {text[:60]!r} and not {right[:60]!r}"
        return None

    def vector_fault(self, text: str, answer: Answer) -> str | None:
        """Say what is wrong with an embedding."""
        named = served_by(answer.content)
        if named != EMBEDDING_MODEL:
            return f"asked for {EMBEDDING_MODEL}, answered by {named}"
        return vector_difference(self.vectors[text], answer.content["data"][0]["embedding"])


def served_by(content: Any) -> str:
    """Return the model that an answer names: by its name, or by its file, as llama-server may."""
    return str(content.get("model")).rpartition("/")[2].removesuffix(".gguf")


def vector_difference(right: Sequence[float], vector: Sequence[float]) -> str | None:
    """Say in what a vector differs from the right one; None when it is the same but for noise."""
    if len(vector) != len(right):
        return f"{len(vector)} dimensions and not {len(right)}"
    largest = max(abs(a - b) for a, b in zip(right, vector, strict=True))
    if not largest <= LARGEST_DIFFERENCE:  # also when it is not a number
        return f"the vector differs by {largest:.4f}"
    return None


def chat_body(prompt: str, *, model: str | None, tokens: int = TOKENS, **more: Any) -> bytes:
    """Write the body of a chat at temperature 0."""
    content = {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        **({"model": model} if model else {}),
        **more,
    }
    return json.dumps(content).encode()


async def learn(setting: Setting) -> Known:
    """Ask each model's bare server, one after the other. Raises ChaosError where it cannot."""
    texts = {}
    for model in GENERATION_MODELS:
        async with _bare_server(setting, model) as ask:
            texts[model] = {prompt: await _learn_text(ask, prompt) for prompt in PROMPTS}
    for prompt in PROMPTS:
        beginnings = {texts[model][prompt][:SHORTEST_PREFIX] for model in GENERATION_MODELS}
        if len(beginnings) < len(GENERATION_MODELS) or min(map(len, beginnings)) < SHORTEST_PREFIX:
            raise ChaosError(f"the answers to {prompt!r} do not tell the models apart: {texts}")
    vectors = {}
    async with _bare_server(setting, EMBEDDING_MODEL, "--embeddings") as ask:
        for text in TEXTS:
            answer = await ask("/v1/embeddings", json.dumps({"input": text}).encode())
            vectors[text] = answer["data"][0]["embedding"]
    if not all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-3) for vector in vectors.values()):
        raise ChaosError("the embedding model does not give unit vectors")
    return Known(texts={**texts, SWAPPED: texts[SWAPPED_FOR]}, vectors=vectors)


async def _learn_text(ask: Any, prompt: str) -> str:
    """Return what every answer begins with, alone and beside others in one batch.

    Sums are added in another order there, so that near ties may be decided otherwise.
    """
    answers = [await ask("/v1/chat/completions", chat_body(prompt, model=None))]
    for _ in range(_REPEATS):
        several = [
            ask("/v1/chat/completions", chat_body(other, model=None))
            for other in (prompt, *PROMPTS[:3])
        ]
        answers.append((await asyncio.gather(*several))[0])
    contents = [str(a["choices"][0]["message"]["content"]) for a in answers]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*contents, strict=False))
    return "".join(letters[0] for letters in same)[:COMPARED]


@asynccontextmanager
async def _bare_server(setting: Setting, model: str, *flags: str) -> AsyncIterator[Any]:
    """Run a model's server without a controller; gives a function that asks it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        [
            *(setting.llama_server, "--model", setting.models / f"{model}.gguf", "--alias", model),
            *(
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "-np",
                "4",
                "-c",
                "4096",
                "-t",
                "1",
                *flags,
            ),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")},
        preexec_fn=die_with_runner,  # noqa: PLW1509 - one system call only
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:

            async def ask(path: str, body: bytes) -> Any:
                async with client.post(path, data=body) as answer:
                    return await answer.json()

            await _wait_until_ready(client, process, model)
            yield ask
    finally:
        process.kill()
        process.wait()


async def _wait_until_ready(
    client: aiohttp.ClientSession, process: subprocess.Popen[bytes], model: str
) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with client.get("/health") as answer:
                if answer.status == 200:
                    return
        await asyncio.sleep(0.02)
    raise ChaosError(f"the bare server of {model} did not become ready")
