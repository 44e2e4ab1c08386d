"""Right answers, known from a direct run of each model before the storm."""

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lab.chaos.exchange import Answer
from lab.chaos.layout import SWAPPED, SWAPPED_FOR
from lab.chaos.setting import EMBEDDING_MODEL, GENERATION_MODELS, Setting
from lab.harness.command import LabError
from lab.harness.processes import die_with_runner
from lab.harness.servers import Endpoint, Server

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
            return f"answered by {named}, which is not a model for this"
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


def chat_content(
    prompt: str, *, model: str | None, tokens: int = TOKENS, **more: Any
) -> dict[str, Any]:
    """Return the body of a chat at temperature 0."""
    return {
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": tokens,
        **({"model": model} if model else {}),
        **more,
    }


def learn(setting: Setting) -> Known:
    """Ask each model's bare server, one after the other. Raises LabError where it cannot."""
    texts = {}
    for model in GENERATION_MODELS:
        with _bare_server(setting, model) as server:
            texts[model] = {prompt: _learn_text(server, prompt) for prompt in PROMPTS}
    for prompt in PROMPTS:
        beginnings = {texts[model][prompt][:SHORTEST_PREFIX] for model in GENERATION_MODELS}
        if len(beginnings) < len(GENERATION_MODELS) or min(map(len, beginnings)) < SHORTEST_PREFIX:
            raise LabError(f"the answers to {prompt!r} do not tell the models apart: {texts}")
    vectors = {}
    with _bare_server(setting, EMBEDDING_MODEL, "--embeddings") as server:
        for text in TEXTS:
            answer = server.call("POST", "/v1/embeddings", {"input": text})
            vectors[text] = answer["data"][0]["embedding"]
    if not all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-3) for vector in vectors.values()):
        raise LabError("the embedding model does not give unit vectors")
    return Known(texts={**texts, SWAPPED: texts[SWAPPED_FOR]}, vectors=vectors)


def _learn_text(server: Server, prompt: str) -> str:
    """Return what every answer begins with, alone and beside others in one batch.

    Sums are added in another order there, so that near ties may be decided otherwise.
    """

    def ask(prompt: str) -> str:
        answer = server.call("POST", "/v1/chat/completions", chat_content(prompt, model=None))
        return str(answer["choices"][0]["message"]["content"])

    batch = (prompt, *PROMPTS[:3])
    with ThreadPoolExecutor(len(batch)) as together:
        contents = [ask(prompt), *(next(together.map(ask, batch)) for _ in range(_REPEATS))]
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*contents, strict=False))
    return "".join(letters[0] for letters in same)[:COMPARED]


def _bare_server(setting: Setting, model: str, *flags: str) -> Server:
    """Start a model's server without a controller."""
    endpoint = Endpoint.on_free_port()
    file = setting.models / f"{model}.gguf"
    return Server(
        (
            *(str(setting.llama_server), "--model", str(file), "--alias", model),
            *(*endpoint.flags(), "-np", "4", "-c", "4096", "-t", "1", *flags),
        ),
        endpoint,
        setting.work_dir / "bare.log",
        {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_")},
        preexec_fn=die_with_runner,
    )
