"""Small models of many architectures: real headers, and a hole where tensor data would be."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import pytest

Shape = tuple[int, ...]
Tensors = list[tuple[str, Shape]]
Writer = Callable[..., Path]

WIDTH, HEADS, FEED_FORWARD, VOCABULARY = 256, 8, 1024, 20_000

KIND = gguf.GGMLQuantizationType
PLAIN = {KIND.F32: np.float32, KIND.F16: np.float16}


@pytest.fixture
def write_gguf(tmp_path: Path) -> Writer:
    """Write a file: `write_gguf(architecture, parameters, tensors)`; returns its path.

    Parameters are named without the architecture; a name that begins with a dot is taken as it
    is. Tensors have their rows' length first, as ggml counts; a third item names the type, else
    matrices are f16 and vectors f32.
    """

    def write(
        architecture: str,
        parameters: Mapping[str, Any],
        tensors: Sequence[tuple[Any, ...]],
        *,
        file_name: str = "model.gguf",
        tokens: Sequence[str] = (),
        alignment: int | None = None,
    ) -> Path:
        path = tmp_path / file_name
        writer = gguf.GGUFWriter(path, architecture)
        if alignment:
            writer.add_custom_alignment(alignment)
        for name, value in parameters.items():
            add_value(writer, name[1:] if name[0] == "." else f"{architecture}.{name}", value)
        writer.add_tokenizer_model("gpt2" if tokens else "none")
        if tokens:
            writer.add_token_list(list(tokens))
        data_bytes = 0
        for name, shape, *kind in tensors:
            size_bytes = add_tensor(writer, name, shape, *kind)
            data_bytes += padded(size_bytes, writer.data_alignment)
        write_header(writer, data_bytes)
        return path

    return write


def add_value(writer: Any, key: str, value: Any) -> None:
    """Add one pair; whole numbers are stored in 32 bits, as converters do."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, np.uint16):
        writer.add_uint16(key, int(value))
    elif isinstance(value, np.int32):
        writer.add_int32(key, int(value))
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def add_tensor(writer: Any, name: str, shape: Shape, kind: Any = None) -> int:
    """Announce a tensor. Returns its size in bytes."""
    kind = kind if kind is not None else (KIND.F32 if len(shape) == 1 else KIND.F16)
    block_values, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    size_bytes = int(np.prod(shape, dtype=np.int64)) // block_values * block_bytes
    rows_last = tuple(reversed(shape))
    if kind in PLAIN:
        writer.add_tensor_info(name, rows_last, np.dtype(PLAIN[kind]), size_bytes)
    else:
        stored = gguf.quant_shape_to_byte_shape(rows_last, kind)
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), size_bytes, raw_dtype=kind)
    return size_bytes


def write_header(writer: Any, data_bytes: int) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    file.flush()
    file.truncate(padded(file.tell(), writer.data_alignment) + data_bytes)
    writer.close()


def padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


@dataclass(frozen=True, kw_only=True)
class Model:
    """A small model: what its header says beside the usual, and tensors that fit to it."""

    layers: int = 2
    parameters: Mapping[str, Any]
    tensors: Tensors
    last_norm: str = "output_norm"


def attention(kv_heads: int = 2, key: int = 32, value: int = 32) -> Tensors:
    return [
        ("attn_norm.weight", (WIDTH,)),
        ("attn_q.weight", (WIDTH, HEADS * key)),
        ("attn_k.weight", (WIDTH, kv_heads * key)),
        ("attn_v.weight", (WIDTH, kv_heads * value)),
        ("attn_output.weight", (HEADS * value, WIDTH)),
    ]


FEED_FORWARD_TENSORS: Tensors = [
    ("ffn_norm.weight", (WIDTH,)),
    ("ffn_gate.weight", (WIDTH, FEED_FORWARD)),
    ("ffn_up.weight", (WIDTH, FEED_FORWARD)),
    ("ffn_down.weight", (FEED_FORWARD, WIDTH)),
]
EXPERT_TENSORS: Tensors = [
    ("ffn_gate_inp.weight", (WIDTH, 8)),
    ("ffn_gate_exps.weight", (WIDTH, 128, 8)),
    ("ffn_up_exps.weight", (WIDTH, 128, 8)),
    ("ffn_down_exps.weight", (128, WIDTH, 8)),
]
EXPERTS = {"expert_count": 8, "expert_used_count": 2, "expert_feed_forward_length": 128}
OUTPUT: Tensors = [("output.weight", (WIDTH, VOCABULARY))]


def named(**lengths: int) -> Tensors:
    return [(f"{name}.weight", (length,)) for name, length in lengths.items()]


def biases(**lengths: int | tuple[int, ...]) -> Tensors:
    shapes = {name: size if isinstance(size, tuple) else (size,) for name, size in lengths.items()}
    return [(f"{name}.bias", shape) for name, shape in shapes.items()]


def blocks(count: int, layer: Tensors) -> Tensors:
    return [(f"blk.{number}.{name}", shape) for number in range(count) for name, shape in layer]


ENCODER: Tensors = [
    *attention(kv_heads=HEADS)[1:],
    *FEED_FORWARD_TENSORS[2:],
    *named(attn_output_norm=WIDTH, layer_output_norm=WIDTH),
    *biases(attn_output_norm=WIDTH, layer_output_norm=WIDTH),
]
ENCODER_PARAMETERS = {
    ".tokenizer.ggml.token_type_count": 2,
    "attention.layer_norm_epsilon": 1e-12,
    "attention.causal": False,
    "attention.head_count_kv": HEADS,
    "pooling_type": 1,
}
ENCODER_START: Tensors = [
    ("token_types.weight", (WIDTH, 2)),
    *named(token_embd_norm=WIDTH),
    *biases(token_embd_norm=WIDTH),
]

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "llama": Model(
            parameters={"attention.head_count_kv": 2},
            tensors=[*OUTPUT, *blocks(2, [*attention(), *FEED_FORWARD_TENSORS])],
        ),
        "qwen3": Model(
            parameters={
                "attention.head_count_kv": 4,
                "attention.key_length": 64,  # and not 256 / 8
                "attention.value_length": 64,
            },
            tensors=blocks(
                2,
                [
                    *attention(4, 64, 64),
                    *FEED_FORWARD_TENSORS,
                    *named(attn_q_norm=64, attn_k_norm=64),
                ],
            ),
        ),
        "qwen3moe": Model(
            parameters=EXPERTS | {"attention.head_count_kv": 2},
            tensors=[
                *OUTPUT,
                *blocks(
                    2,
                    [
                        *attention(),
                        *named(ffn_norm=WIDTH, attn_q_norm=32, attn_k_norm=32),
                        *EXPERT_TENSORS,
                    ],
                ),
            ],
        ),
        "openelm": Model(
            parameters={
                "attention.head_count": [HEADS, 4],
                "attention.head_count_kv": [4, 2],
                "feed_forward_length": [FEED_FORWARD] * 2,
            },
            tensors=[
                *blocks(2, [*named(attn_norm=WIDTH, attn_q_norm=32, attn_k_norm=32)]),
                *blocks(2, FEED_FORWARD_TENSORS),
                ("blk.0.attn_qkv.weight", (WIDTH, 16 * 32)),
                ("blk.0.attn_output.weight", (8 * 32, WIDTH)),
                ("blk.1.attn_qkv.weight", (WIDTH, 8 * 32)),
                ("blk.1.attn_output.weight", (4 * 32, WIDTH)),
            ],
        ),
        "deepseek2": Model(  # latent attention: keys alone, one head
            parameters=EXPERTS
            | {
                "attention.head_count_kv": 1,
                "attention.key_length": 64 + 16,
                "attention.value_length": 64,
                "attention.key_length_mla": 48,
                "attention.value_length_mla": 32,
                "attention.kv_lora_rank": 64,
                "attention.q_lora_rank": 64,
                "rope.dimension_count": 16,
                "leading_dense_block_count": 2,
                "expert_shared_count": 1,
            },
            tensors=[
                *OUTPUT,
                *blocks(
                    2,
                    [
                        *named(attn_norm=WIDTH, attn_q_a_norm=64, attn_kv_a_norm=64),
                        ("attn_q_a.weight", (WIDTH, 64)),
                        ("attn_q_b.weight", (64, HEADS * 48)),
                        ("attn_kv_a_mqa.weight", (WIDTH, 64 + 16)),
                        ("attn_k_b.weight", (32, 64, HEADS)),
                        ("attn_v_b.weight", (64, 32, HEADS)),
                        ("attn_output.weight", (HEADS * 32, WIDTH)),
                        *FEED_FORWARD_TENSORS,
                    ],
                ),
            ],
        ),
        "gemma2": Model(  # every second layer has a window, of 4096 tokens unless told
            parameters={"attention.head_count_kv": 2},
            tensors=blocks(
                2,
                [
                    *attention(),
                    *FEED_FORWARD_TENSORS,
                    *named(post_attention_norm=WIDTH, post_ffw_norm=WIDTH),
                ],
            ),
        ),
        "gemma3": Model(  # the sixth of six layers has none
            layers=10,
            parameters={"attention.head_count_kv": 2, "attention.sliding_window": 512},
            tensors=blocks(
                10,
                [
                    *attention(),
                    *FEED_FORWARD_TENSORS,
                    *named(
                        attn_q_norm=32,
                        attn_k_norm=32,
                        post_attention_norm=WIDTH,
                        post_ffw_norm=WIDTH,
                    ),
                ],
            ),
        ),
        "gpt-oss": Model(
            layers=4,
            parameters=EXPERTS | {"attention.head_count_kv": 2, "attention.sliding_window": 128},
            tensors=[
                *OUTPUT,
                *blocks(
                    4,
                    [
                        *attention(),
                        *named(post_attention_norm=WIDTH, attn_sinks=HEADS),
                        *EXPERT_TENSORS,
                        *biases(
                            attn_output=WIDTH,
                            ffn_gate_inp=8,
                            ffn_gate_exps=(128, 8),
                            ffn_up_exps=(128, 8),
                            ffn_down_exps=(WIDTH, 8),
                        ),
                    ],
                ),
            ],
        ),
        "mimo2": Model(  # the header tells which layers have a window; values are narrower
            layers=3,
            parameters={
                "attention.head_count_kv": [4, 2, 2],
                "attention.key_length": 48,
                "attention.value_length": 32,
                "attention.sliding_window": 128,
                "attention.sliding_window_pattern": [0, 1, 1],
                "expert_feed_forward_length": 128,
            },
            tensors=[
                *OUTPUT,
                *(
                    (f"blk.{number}.{name}", shape)
                    for number, kv_heads in enumerate((4, 2, 2))
                    for name, shape in [*attention(kv_heads, 48, 32), *FEED_FORWARD_TENSORS]
                ),
            ],
        ),
        "bert": Model(
            parameters=ENCODER_PARAMETERS,
            tensors=[
                *ENCODER_START,
                ("position_embd.weight", (WIDTH, 8192)),
                *blocks(2, ENCODER),
            ],
        ),
        "nomic-bert": Model(
            parameters=ENCODER_PARAMETERS,
            tensors=[
                *ENCODER_START,
                *blocks(2, [*ENCODER, ("ffn_gate.weight", (WIDTH, FEED_FORWARD))]),
            ],
        ),
    }
)


MODELS_WITH_STATE: Mapping[str, Model] = MappingProxyType(
    {
        "mamba": Model(  # recurrent: no attention at all
            parameters={
                "ssm.conv_kernel": 4,
                "ssm.inner_size": 2 * WIDTH,
                "ssm.state_size": 16,
                "ssm.time_step_rank": 16,
            },
            tensors=blocks(
                2,
                [
                    *named(attn_norm=WIDTH),
                    ("ssm_in.weight", (WIDTH, 4 * WIDTH)),
                    ("ssm_conv1d.weight", (4, 2 * WIDTH)),
                    *biases(ssm_conv1d=2 * WIDTH, ssm_dt=2 * WIDTH),
                    ("ssm_x.weight", (2 * WIDTH, 16 + 2 * 16)),
                    ("ssm_dt.weight", (16, 2 * WIDTH)),
                    ("ssm_a", (16, 2 * WIDTH)),
                    ("ssm_d", (2 * WIDTH,)),
                    ("ssm_out.weight", (2 * WIDTH, WIDTH)),
                ],
            ),
        ),
        "lfm2": Model(  # hybrid: the first layer keeps state, the second a KV cache
            parameters={"attention.head_count_kv": [0, 2], "shortconv.l_cache": 3},
            tensors=[
                *blocks(2, [*named(attn_norm=WIDTH), *FEED_FORWARD_TENSORS]),
                ("blk.0.shortconv.conv.weight", (3, WIDTH)),
                ("blk.0.shortconv.in_proj.weight", (WIDTH, 3 * WIDTH)),
                ("blk.0.shortconv.out_proj.weight", (WIDTH, WIDTH)),
                *((f"blk.1.{name}", shape) for name, shape in attention()[1:]),
                *((f"blk.1.{name}", shape) for name, shape in named(attn_q_norm=32)),
                *((f"blk.1.{name}", shape) for name, shape in named(attn_k_norm=32)),
            ],
            last_norm="token_embd_norm",
        ),
    }
)
"""Models whose cache no header tells."""


@pytest.fixture
def write_model(write_gguf: Writer) -> Callable[..., Path]:
    """Write a model of MODELS (or MODELS_WITH_STATE).

    Further parameters go before its own; `shards` makes it so many files.
    """

    def write(architecture: str, *, shards: int = 1, **parameters: Any) -> Path:
        model = MODELS.get(architecture) or MODELS_WITH_STATE[architecture]
        usual = {
            "block_count": model.layers,
            "context_length": 8192,
            "embedding_length": WIDTH,
            "feed_forward_length": FEED_FORWARD,
            "attention.head_count": HEADS,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "vocab_size": VOCABULARY,
        }
        embeddings: Tensors = [("token_embd.weight", (WIDTH, VOCABULARY))]
        if "attention.causal" not in model.parameters:
            embeddings += named(**{model.last_norm: WIDTH})
        told = {**usual, **model.parameters, **parameters}
        tensors = embeddings + model.tensors
        if shards == 1:
            return write_gguf(architecture, told, tensors)
        paths = []
        for number in range(shards):
            split = {
                ".split.no": np.uint16(number),
                ".split.count": np.uint16(shards),
                ".split.tensors.count": np.int32(len(tensors)),
            }
            paths.append(
                write_gguf(
                    architecture,
                    (told if number == 0 else {}) | split,
                    tensors[number::shards],
                    file_name=f"model-{number + 1:05d}-of-{shards:05d}.gguf",
                )
            )
        return paths[0]

    return write


@pytest.fixture(params=MODELS)
def each_architecture(request: pytest.FixtureRequest) -> str:
    """The name of each model that `write_model` knows, one after the other."""
    return str(request.param)
