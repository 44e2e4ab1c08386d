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
from lab.harness.lean import LeanLoad, drive, post
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
    load = embedding_load(model)
    drive(load, controller.endpoint, CLIENTS, min(WARM_UP_S, setting.seconds))
    began_at = time.monotonic()
    tally = drive(load, controller.endpoint, CLIENTS, setting.seconds)
    took_s = time.monotonic() - began_at  # until the last answer
    points = check.watch.between(began_at + SETTLING_S, began_at + setting.seconds)
    if tally.failures:
        died = controller.logged("backend.died")
        words = "; ".join(died[-1]["last_lines"]) if died else "the server lives"
        raise LabError(f"{model}: embedding failed: {dict(tally.failures)}: {words}")
    told = [p.utilisation_percent for p in points if p.utilisation_percent is not None]
    return {
        "texts_per_s": tally.all_units / took_s,
        "utilisation_percent": sum(told) / len(told) if told else None,
        "utilisation_readings": len(told),
    }


def embedding_load(model: str) -> LeanLoad:
    """Build the load: arrays of texts, answered in base64, so that JSON costs little."""
    places = range(CLIENTS * TEXTS_PER_REQUEST)
    texts = [turned_text(place, WORDS) for place in places]
    requests = [
        post("/v1/embeddings", {"model": model, "input": some, "encoding_format": "base64"})
        for some in (texts[at : at + TEXTS_PER_REQUEST] for at in places[::TEXTS_PER_REQUEST])
    ]
    return LeanLoad(requests=requests, mark=_VECTOR, units_per_answer=TEXTS_PER_REQUEST)


def _sentence(model: str, figures: dict[str, Any]) -> str:
    parts = []
    for profile in (SMALL_BATCH, LARGE_BATCH):
        side = figures[profile]
        busy = side["utilisation_percent"]
        told = "not told" if busy is None else f"{busy:.0f} %"
        parts.append(f"{profile}: {side['texts_per_s']:.0f} texts/s, device busy {told}")
    return f"{model}: {'; '.join(parts)}; ratio of times {figures['ratio_of_times']:.2f} ×."
