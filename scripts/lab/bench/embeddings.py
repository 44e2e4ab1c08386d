"""What the relay costs embedding callers: eight at once, and one alone."""

from dataclasses import asdict

from lab.bench.report import Figure, compare
from lab.bench.sides import alternate, both_sides, failures_row, notes, rate_row, sustain
from lab.harness.connection import BrokenAnswerError, Connection, post
from lab.harness.load import Load, Tally
from lab.harness.setting import CLIENTS, EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

NAME = "embeddings"


def measure(setting: Setting) -> Figure:
    """Embed short texts with eight clients, then with one, direct and through the controller."""
    with both_sides(setting, EMBEDDING_MODEL) as sides:
        many_load = embedding_load(clients=CLIENTS, seconds=setting.turn_seconds)
        many = alternate(many_load, sides, setting.turns)
        sustained = sustain(many_load, sides, setting.seconds)
        one_load = embedding_load(clients=1, seconds=setting.single_client_turn_seconds)
        one = alternate(one_load, sides, setting.turns)
    return Figure(
        name=NAME,
        rows=(
            rate_row(f"{CLIENTS} clients", "requests/s", many, least_share=0.85),
            failures_row(f"{CLIENTS} clients, failures", many, sustained),
            compare(
                "1 client, median",
                "ms",
                direct=[each.median_latency_ms for each in one.direct],
                controller=[each.median_latency_ms for each in one.controller],
                judged_as="difference",
                at_most=0.5,
            ),
            failures_row("1 client, failures", one),
        ),
        notes=notes(many, "request", setting.turn_seconds),
        samples={
            "many_clients": many.samples(),
            "sustained": asdict(sustained),
            "one_client": one.samples(),
        },
    )


def embedding_load(*, clients: int, seconds: float, requests_per_client: int | None = None) -> Load:
    """Build the load: one short English text (3 to 40 words) per request."""
    texts = short_texts(512, min_words=3, max_words=40)
    requests = [post("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": text}) for text in texts]
    return Load(
        name=f"embeddings, {clients} client{'s' if clients > 1 else ''}",
        requests=requests,
        exchange=_embed,
        clients=clients,
        seconds=seconds,
        requests_per_client=requests_per_client,
    )


async def _embed(connection: Connection, request: bytes, tally: Tally) -> None:
    body = await connection.exchange(request)
    if b'"embedding":[' not in body:
        raise BrokenAnswerError(f"no embedding in {body[:80]!r}")
    tally.add(1)
