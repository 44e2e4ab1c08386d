"""What a kept prompt cache spares: a long conversation goes on after other work on the device."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from lab.bench.report import Figure, compare
from lab.harness.command import LabError, say
from lab.harness.servers import Controller, Server
from lab.harness.setting import CHAT_MODEL, EMBEDDING_MODEL, Setting, with_changes
from lab.harness.texts import turned_text

NAME = "prompt_cache"

COLD, KEPT = "generation-cold", "generation-kept"
CONFIGURATION: Mapping[str, Mapping[str, Any]] = {
    f"{name}.yaml": {
        "extends": "generation",
        "mode": "generation",
        "ctx_size": 4096,
        "keep_prompt_cache": name == KEPT,
    }
    for name in (COLD, KEPT)
}

TOKENS = 3000
WORDS = 2700
"""English words that make the conversation: 1.14 tokens each with this model's vocabulary."""

TURNS = 6
TOKENS_PER_ANSWER = 8
MS = 1000

_TOKEN = b'"delta":{"content":"'

Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The start of a streamed answer, and how its prompt came about (llama-server's `timings`)."""

    first_token_s: float
    cached_tokens: int
    computed_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One conversation that was interrupted by an embedding; switches as the caller sees them."""

    before: Answer
    after: Answer
    away_s: float
    back_s: float


def measure(setting: Setting) -> Figure:
    """Hold a conversation, embed something, go on with it; with and without a kept prompt cache.

    The direct column is cold: the profile without `keep_prompt_cache`.
    """
    visits: dict[str, list[Visit]] = {COLD: [], KEPT: []}
    with Controller(with_changes(setting, NAME, CONFIGURATION)) as controller:
        for number in range(setting.rounds):
            for profile, done in visits.items():
                done.append(_visit(controller, profile, number))
    say(f"  {NAME}: {setting.rounds} conversations of each side")
    cold, kept = visits[COLD], visits[KEPT]
    return Figure(
        name=NAME,
        rows=(
            compare(
                f"first token after {TOKENS} tokens and two switches, kept over cold",
                "ms",
                direct=[each.after.first_token_s * MS for each in cold],
                controller=[each.after.first_token_s * MS for each in kept],
                judged_as="ratio",
                at_most=0.2,
            ),
            compare(
                "prompt tokens out of the cache (cache_n)",
                "",
                direct=[each.after.cached_tokens for each in cold],
                controller=[each.after.cached_tokens for each in kept],
                at_least=TOKENS,
            ),
        ),
        notes=_notes(cold, kept),
        samples={name: [asdict(each) for each in done] for name, done in visits.items()},
    )


def _visit(controller: Controller, profile: str, number: int) -> Visit:
    controller.wait_until_settled()
    controller.switch_to(CHAT_MODEL, profile)
    conversation = conversation_of(number)
    before = ask(controller, conversation)
    if before.cached_tokens + before.computed_tokens < TOKENS:
        raise LabError(f"the conversation has fewer than {TOKENS} tokens: {before}")
    started_at = time.monotonic()
    controller.switch_to(EMBEDDING_MODEL)
    away_s = time.monotonic() - started_at
    controller.call("POST", "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": "in between"})
    started_at = time.monotonic()
    controller.switch_to(CHAT_MODEL, profile)
    back_s = time.monotonic() - started_at
    question = {"role": "user", "content": "What follows from it?"}
    after = ask(controller, [*conversation, question])
    return Visit(before=before, after=after, away_s=away_s, back_s=back_s)


def conversation_of(number: int) -> Messages:
    """Return a conversation of TOKENS tokens; each number begins elsewhere in the text."""
    words = turned_text(number, WORDS).split()
    length = WORDS // TURNS
    return [
        {
            "role": ("user", "assistant")[turn % 2],
            "content": " ".join(words[turn * length : (turn + 1) * length]),
        }
        for turn in range(TURNS)
    ]


def ask(server: Server, messages: Messages) -> Answer:
    """Send a conversation and stream a short answer. Raises LabError when it is not whole."""
    content = {
        "model": CHAT_MODEL,
        "messages": messages,
        "max_tokens": TOKENS_PER_ANSWER,
        "stream": True,
    }
    received, first_token_s = b"", None
    started_at = time.monotonic()
    for chunk in server.stream("/v1/chat/completions", content):
        received += chunk
        if first_token_s is None and _TOKEN in received:
            first_token_s = time.monotonic() - started_at
    timings = timings_of(received)
    if first_token_s is None or timings is None:
        raise LabError(f"a stream without tokens or timings: {received[-200:]!r}")
    return Answer(
        first_token_s=first_token_s,
        cached_tokens=timings["cache_n"],
        computed_tokens=timings["prompt_n"],
    )


def timings_of(stream: bytes) -> dict[str, Any] | None:
    """Return the `timings` of llama-server's last event, or None where there are none."""
    for line in reversed(stream.splitlines()):
        if line.startswith(b"data: {"):
            timings: dict[str, Any] | None = json.loads(line[6:]).get("timings")
            return timings
    return None


def _notes(cold: Sequence[Visit], kept: Sequence[Visit]) -> tuple[str, ...]:
    faster = [
        c.after.first_token_s / k.after.first_token_s for c, k in zip(cold, kept, strict=True)
    ]
    away_ms, back_ms = (
        [(getattr(k, part) - getattr(c, part)) * MS for c, k in zip(cold, kept, strict=True)]
        for part in ("away_s", "back_s")
    )
    computed = [median(each.after.computed_tokens for each in side) for side in (cold, kept)]
    alone_ms = [median(getattr(c, part) for c in cold) * MS for part in ("away_s", "back_s")]
    speed = (
        f"{median(faster):.1f} times faster; cold computes {computed[0]:.0f} tokens of the prompt, "
        f"kept {computed[1]:.0f}"
    )
    price = (
        f"the switch away takes {median(away_ms):+.1f} ms to save it ({alone_ms[0]:.0f} ms cold), "
        f"the switch back {median(back_ms):+.1f} ms to restore it ({alone_ms[1]:.0f} ms cold)"
    )
    return speed, price
