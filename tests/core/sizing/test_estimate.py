"""Estimating memory: from the header and the settings alone, and whatever they say."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.estimate import MemorySettings, estimate_memory, is_embedding_model
from supervisor.core.sizing.gguf import GgufHeader, MetadataValue, read_header
from supervisor.core.sizing.tensor_parts import TensorSummary

WIDTH, VOCABULARY = 256, 20_000  # of the models that conftest.py writes


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def test_room_for_results_grows_with_the_vocabulary_and_the_batch_when_embedding(
    write_model: Callable[..., Path],
) -> None:
    header = read(write_model("bert"))
    chat = MemorySettings(parallel=2, ubatch_size=2048)
    embedding = MemorySettings(parallel=2, ubatch_size=2048, is_embedding=True)

    assert estimate_memory([header], chat).host_output_bytes == 2 * (VOCABULARY + WIDTH) * 4
    assert estimate_memory([header], embedding).host_output_bytes == 2048 * (VOCABULARY + WIDTH) * 4


def test_weights_of_all_shards_count(write_model: Callable[..., Path]) -> None:
    header = read(write_model("llama"))
    need = estimate_memory([header], MemorySettings())

    sharded = estimate_memory([header, header, header], MemorySettings())

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

    need = estimate_memory([header], MemorySettings(kv_fallback_bytes=3 * 1024 * MIB))

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
        ({"block_count": 2, "attention.head_count": 4}, "the length of its context is not known"),
    ],
)
def test_cache_is_assumed_where_the_header_lacks_what_decides_it(
    parameters: Mapping[str, Any], reason: str
) -> None:
    need = estimate_memory([header_of("llama", **parameters)], MemorySettings(kv_fallback_bytes=7))

    assert need.kv_bytes == 7
    assert reason in need.explanation


def test_layers_for_prediction_have_no_cache(write_model: Callable[..., Path]) -> None:
    own = estimate_memory([read(write_model("llama"))], MemorySettings())
    predicting = estimate_memory(
        [read(write_model("llama", nextn_predict_layers=1))], MemorySettings()
    )

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

    assert estimate_memory([header], MemorySettings()).kv_bytes == kept * 1024 * 256 * 2 * 2


def test_explanation_tells_all_parts(write_model: Callable[..., Path]) -> None:
    settings = MemorySettings(ctx_size_per_slot=2048, parallel=2, cache_type_k="q8_0")

    explanation = estimate_memory([read(write_model("gemma3"))], settings).explanation

    assert re.fullmatch(
        r"[\d.]+ MiB: weights [\d.]+ MiB; KV cache [\d.]+ MiB \(2 × 2048 cells, 10 layers, "
        r"9 of them with 1024 cells, q8_0/f16\); compute at most [\d.]+ MiB",
        explanation,
    )


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

    need = estimate_memory([header], MemorySettings(parallel=parallel))

    assert min(need.weights_bytes, need.kv_bytes, need.compute_bytes, need.host_output_bytes) >= 0
    assert is_embedding_model(header) in {True, False}
