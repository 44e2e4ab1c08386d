"""English texts of varied length, the same in every run, cut from the demo model's own text."""

import random
from itertools import cycle, islice

from demo_models.demo_chat import TEXT_FILE

SEED = 7

TURN_WORDS = 531
"""A prime, so that the beginnings of many turned texts differ."""


def turned_text(number: int, count: int) -> str:
    """Return `count` words of the whole text, which begins elsewhere for each number."""
    words = TEXT_FILE.read_text(encoding="utf-8").split()
    start = number * TURN_WORDS % len(words)
    return " ".join(islice(cycle(words), start, start + count))


def short_texts(count: int, *, min_words: int, max_words: int) -> tuple[str, ...]:
    """Cut `count` texts, each starting at a random word; lengths spread evenly between both."""
    chooser = random.Random(SEED)
    words = TEXT_FILE.read_text(encoding="utf-8").split()

    def cut() -> str:
        length = chooser.randint(min_words, max_words)
        start = chooser.randrange(len(words) - length)
        return " ".join(words[start : start + length])

    return tuple(cut() for _ in range(count))
