"""What quantising and serving leave of meaning is measured; F16 and Q8_0 keep what they should."""

import numpy as np
import pytest
from lab.harness.setting import Setting
from lab.quality.__main__ import BATCH_GATE, GATES, exact_vectors, measured
from lab.quality.measures import quality_of
from lab.quality.pairs import LANGUAGES, pairs_of


def test_there_are_150_pairs_of_each_language_all_of_them_different() -> None:
    for language in LANGUAGES:
        pairs = pairs_of(language)
        assert len({pair.question for pair in pairs}) == len(pairs) == 150
        assert len({pair.passage for pair in pairs}) == 150
        is_korean = ["가" <= pair.question[0] <= "힣" for pair in pairs]
        assert all(is_korean) == any(is_korean) == (language == "korean")


def test_same_recall_hides_no_answer_that_has_changed() -> None:
    passages = np.eye(3, dtype=np.float32)
    exact = passages[[0, 1, 0]]
    changed = passages[[0, 2, 2]]

    quality = quality_of(changed, passages, (exact, passages))

    assert quality.recall_at_1 == pytest.approx(2 / 3)
    assert quality.top_1_agreement == pytest.approx(1 / 3)
    assert quality.lowest_cosine == 0


@pytest.mark.parametrize(
    ("weights", "languages"),
    [
        ("F16", LANGUAGES),
        ("Q8_0", ("english",)),  # of Korean, which minilm was not trained for, some miss the gate
    ],
)
def test_served_vectors_are_those_of_float32_weights(
    weights: str, languages: tuple[str, ...], setting: Setting
) -> None:
    pairs = {language: pairs_of(language)[:4] for language in languages}
    for row in measured(setting, weights, pairs, exact_vectors(pairs)):
        assert row.quality.lowest_cosine >= GATES[weights], row
        assert row.alone >= BATCH_GATE, row
        assert row.is_met
