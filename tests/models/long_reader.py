"""An embedding model that reads 32,768 tokens at once, whatever the size of its micro-batch.

It has the llama architecture, so a memory of keys and values, and takes the vector of the last
token: such a model can be computed in parts. All tokens look at all before them alike, so that a
vector is the mean of the words of a text: texts of the same words are near each other.
"""

from pathlib import Path

import numpy as np
from demo_models.gguf_file import new_gguf
from demo_models.llama_shape import LlamaShape
from gguf import PoolingType

from tests.models.vocabulary import copy_vocabulary

SHAPE = LlamaShape(
    context_tokens=40_960, layers=1, width=64, feed_forward=32, heads=1, head_size=64
)
"""llama-server wants one token of context more than an input has, so 32,768 would be too few."""

FAINTNESS = 0.01
"""Size of what a token adds to the vector as the last one, beside the mean of all."""

SEED = 3


def write_long_reader(path: Path, vocabulary_of: Path) -> None:
    """Write the model, with the vocabulary of another one, in 4 MB and a second."""
    with new_gguf(path, "llama") as writer:
        SHAPE.add_to(writer, "long-reader")
        writer.add_pooling_type(PoolingType.LAST)
        count = len(copy_vocabulary(vocabulary_of, writer)["tokens"])
        random = np.random.default_rng(SEED)
        tokens = FAINTNESS * random.standard_normal((count, SHAPE.width), np.float32)
        unmixed, nothing = np.eye(SHAPE.width), np.zeros((SHAPE.width, SHAPE.width))
        inner = np.zeros((SHAPE.feed_forward, SHAPE.width))
        matrices = {
            "token_embd": tokens,
            **{f"blk.0.{name}": nothing for name in ("attn_q", "attn_k")},
            **{f"blk.0.{name}": unmixed for name in ("attn_v", "attn_output")},
            **{f"blk.0.{name}": inner for name in ("ffn_gate", "ffn_up")},
            "blk.0.ffn_down": inner.T,
        }
        for name, values in matrices.items():
            writer.add_tensor(f"{name}.weight", np.ascontiguousarray(values, np.float16))
        for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
            writer.add_tensor(f"{name}.weight", np.ones(SHAPE.width, np.float32))
