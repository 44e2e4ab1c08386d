"""Estimating memory, against the sizes that the native llama-server prints for the same file."""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.gguf import GgufHeader, MetadataValue, TensorSummary, read_header
from supervisor.core.memory import MIB
from supervisor.core.need import MemoryNeed, NeedSettings, estimate_need, is_embedding_model
from supervisor.errors import ConfigError

Writer = Callable[..., Path]
Tensors = list[tuple[str, tuple[int, ...]]]

WIDTH, HEADS, FEED_FORWARD, VOCABULARY = 256, 8, 1024, 5000


@dataclass(frozen=True, kw_only=True)
class Model:
    """A small model: what its header says beside the usual, and tensors that fit to it."""

    layers: int = 2
    parameters: Mapping[str, Any]
    tensors: Tensors


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
            layers=7,
            parameters={"attention.head_count_kv": 2, "attention.sliding_window": 512},
            tensors=blocks(
                7,
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
            layers=3,
            parameters=EXPERTS | {"attention.head_count_kv": 2, "attention.sliding_window": 128},
            tensors=[
                *OUTPUT,
                *blocks(
                    3,
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


@pytest.fixture
def write_model(write_gguf: Writer) -> Callable[..., Path]:
    """Write a model of MODELS, with further parameters that go before its own."""

    def write(architecture: str, **parameters: Any) -> Path:
        model = MODELS[architecture]
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
            embeddings += named(output_norm=WIDTH)
        return write_gguf(
            architecture, {**usual, **model.parameters, **parameters}, embeddings + model.tensors
        )

    return write


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What a server prints of its buffers, in MiB."""

    weights: float
    kv: float
    compute: float
    output: float


def start_server(binary: Path, model: Path, settings: NeedSettings) -> Printed:
    """Start llama-server until it has told the sizes of its buffers, and stop it then."""
    slots = 1 if settings.kv_unified else settings.parallel
    flags: Mapping[str, object] = {
        "--model": model,
        "--ctx-size": settings.ctx_size_per_slot * slots,
        "--parallel": settings.parallel,
        "--batch-size": settings.ubatch_size,
        "--ubatch-size": settings.ubatch_size,
        "--cache-type-k": settings.cache_type_k,
        "--cache-type-v": settings.cache_type_v,
        "--flash-attn": "on" if settings.flash_attention else "off",
        "--host": model.with_name("s.sock"),
        "--fit": "off",
        "-lv": 4,
    }
    switches = ["--kv-unified" if settings.kv_unified else "--no-kv-unified", "--no-warmup"]
    if settings.is_embedding:
        switches.append("--embeddings")
    words = [str(word) for flag in flags.items() for word in flag]
    sizes: Counter[str] = Counter()
    log = []
    with subprocess.Popen(
        [binary, *words, *switches],
        stderr=subprocess.PIPE,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": os.environ["PATH"]},
    ) as server:
        watchdog = Timer(60, server.kill)
        watchdog.start()
        assert server.stderr is not None
        for line in server.stderr:
            log.append(line)
            if found := re.search(r"(\w+) buffer size = +([\d.]+) MiB", line):
                sizes[found[1]] += float(found[2])  # type: ignore[assignment]
            if "reserve took" in line:
                break
        watchdog.cancel()
        server.kill()
    assert "reserve took" in log[-1], "".join(log[-10:])
    return Printed(
        weights=sizes["model"], kv=sizes["KV"], compute=sizes["compute"], output=sizes["output"]
    )


def assert_close(need: MemoryNeed, printed: Printed) -> None:
    """Weights and cache are exact but for rounding; compute is bounded, and not out of reach."""
    assert need.weights_bytes / MIB == pytest.approx(printed.weights, rel=0.01, abs=0.02)
    assert need.kv_bytes / MIB == pytest.approx(printed.kv, rel=0.01, abs=0.02)
    assert printed.compute <= need.compute_bytes / MIB
    assert need.total_bytes == need.weights_bytes + need.kv_bytes + need.compute_bytes


@pytest.mark.parametrize("architecture", MODELS)
def test_estimate_agrees_with_the_server_for_each_architecture(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str
) -> None:
    path = write_model(architecture)
    settings = NeedSettings(
        ctx_size_per_slot=6000,
        parallel=4,  # a divisor of the micro-batch: this build aborts for encoders otherwise
        kv_unified=True,
        is_embedding=is_embedding_model(read(path)),
    )

    need = estimate_need([read(path)], settings)

    assert_close(need, start_server(llama_server_bin, path, settings))


SETTINGS: Mapping[str, NeedSettings] = MappingProxyType(
    {
        "the model's own context": NeedSettings(),
        "own context, shared by separate slots": NeedSettings(parallel=3),
        "cells are padded": NeedSettings(ctx_size_per_slot=1000, parallel=3),
        "one pool": NeedSettings(ctx_size_per_slot=7000, parallel=3, kv_unified=True),
        "large micro-batch": NeedSettings(ctx_size_per_slot=8192, ubatch_size=2048),
        "micro-batch above the context": NeedSettings(ctx_size_per_slot=256, ubatch_size=512),
        "quantised": NeedSettings(
            ctx_size_per_slot=4096, parallel=2, cache_type_k="q8_0", cache_type_v="q4_0"
        ),
        "unlike types": NeedSettings(
            ctx_size_per_slot=4096, cache_type_k="f32", cache_type_v="bf16"
        ),
        "without flash attention": NeedSettings(
            ctx_size_per_slot=4096, parallel=2, flash_attention=False
        ),
    }
)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "mimo2"])
@pytest.mark.parametrize("case", SETTINGS)
def test_estimate_agrees_with_the_server_for_each_setting(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str, case: str
) -> None:
    path = write_model(architecture)

    need = estimate_need([read(path)], SETTINGS[case])

    printed = start_server(llama_server_bin, path, SETTINGS[case])
    assert_close(need, printed)
    assert need.host_output_bytes / MIB == pytest.approx(printed.output, rel=0.1, abs=0.02)


@pytest.mark.parametrize("name", ["minilm", "bench-chat", "demo-chat"])
def test_estimate_agrees_with_the_server_for_the_demo_models(
    models_dir: Path, tmp_path: Path, llama_server_bin: Path, name: str
) -> None:
    path = tmp_path / f"{name}.gguf"
    path.symlink_to(models_dir / path.name)
    header = read(path)
    settings = NeedSettings(
        ctx_size_per_slot=512, parallel=2, is_embedding=is_embedding_model(header)
    )

    need = estimate_need([header], settings)

    assert_close(need, start_server(llama_server_bin, path, settings))


@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_compute_bound_for_embedding_is_near_what_the_server_takes(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str
) -> None:
    """A qwen3 computes logits for every token, which is most of it; an encoder computes none."""
    path = write_model(architecture, pooling_type=3 if architecture == "qwen3" else 1)
    settings = NeedSettings(
        ctx_size_per_slot=8192,
        parallel=8,
        kv_unified=True,
        ubatch_size=4096,
        is_embedding=True,
    )

    need = estimate_need([read(path)], settings)

    printed = start_server(llama_server_bin, path, settings)
    assert printed.compute <= need.compute_bytes / MIB <= 3 * printed.compute


def test_room_for_results_grows_with_the_vocabulary_and_the_batch_when_embedding(
    write_model: Callable[..., Path],
) -> None:
    header = read(write_model("bert"))
    chat = NeedSettings(parallel=2, ubatch_size=2048)
    embedding = NeedSettings(parallel=2, ubatch_size=2048, is_embedding=True)

    assert estimate_need([header], chat).host_output_bytes == 2 * (VOCABULARY + WIDTH) * 4
    assert estimate_need([header], embedding).host_output_bytes == 2048 * (VOCABULARY + WIDTH) * 4


def test_weights_of_all_shards_count(write_model: Callable[..., Path]) -> None:
    header = read(write_model("llama"))
    need = estimate_need([header], NeedSettings())

    sharded = estimate_need([header, header, header], NeedSettings())

    assert sharded.weights_bytes == 3 * need.weights_bytes
    assert sharded.kv_bytes == need.kv_bytes


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("mamba", "'mamba' keeps recurrent state"),
        ("qwen3next", "'qwen3next' keeps recurrent state"),
        ("glm-dsa", "'glm-dsa' has a cache of its own kind"),
    ],
)
def test_cache_that_cannot_be_told_is_assumed_and_the_reason_given(
    architecture: str, reason: str
) -> None:
    header = header_of(architecture, block_count=2, context_length=512)

    need = estimate_need([header], NeedSettings(kv_fallback_bytes=3 * 1024 * MIB))

    assert need.kv_bytes == 3 * 1024 * MIB
    assert f"KV cache 3.0 GiB assumed, because architecture {reason}" in need.explanation


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"block_count": 2, "context_length": 512}, "attention heads"),
        ({"attention.head_count": 4, "context_length": 512}, "no believable block count (0)"),
        (
            {"block_count": 10**9, "attention.head_count": 4, "context_length": 512},
            "no believable block count (1000000000)",
        ),
        ({"block_count": 2, "attention.head_count": 4}, "context is told nowhere"),
    ],
)
def test_cache_is_assumed_where_the_header_lacks_what_decides_it(
    parameters: Mapping[str, Any], reason: str
) -> None:
    need = estimate_need([header_of("llama", **parameters)], NeedSettings(kv_fallback_bytes=7))

    assert need.kv_bytes == 7
    assert reason in need.explanation


def test_layers_for_prediction_have_no_cache(write_model: Callable[..., Path]) -> None:
    own = estimate_need([read(write_model("llama"))], NeedSettings())
    predicting = estimate_need([read(write_model("llama", nextn_predict_layers=1))], NeedSettings())

    assert predicting.kv_bytes == own.kv_bytes / 2


@pytest.mark.parametrize(
    ("architecture", "shared", "kept"), [("gemma3n", 0, 20), ("gemma4", 10, 15), ("gemma4", 0, 25)]
)
def test_layers_that_look_into_the_cache_of_earlier_ones_have_none(
    architecture: str, shared: int, kept: int
) -> None:
    header = header_of(
        architecture,
        **{
            "block_count": 25,
            "context_length": 1024,
            "embedding_length": 256,
            "attention.head_count": 4,
            "attention.shared_kv_layers": shared,
        },
    )

    assert estimate_need([header], NeedSettings()).kv_bytes == kept * 1024 * 256 * 2 * 2


def test_explanation_tells_all_parts(write_model: Callable[..., Path]) -> None:
    settings = NeedSettings(ctx_size_per_slot=2048, parallel=2, cache_type_k="q8_0")

    explanation = estimate_need([read(write_model("gemma3"))], settings).explanation

    assert re.fullmatch(
        r"[\d.]+ MiB: weights [\d.]+ MiB; KV cache [\d.]+ MiB \(2 × 2048 cells, 7 layers, "
        r"6 of them with 1024 cells, q8_0/f16\); compute at most [\d.]+ MiB",
        explanation,
    )


def test_unknown_cache_type_is_refused(write_model: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="cache_type_v: there is no type 'q9_9'"):
        estimate_need([read(write_model("llama"))], NeedSettings(cache_type_v="q9_9"))


@pytest.mark.parametrize(
    ("architecture", "pooling_type", "is_embedding"),
    [
        ("llama", None, False),
        ("qwen3", 0, False),
        ("qwen3", 3, True),
        ("qwen3", 4, True),
        ("bert", None, True),
        ("gemma-embedding", None, True),
        ("llama-embed", None, True),
    ],
)
def test_embedding_models_are_told_by_architecture_or_pooling(
    architecture: str, pooling_type: int | None, is_embedding: bool
) -> None:
    told = {} if pooling_type is None else {"pooling_type": pooling_type}

    assert is_embedding_model(header_of(architecture, **told)) is is_embedding


def header_of(architecture: str, **parameters: MetadataValue) -> GgufHeader:
    """A header that no file need hold."""
    return GgufHeader(
        version=3,
        architecture=architecture,
        name="",
        metadata={f"{architecture}.{name}": value for name, value in parameters.items()},
        array_lengths={},
        tensors=TensorSummary(count=0, total_bytes=0, types={}),
        alignment=32,
        data_offset=0,
        split_count=1,
        split_no=0,
    )


values: st.SearchStrategy[MetadataValue] = (
    st.integers(-(2**63), 2**64)
    | st.integers(0, 600)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(-1, 600) | st.floats(), max_size=4).map(tuple)
)
names = st.sampled_from(
    [
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.key_length_mla",
        "attention.shared_kv_layers",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attention.value_length_mla",
        "block_count",
        "context_length",
        "embedding_length",
        "expert_used_count",
        "feed_forward_length",
        "nextn_predict_layers",
        "pooling_type",
        "vocab_size",
    ]
)


@given(
    architecture=st.sampled_from(["llama", "gemma3", "gemma4", "exaone4", "bert", "mamba", "?"]),
    parameters=st.dictionaries(names, values, min_size=3),
    parallel=st.integers(1, 9),
)
def test_no_header_breaks_the_estimate(
    architecture: str, parameters: dict[str, MetadataValue], parallel: int
) -> None:
    header = header_of(architecture, **parameters)

    need = estimate_need([header], NeedSettings(parallel=parallel))

    assert min(need.weights_bytes, need.kv_bytes, need.compute_bytes, need.host_output_bytes) >= 0
    assert is_embedding_model(header) in {True, False}
