"""A model that computes like a real one and never stops by itself.

Its weights are random, so its words mean nothing; its work per token is that of a 19-million-
parameter model. One embedding value is the same for every token and no layer writes to it. The
output matrix turns it into a large negative logit for each token that must not be generated, so
a benchmark gets exactly the tokens it asks for, each of them a whole word of valid UTF-8.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
from gguf import GGUFWriter
from numpy.typing import NDArray

from demo_models.demo_chat import TEXT_FILE
from demo_models.gguf_file import new_gguf
from demo_models.llama_shape import LlamaShape
from demo_models.word_tokenizer import CHARACTERS, SPECIAL_TOKENS, WORD_START, WordTokenizer

SHAPE = LlamaShape(
    context_tokens=8192, layers=4, width=256, feed_forward=640, heads=4, head_size=64
)
VOCABULARY_SIZE = 32_000
SEED = 11

ONSETS = (*"bdhjlmnrstvz", "br", "dr", "gr", "pl", "sl", "sm", "sn", "st", "tr", "thr")
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
HANGUL_SYLLABLES = tuple(map(chr, range(0xAC00, 0xD7A4)))

CONSTANT = 0
"""Which embedding value is the same for every token."""

SUPPRESSION = -80.0
"""Weight of the constant in the logit of a token that must not be generated."""

LOGIT_SPREAD = 2.0
"""Standard deviation of the other logits: near an instruction-tuned model's entropy."""


def write_bench_chat(path: Path) -> None:
    """Write the model: 4 layers of width 256, 32,000 tokens, F16, the same bytes every time.

    Raises:
        OSError: the folder cannot be written or is full; `path` is untouched.

    """
    random = np.random.default_rng(SEED)
    tokenizer = WordTokenizer(pieces=_pieces())
    with new_gguf(path, "llama") as writer:
        SHAPE.add_to(writer, "bench-chat")
        tokenizer.add_to(writer)
        writer.add_tensor("token_embd.weight", _embeddings(random))
        for layer in range(SHAPE.layers):
            _add_layer(writer, f"blk.{layer}", random)
        writer.add_tensor("output_norm.weight", np.ones(SHAPE.width, np.float32))
        writer.add_tensor("output.weight", _output(random, tokenizer.tokens))


def _pieces() -> tuple[str, ...]:
    """Fill the vocabulary so that prompts cost a plausible number of tokens.

    The words of the chat text make common English cheap, Hangul gives Korean a token a syllable,
    syllables spell other words in the Latin script, and invented words are the rest.
    """
    english = re.findall("[A-Za-z]+", TEXT_FILE.read_text(encoding="utf-8"))
    syllables = tuple(map("".join, product(ONSETS, VOWELS)))
    words = (WORD_START + word for word in chain(english, _invented_words(syllables)))
    missing = VOCABULARY_SIZE - len(SPECIAL_TOKENS) - len(CHARACTERS)
    return tuple(islice(_unique(chain(HANGUL_SYLLABLES, syllables, words)), missing))


def _invented_words(syllables: tuple[str, ...]) -> Iterator[str]:
    return ("".join(parts) for length in (1, 2, 3) for parts in product(syllables, repeat=length))


def _unique(pieces: Iterable[str]) -> Iterator[str]:
    seen = set[str]()
    for piece in pieces:
        if piece not in seen:
            seen.add(piece)
            yield piece


def _embeddings(random: np.random.Generator) -> NDArray[np.float16]:
    embeddings = _matrix(random, VOCABULARY_SIZE, SHAPE.width, deviation=1.0)
    embeddings[:, CONSTANT] = 1.0
    return embeddings


def _output(random: np.random.Generator, tokens: tuple[str, ...]) -> NDArray[np.float16]:
    output = _matrix(
        random, VOCABULARY_SIZE, SHAPE.width, deviation=LOGIT_SPREAD / SHAPE.width**0.5
    )
    output[:, CONSTANT] = 0.0
    is_word = np.array([len(token) > 1 and token.startswith(WORD_START) for token in tokens])
    output[~is_word] = 0.0
    output[~is_word, CONSTANT] = SUPPRESSION
    return output


def _add_layer(writer: GGUFWriter, prefix: str, random: np.random.Generator) -> None:
    width, inner, attention = SHAPE.width, SHAPE.feed_forward, SHAPE.heads * SHAPE.head_size
    writes_to_stream = {"attn_output": (width, attention), "ffn_down": (width, inner)}
    reads_from_stream = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v"), (attention, width)),
        **dict.fromkeys(("ffn_gate", "ffn_up"), (inner, width)),
    }
    for name, (rows, columns) in {**reads_from_stream, **writes_to_stream}.items():
        weights = _matrix(random, rows, columns, deviation=columns**-0.5)
        if name in writes_to_stream:
            weights[CONSTANT] = 0.0
        writer.add_tensor(f"{prefix}.{name}.weight", weights)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"{prefix}.{name}.weight", np.ones(width, np.float32))


def _matrix(
    random: np.random.Generator, rows: int, columns: int, *, deviation: float
) -> NDArray[np.float16]:
    normal = random.standard_normal((rows, columns), dtype=np.float32)
    return (normal * deviation).astype(np.float16)
