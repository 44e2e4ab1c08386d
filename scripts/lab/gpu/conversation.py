"""A conversation with the model that generates, to see how much of it a return computes anew."""

from typing import Any

from lab.gpu.configuration import GENERATION
from lab.harness.servers import Server
from lab.harness.texts import turned_text

PROMPT_WORDS = 700
Messages = list[dict[str, str]]


def begun() -> Messages:
    """Return the first message, which is long."""
    return [{"role": "user", "content": turned_text(0, PROMPT_WORDS)}]


def gone_on(messages: Messages, answer: dict[str, Any]) -> Messages:
    """Return the conversation with its answer, and a short question."""
    return [
        *messages,
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": "What follows from it?"},
    ]


def talk(server: Server, messages: Messages) -> dict[str, Any]:
    """Return an answer's words and llama-server's timings; always in the same slot."""
    fixed = {"model": GENERATION, "max_tokens": 16, "id_slot": 0, "temperature": 0}
    answer = server.call("POST", "/v1/chat/completions", {**fixed, "messages": messages})
    timings = answer["timings"]
    return {
        "content": answer["choices"][0]["message"]["content"],
        "timings": {key: timings[key] for key in ("cache_n", "prompt_n", "prompt_ms")},
    }
