"""The models of the check: random weights in real architectures, of the sizes that matter.

They stand in the user's cache, apart from any checkout, and are made once.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from demo_models.gguf_file import new_gguf
from demo_models.llama_shape import LlamaShape
from gguf import GGUFWriter, LlamaFileType, PoolingType

from lab.harness.large_model import (
    add_layers,
    add_vocabulary,
    kept_model,
    random_matrix,
    text_tokenizer,
    write_large_model,
)

BERT_LARGE = LlamaShape(
    context_tokens=512, layers=24, width=1024, feed_forward=4096, heads=16, head_size=64
)
"""The measures of BERT large: 0.3 billion weights."""

MIXTURE = LlamaShape(
    context_tokens=2048, layers=8, width=1024, feed_forward=2048, heads=16, head_size=64
)
"""The measures of a mixture of experts of 0.9 GB; `feed_forward` is each expert's."""

EXPERTS, EXPERTS_USED = 8, 2

NORM_EPSILON = 1e-12
SEED = 17
_GB = 1_000_000_000


def generation_shape(size_gb: float) -> LlamaShape:
    """Return the measures of a model of Llama 3 8B's width, with as many layers as make the size.

    Its weights are F16. Below one layer (0.5 GB) there is one.
    """
    one = LlamaShape(
        context_tokens=8192, layers=1, width=4096, feed_forward=14336, heads=32, head_size=128
    )
    layer_bytes = 2 * (4 * one.width * one.width + 3 * one.width * one.feed_forward)
    layers = max(1, round(size_gb * _GB / layer_bytes))
    return replace(one, layers=layers)


def generation_model(size_gb: float) -> Path:
    """Return a model that generates, of about that size. Raises LabError."""
    shape = generation_shape(size_gb)
    name = f"llama-{shape.layers}x{shape.width}.gguf"
    return kept_model(name, lambda path: write_large_model(path, shape))


def large_embedding_model() -> Path:
    """Return a model that embeds, of BERT large's measures. Raises LabError."""
    name = f"bert-{BERT_LARGE.layers}x{BERT_LARGE.width}.gguf"
    return kept_model(name, write_bert)


def experts_model() -> Path:
    """Return a model that generates with a mixture of experts. Raises LabError."""
    return kept_model(f"experts-{MIXTURE.layers}x{MIXTURE.width}.gguf", write_experts)


def write_experts(path: Path, shape: LlamaShape = MIXTURE) -> None:
    """Write a mixture of experts; all layers, and in each all experts, have the same weights.

    Raises OSError: the folder cannot be written or is full; `path` is untouched.
    """
    random = np.random.default_rng(SEED)
    with new_gguf(path, "llama") as writer:
        shape.add_to(writer, "check-experts")
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(EXPERTS_USED)
        add_vocabulary(writer, shape, random)
        add_layers(writer, shape, random, experts=EXPERTS)


def write_bert(path: Path, shape: LlamaShape = BERT_LARGE) -> None:
    """Write a BERT with mean pooling. All layers have the same weights: their size matters here.

    Raises OSError: the folder cannot be written or is full; `path` is untouched.
    """
    random = np.random.default_rng(SEED)
    tokenizer = text_tokenizer()
    width = shape.width
    with new_gguf(path, "bert") as writer:
        _add_measures(writer, shape)
        tokenizer.add_to(writer)
        writer.add_tensor("token_embd.weight", random_matrix(random, len(tokenizer.tokens), width))
        # Both are added to the embeddings of the tokens, which llama.cpp does in float32.
        positions = random_matrix(random, shape.context_tokens, width).astype(np.float32)
        writer.add_tensor("position_embd.weight", positions)
        writer.add_tensor("token_types.weight", np.zeros((2, width), np.float32))
        _add_vectors(writer, "token_embd_norm", width)
        _add_layers(writer, shape, random)


def _add_measures(writer: GGUFWriter, shape: LlamaShape) -> None:
    writer.add_name("check-bert")
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(NORM_EPSILON)
    writer.add_token_type_count(2)
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(PoolingType.MEAN)


def _add_layers(writer: GGUFWriter, shape: LlamaShape, random: np.random.Generator) -> None:
    width, inner = shape.width, shape.feed_forward
    sizes = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (width, width)),
        "ffn_up": (inner, width),
        "ffn_down": (width, inner),
    }
    weights = {name: random_matrix(random, *size) for name, size in sizes.items()}
    for layer in range(shape.layers):
        for name, values in weights.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", values)
            writer.add_tensor(f"blk.{layer}.{name}.bias", np.zeros(len(values), np.float32))
        for name in ("attn_output_norm", "layer_output_norm"):
            _add_vectors(writer, f"blk.{layer}.{name}", width)


def _add_vectors(writer: GGUFWriter, name: str, width: int) -> None:
    """Add a normalisation that changes nothing but the scale."""
    writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    writer.add_tensor(f"{name}.bias", np.zeros(width, np.float32))
