"""Questions, each with the passage that answers it, in English and Korean."""

from pathlib import Path
from typing import NamedTuple

LANGUAGES = ("english", "korean")


class Pair(NamedTuple):
    """A question and its passage."""

    question: str
    passage: str


def pairs_of(language: str) -> tuple[Pair, ...]:
    """Read the pairs of a language: a line each, and an empty line between two pairs."""
    text = Path(__file__).with_name(f"{language}.txt").read_text(encoding="utf-8")
    return tuple(Pair(*block.splitlines()) for block in text.rstrip().split("\n\n"))
