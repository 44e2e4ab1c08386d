"""What the headers of small models say, architecture by architecture, and which tensors fit."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Shape = tuple[int, ...]
Tensors = list[tuple[str, Shape]]

WIDTH, HEADS, FEED_FORWARD, VOCABULARY = 256, 8, 1024, 20_000


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
