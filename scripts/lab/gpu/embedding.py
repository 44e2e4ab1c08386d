"""How busy embedding keeps the device, with small batches and with large ones."""

import time
from typing import Any

from lab.gpu.check import Check, Mark, PartResult
from lab.gpu.configuration import (
    EMBEDDING,
    LARGE_BATCH,
    LARGE_EMBEDDING,
    SMALL_BATCH,
    embedding_profiles,
    log_of,
    setting_for,
)
from lab.gpu.log_reading import marks
from lab.harness.command import LabError
from lab.harness.connection import BrokenAnswerError, Connection, post
from lab.harness.load import Load, Tally, run
from lab.harness.servers import Controller
from lab.harness.setting import Setting
from lab.harness.texts import turned_text

NAME = "embedding"
LIMIT_S = 120.0

WORDS = 64
"""Of each text: under 128 tokens with either vocabulary, which is all that a small batch takes."""

TEXTS_PER_REQUEST = 64
CLIENTS = 4
WARM_UP_S = 1.0

SETTLING_S = 0.7
"""Left out at the beginning of a load: the driver tells the load of the time just before."""

_VECTOR = b'"embedding":"'


def measure(check: Check) -> PartResult:
    """Embed the same texts with both profiles; large random weights, and the small real model."""
    setting = setting_for(check, embedding_profiles())
    models = [LARGE_EMBEDDING]
    if check.models.embedding != check.models.large_embedding:
        models.append(EMBEDDING)
    figures: dict[str, Any] = {}
    sentences, begins = [], []
    with Controller(setting) as controller:
        for model in models:
            sides = {}
            for profile in (SMALL_BATCH, LARGE_BATCH):
                controller.wait_until_settled()
                controller.switch_to(model, profile)
                begins.append(Mark(at=time.monotonic(), label=profile))
                sides[profile] = _embed(check, setting, controller, model)
            ratio = sides[LARGE_BATCH]["texts_per_s"] / sides[SMALL_BATCH]["texts_per_s"]
            figures[model] = {**sides, "ratio_of_times": ratio}
            sentences.append(_sentence(model, figures[model]))
    return PartResult(
        figures=figures,
        sentences=sentences,
        marks=[*marks(log_of(setting)), *begins],
    )


def _embed(check: Check, setting: Setting, controller: Controller, model: str) -> dict[str, Any]:
    run(embedding_load(model, min(WARM_UP_S, setting.seconds)), controller.endpoint)
    began_at = time.monotonic()
    tally = run(embedding_load(model, setting.seconds), controller.endpoint)
    took_s = time.monotonic() - began_at  # until the last answer
    points = check.watch.between(began_at + SETTLING_S, began_at + setting.seconds)
    if tally.failures:
        raise LabError(f"{model}: embedding failed: {dict(tally.failures)}")
    told = [p.utilisation_percent for p in points if p.utilisation_percent is not None]
    return {
        "texts_per_s": len(tally.latencies_s) * TEXTS_PER_REQUEST / took_s,
        "utilisation_percent": sum(told) / len(told) if told else None,
        "utilisation_readings": len(told),
    }


def embedding_load(model: str, seconds: float) -> Load:
    """Build the load: arrays of texts, answered in base64, so that JSON costs little."""
    requests = [
        post(
            "/v1/embeddings",
            {
                "model": model,
                "input": [
                    turned_text(number * TEXTS_PER_REQUEST + place, WORDS)
                    for place in range(TEXTS_PER_REQUEST)
                ],
                "encoding_format": "base64",
            },
        )
        for number in range(CLIENTS)
    ]
    return Load(
        name=f"embedding, {model}",
        requests=requests,
        exchange=_exchange,
        clients=CLIENTS,
        seconds=seconds,
    )


async def _exchange(connection: Connection, request: bytes, tally: Tally) -> None:
    body = await connection.exchange(request)
    texts = body.count(_VECTOR)
    if texts != TEXTS_PER_REQUEST:
        raise BrokenAnswerError(f"{texts} vectors for {TEXTS_PER_REQUEST} texts: {body[:80]!r}")
    tally.add(texts)


def _sentence(model: str, figures: dict[str, Any]) -> str:
    parts = []
    for profile in (SMALL_BATCH, LARGE_BATCH):
        side = figures[profile]
        busy = side["utilisation_percent"]
        told = "not told" if busy is None else f"{busy:.0f} %"
        parts.append(f"{profile}: {side['texts_per_s']:.0f} texts/s, device busy {told}")
    return f"{model}: {'; '.join(parts)}; ratio of times {figures['ratio_of_times']:.2f} ×."
