"""A reranker that counts: its score rises with the share of the query's words that a text repeats.

It is a BERT with pooling by rank, of two layers whose weights are set by hand. Each token is a
random direction, so that two tokens are alike where they are the same. The first layer looks from
each token at its likes and at [CLS]: the more likes it has, the smaller is the part of [CLS]. The
second looks from [CLS] at all tokens, the first ones most, for that is where the query stands. The
mean of those parts, turned round, is the score.
"""

from pathlib import Path

import numpy as np
from demo_models.gguf_file import new_gguf
from gguf import GGUFWriter, LlamaFileType, PoolingType
from numpy.typing import NDArray

from tests.models.vocabulary import copy_vocabulary

Floats = NDArray[np.float32]

CONTEXT_TOKENS, LAYERS, WIDTH, INNER, WORD_VALUES = 512, 2, 128, 32, 120
CLS, PLACE, PART, MEAN = 120, 122, 124, 126
"""Pairs of values of opposite sign, so that a token's values have the mean 0 that a norm wants."""

LIKENESS = 12.0
"""Logit of a token for its likes, and for [CLS]; it is near 0 for all others."""

NEARNESS = 5.0
"""Logit of [CLS] for the first token; it falls to the negative of that at `FAR_TOKENS`.

That is what it has for itself, too, for its own part tells nothing.
"""

FAR_TOKENS = 24
COMMON_BELOW = 2100
"""Ids of marks and of the hundred commonest words in BERT's vocabulary; they count little."""

SHARPNESS, MIDDLE = 40.0, 0.31
"""The score is SHARPNESS × (MIDDLE - mean part): above 0 where much of a query is found."""

SEED = 5


def write_reranker(path: Path, vocabulary_of: Path) -> None:
    """Write the model, with the WordPiece vocabulary of another one, in 9 MB and a second."""
    with new_gguf(path, "bert") as writer:
        _add_shape(writer)
        vocabulary = copy_vocabulary(vocabulary_of, writer)
        _add_embeddings(writer, len(vocabulary["tokens"]), vocabulary["bos_token_id"])
        for layer, attention in enumerate((_look_at_likes(), _look_at_all())):
            _add_layer(writer, layer, attention)
        score = np.zeros((1, WIDTH), np.float32)
        score[0, MEAN] = -SHARPNESS
        writer.add_tensor("cls.output.weight", score)
        writer.add_tensor("cls.output.bias", np.full(1, SHARPNESS * MIDDLE, np.float32))


def _add_shape(writer: GGUFWriter) -> None:
    writer.add_name("counting-reranker")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_block_count(LAYERS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(1)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(PoolingType.RANK)


def _add_embeddings(writer: GGUFWriter, count: int, cls: int) -> None:
    random = np.random.default_rng(SEED)
    signs = np.repeat(np.array([1, -1], np.float32), WORD_VALUES // 2)
    tokens = np.zeros((count, WIDTH), np.float16)
    tokens[:, :WORD_VALUES] = random.permuted(np.tile(signs, (count, 1)), axis=1)
    tokens[cls, [CLS, CLS + 1]] = 1, -1
    tokens[:COMMON_BELOW, [PLACE, PLACE + 1]] = -1, 1
    nearness = np.maximum(-1, 1 - np.arange(CONTEXT_TOKENS) / (FAR_TOKENS / 2))
    nearness[0] = -1
    places = np.zeros((CONTEXT_TOKENS, WIDTH), np.float32)
    places[:, PLACE], places[:, PLACE + 1] = nearness, -nearness
    writer.add_tensor("token_embd.weight", tokens)
    writer.add_tensor("position_embd.weight", places)
    writer.add_tensor("token_types.weight", np.zeros((2, WIDTH), np.float32))
    _add_norm(writer, "token_embd_norm")


Attention = dict[str, Floats]
"""The weights (rows: what comes out) and biases of one layer by their names in the file."""


def _look_at_likes() -> Attention:
    """Take the mark of [CLS], as far as a token looks there, to `PART`."""
    likeness = (LIKENESS * WIDTH**0.5 / WORD_VALUES) ** 0.5
    query, key, value = np.zeros((3, WIDTH, WIDTH), np.float32)
    words = range(WORD_VALUES)
    query[words, words] = key[words, words] = likeness
    always = np.zeros(WIDTH, np.float32)
    always[CLS] = key[CLS, CLS] = (LIKENESS * WIDTH**0.5) ** 0.5
    value[PART, CLS], value[PART + 1, CLS] = 1, -1
    return {"attn_q.weight": query, "attn_q.bias": always, "attn_k.weight": key} | {
        "attn_v.weight": value
    }


def _look_at_all() -> Attention:
    """Take the mean part of all tokens to `MEAN`, the nearer ones counting more."""
    query, key, value = np.zeros((3, WIDTH, WIDTH), np.float32)
    always = np.zeros(WIDTH, np.float32)
    always[PLACE] = key[PLACE, PLACE] = (NEARNESS * WIDTH**0.5) ** 0.5
    value[MEAN, PART], value[MEAN + 1, PART] = 1, -1
    return {"attn_q.weight": query, "attn_q.bias": always, "attn_k.weight": key} | {
        "attn_v.weight": value
    }


def _add_layer(writer: GGUFWriter, layer: int, attention: Attention) -> None:
    """Add a layer whose attention adds to the values, and whose feed-forward part adds nothing."""
    idle = {
        "attn_k.bias": np.zeros(WIDTH, np.float32),
        "attn_v.bias": np.zeros(WIDTH, np.float32),
        "attn_output.weight": np.eye(WIDTH, dtype=np.float32),
        "attn_output.bias": np.zeros(WIDTH, np.float32),
        "ffn_up.weight": np.zeros((INNER, WIDTH), np.float32),
        "ffn_up.bias": np.zeros(INNER, np.float32),
        "ffn_down.weight": np.zeros((WIDTH, INNER), np.float32),
        "ffn_down.bias": np.zeros(WIDTH, np.float32),
    }
    for name, values in {**attention, **idle}.items():
        half = values.astype(np.float16) if values.ndim == 2 else values
        writer.add_tensor(f"blk.{layer}.{name}", half)
    _add_norm(writer, f"blk.{layer}.attn_output_norm")
    _add_norm(writer, f"blk.{layer}.layer_output_norm")


def _add_norm(writer: GGUFWriter, name: str) -> None:
    writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, np.float32))
