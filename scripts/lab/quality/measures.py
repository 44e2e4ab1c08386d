"""How near the vectors of a served model are to those of its float32 weights.

Recall@1 alone hides damage: what is found wrongly may make up for what is lost. So the answers are
compared one by one, and the vectors, too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Of length 1, one in each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Shares are from 0 to 1."""

    recall_at_1: float
    top_1_agreement: float
    lowest_cosine: float


def quality_of(questions: Vectors, passages: Vectors, exact: tuple[Vectors, Vectors]) -> Quality:
    """Compare vectors with those that are exact: of the questions, and of their passages."""
    exact_questions, exact_passages = exact
    found = (questions @ passages.T).argmax(axis=1)
    right = (exact_questions @ exact_passages.T).argmax(axis=1)
    cosines = (cosines_of(questions, exact_questions), cosines_of(passages, exact_passages))
    return Quality(
        recall_at_1=float((found == np.arange(len(found))).mean()),
        top_1_agreement=float((found == right).mean()),
        lowest_cosine=float(np.concatenate(cosines).min()),
    )


def cosines_of(ones: Vectors, others: Vectors) -> Vectors:
    """Return the cosine of each row with the same row of the others."""
    cosines: Vectors = (ones * others).sum(axis=1)
    return cosines


def unit(vectors: Vectors) -> Vectors:
    """Return the rows at length 1."""
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
