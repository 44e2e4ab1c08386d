"""What the relay costs streaming chats: tokens per second, and streams that do not end whole."""

from dataclasses import asdict

from lab.bench.report import Figure
from lab.bench.sides import alternate, both_sides, failures_row, notes, rate_row, sustain
from lab.harness.connection import BrokenAnswerError, Connection, post
from lab.harness.load import Load, Tally
from lab.harness.setting import CHAT_MODEL, CLIENTS, Setting
from lab.harness.texts import short_texts

NAME = "streams"

TOKENS_PER_ANSWER = 64
"""Tokens asked for; the model never stops by itself, so that every answer has exactly these."""

_TOKEN = b'"delta":{"content":"'
_END = b"data: [DONE]"


def measure(setting: Setting) -> Figure:
    """Stream chats to eight clients, direct and through the controller, on the shipped profile."""
    with both_sides(setting, CHAT_MODEL) as sides:
        load = chat_load(clients=CLIENTS, seconds=setting.turn_seconds)
        turns = alternate(load, sides, setting.turns)
        sustained = sustain(load, sides, setting.seconds)
    return Figure(
        name=NAME,
        rows=(
            rate_row(f"{CLIENTS} clients", "tokens/s", turns, least_share=0.92),
            failures_row(f"{CLIENTS} clients, failures", turns, sustained),
        ),
        notes=notes(turns, "token", setting.turn_seconds),
        samples={"many_clients": turns.samples(), "sustained": asdict(sustained)},
    )


def chat_load(*, clients: int, seconds: float, requests_per_client: int | None = None) -> Load:
    """Build the load: prompts of 10 to 60 English words, answers of the same length each."""
    requests = [
        post(
            "/v1/chat/completions",
            {
                "model": CHAT_MODEL,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": TOKENS_PER_ANSWER,
                "stream": True,
            },
        )
        for text in short_texts(256, min_words=10, max_words=60)
    ]
    return Load(
        name=f"streams, {clients} clients",
        requests=requests,
        exchange=_chat,
        clients=clients,
        seconds=seconds,
        requests_per_client=requests_per_client,
    )


async def _chat(connection: Connection, request: bytes, tally: Tally) -> None:
    """Count tokens as they arrive; a mark may be cut in two by the borders of chunks."""
    tokens, rest, tail = 0, b"", b""
    async for chunk in connection.stream(request):
        window = rest + chunk
        arrived = window.count(_TOKEN)
        tokens += arrived
        tally.add(arrived)
        rest = window[-(len(_TOKEN) - 1) :]
        tail = (tail + chunk)[-64:]
    if _END not in tail:
        raise BrokenAnswerError("the stream ended without its end mark")
    if tokens != TOKENS_PER_ANSWER:
        raise BrokenAnswerError(f"the stream had {tokens} tokens and not {TOKENS_PER_ANSWER}")
