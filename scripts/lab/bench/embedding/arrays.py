"""Many short texts in arrays: the service beside the best that clients could do without it.

The client of the service sends long arrays and thinks of nothing; the bare server is asked in the
way that a sweep has found best. The service's own server is started as the best way wants it, and
once more as shipped.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import numpy as np

from lab.bench.embedding import direct
from lab.bench.embedding.direct import Way, array_load, rate_of
from lab.bench.embedding.outside import encode_rate
from lab.bench.embedding.utilisation import Utilisation
from lab.bench.relay import DIRECT, OURS
from lab.bench.report import Figure, Row, compare
from lab.harness.command import LabError, say
from lab.harness.servers import Controller, Server
from lab.harness.setting import EMBEDDING_MODEL, Setting, with_changes
from lab.harness.texts import short_texts

NAME = "arrays"

SHIPPED, OTHERS = "shipped", "sentence-transformers"

ARRAY, IN_FLIGHT = 400, 4
"""How the service is asked: long arrays, several at a time."""

SAMPLE_DIVISOR = 10
"""Which part of all texts is enough to tell one way from another."""

CHECKED = 40
MIN_COSINE = 0.999
"""A text embedded alone and the same in a batch of others: the sums are rounded differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One side that embeds all texts once."""

    texts_per_s: float
    device_percent: float


def measure(setting: Setting) -> Figure:
    """Find the best way to ask the bare server; then every side embeds all texts, in turns."""
    texts = short_texts(setting.texts, min_words=3, max_words=40)
    with ExitStack() as stack:
        shipped = stack.enter_context(_controller(setting, SHIPPED))
        command = shipped.load(EMBEDDING_MODEL)
        say(f"  the ways to ask the bare server, {len(texts) // SAMPLE_DIVISOR} texts each …")
        swept = direct.sweep(command, texts[: len(texts) // SAMPLE_DIVISOR], setting)
        best = max(swept, key=swept.__getitem__)
        ours = stack.enter_context(_controller(_started_as(best, setting), OURS))
        ours.load(EMBEDDING_MODEL)
        bare = stack.enter_context(direct.started(command, best, setting))
        wrong = _wrong_vectors(ours, bare, texts)
        array = partial(rate_of, array_load(texts, ARRAY), in_flight=IN_FLIGHT)
        sides: dict[str, Callable[[], float]] = {
            DIRECT: lambda: rate_of(array_load(texts, direct.ARRAY), bare.endpoint, best.in_flight),
            OURS: lambda: array(ours.endpoint),
            SHIPPED: lambda: array(shipped.endpoint),
        }
        if setting.sentence_transformers is not None:
            python = setting.sentence_transformers
            sides[OTHERS] = lambda: encode_rate(python, texts, setting)
        turns = _take_turns(sides, shipped, setting.rounds)
    return _figure(texts, swept, turns, wrong)


def _controller(setting: Setting, name: str) -> Controller:
    work_dir = setting.work_dir / name
    work_dir.mkdir()
    return Controller(replace(setting, work_dir=work_dir))


def _started_as(way: Way, setting: Setting) -> Setting:
    """Return the setting whose profile starts the server as the way wants it."""
    sizes = {"ubatch_size": way.ubatch_size, "batch_size": way.ubatch_size}
    overrides = {"overrides": {**sizes, "parallel": way.parallel}}
    changes = {"models.yaml": {"models": {EMBEDDING_MODEL: overrides}}}
    return with_changes(setting, "as-the-best-way", changes)


def _take_turns(
    sides: Mapping[str, Callable[[], float]], controller: Controller, rounds: int
) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(1, rounds + 1):
        for name, embed_all in sides.items():
            say(f"  {name}, turn {number} of {rounds} …")
            with Utilisation(controller) as device:
                rate = embed_all()
            turns[name].append(Turn(texts_per_s=rate, device_percent=device.percent))
    return turns


def _wrong_vectors(ours: Server, bare: Server, texts: Sequence[str]) -> int:
    """Count the texts whose vector in a long array is not the one that they have alone."""
    spread = texts[:: max(1, len(texts) // CHECKED)][:CHECKED]
    others = texts[: ARRAY - len(spread)]
    answer = _vectors(ours, [*others, *spread])[len(others) :]
    alone = np.concatenate([_vectors(bare, [text]) for text in spread])
    return int((np.sum(answer * alone, axis=1) < MIN_COSINE).sum())


def _vectors(server: Server, texts: Sequence[str]) -> np.ndarray:
    data = server.call("POST", "/v1/embeddings", {"model": EMBEDDING_MODEL, "input": texts})["data"]
    if [entry["index"] for entry in data] != list(range(len(texts))):
        raise LabError("an answer has not one vector for each text, in their order")
    return np.array([entry["embedding"] for entry in data], np.float32)


def _figure(
    texts: Sequence[str],
    swept: Mapping[Way, float],
    turns: Mapping[str, Sequence[Turn]],
    wrong: int,
) -> Figure:
    rates = {name: [turn.texts_per_s for turn in taken] for name, taken in turns.items()}
    peers = {name: rate for name, rate in rates.items() if name not in {DIRECT, OURS}}
    beside = partial(compare, controller=rates[OURS], judged_as="ratio")
    rows = [
        beside(
            f"{len(texts)} texts, over the best of {len(swept)} ways",
            "texts/s",
            direct=rates[DIRECT],
            peers=peers,
            at_least=0.95,
        )
    ]
    if OTHERS in rates:
        rows.append(beside(f"over {OTHERS}", "texts/s", direct=rates[OTHERS], at_least=1.3))
    rows += [
        _device_row(turns),
        compare(f"wrong vectors of {CHECKED}", "", direct=[0], controller=[wrong], at_most=0),
    ]
    ordered = sorted(swept.items(), key=lambda each: -each[1])
    return Figure(
        name=NAME,
        rows=tuple(rows),
        notes=tuple(f"{rate:.0f} texts/s directly with {way}" for way, rate in ordered),
        samples={
            "ways": [{**asdict(way), "texts_per_s": rate} for way, rate in ordered],
            "turns": {name: list(map(asdict, taken)) for name, taken in turns.items()},
        },
    )


def _device_row(turns: Mapping[str, Sequence[Turn]]) -> Row:
    """Tell how busy the device was; the service must not leave it idler than the best way does."""
    used = {name: [turn.device_percent for turn in taken] for name, taken in turns.items()}
    return compare(
        "device busy",
        "%",
        direct=used[DIRECT],
        controller=used[OURS],
        peers={name: [median(each)] for name, each in used.items() if name not in {DIRECT, OURS}},
        judged_as="ratio",
        at_least=0.95,
    )
