"""Layers on several GPUs: what each takes, and that together they make the whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.core.sizing.estimate import MemoryEstimate, MemorySettings, estimate_memory
from supervisor.core.sizing.gguf import GgufHeader, read_header
from supervisor.core.sizing.tensor_parts import TensorSummary
from tests.core.sizing.test_partial_offload import copied_bytes

SETTINGS = MemorySettings(ctx_size_per_slot=4096, parallel=2)
LAYER_BYTES, OUTPUT_BYTES, INPUT_BYTES = 1000, 70, 3


def model_of(layers: int) -> GgufHeader:
    """A header whose layers all take the same; its output has weights of its own."""
    summary = TensorSummary(
        count=layers + 2,
        total_bytes=layers * LAYER_BYTES + OUTPUT_BYTES + INPUT_BYTES,
        types={"F16": layers + 2},
        layer_bytes=dict.fromkeys(range(layers), LAYER_BYTES),
        output_bytes=OUTPUT_BYTES,
        has_output_weights=True,
    )
    numbers = {"block_count": layers, "attention.head_count": 2, "embedding_length": 64}
    return GgufHeader(
        version=3,
        architecture="llama",
        name="",
        metadata=MappingProxyType({f"llama.{name}": n for name, n in numbers.items()}),
        array_lengths={},
        tensors=summary,
        alignment=32,
        data_offset=0,
        split_count=1,
        split_no=0,
    )


def parts_of(
    header: GgufHeader, split: tuple[float, ...], gpu_layers: int | None = None
) -> list[MemoryEstimate]:
    settings = replace(SETTINGS, tensor_split=split, gpu_layers=gpu_layers)
    return [estimate_memory([header], replace(settings, part=n)) for n in range(len(split))]


def layers_of(parts: list[MemoryEstimate]) -> list[int]:
    return [part.weights_bytes // LAYER_BYTES for part in parts]


def test_gpus_together_take_the_whole_model_for_each_architecture(
    write_model: Callable[..., Path], each_architecture: str
) -> None:
    path = write_model(each_architecture)
    header = read_header(path.read_bytes(), file_size=path.stat().st_size)
    whole = estimate_memory([header], SETTINGS)

    first, second = parts_of(header, (1, 1))

    in_host_memory = header.tensors.input_bytes - copied_bytes(header)
    assert first.weights_bytes + second.weights_bytes == whole.weights_bytes - in_host_memory
    assert first.kv_bytes + second.kv_bytes == whole.kv_bytes
    assert first.host_bytes == second.host_bytes == 0


@pytest.mark.parametrize(
    ("layers", "split", "expected"),
    [
        (31, (1, 1), [16, 15]),  # and the output: 16 each
        (32, (1, 1), [17, 15]),  # of 33, the one in the middle goes to the first
        (32, (3, 1), [25, 7]),
        (32, (1, 1, 1), [11, 11, 10]),
        (3, (100, 1), [3, 0]),
        (32, (0.1, 0.2, 0.7), [4, 6, 22]),
    ],
)
def test_layers_go_to_the_gpus_in_their_order_and_the_output_to_the_last(
    layers: int, split: tuple[float, ...], expected: list[int]
) -> None:
    """As llama.cpp assigns them: layer n of all on GPUs to the first whose share ends behind it."""
    parts = parts_of(model_of(layers), split)
    assert layers_of(parts) == expected
    outputs = [part.weights_bytes % LAYER_BYTES for part in parts]
    has_output = len(split) - 1 if (layers, split) != (3, (100, 1)) else 0
    wanted = [0] * len(split)
    wanted[0] += INPUT_BYTES
    wanted[has_output] += OUTPUT_BYTES
    assert outputs == wanted


def test_layers_in_host_memory_are_not_divided() -> None:
    """Of 33 with the output, 13 stay; the GPUs divide the other 20."""
    first, second = parts_of(model_of(32), (1, 1), gpu_layers=20)
    assert layers_of([first, second]) == [10, 9]
    assert first.host_bytes == second.host_bytes > 13 * LAYER_BYTES


def test_what_is_not_known_by_layers_is_divided_by_the_shares() -> None:
    header = replace(model_of(8), tensors=TensorSummary(count=9, total_bytes=4000, types={}))
    assert [part.weights_bytes for part in parts_of(header, (3, 1))] == [3000, 1000]

    recurrent = replace(
        model_of(8),
        architecture="mamba",
        metadata={"mamba.block_count": 8, "mamba.context_length": 4096},
    )
    first, second = parts_of(recurrent, (3, 1))
    assert first.kv_bytes == 3 * second.kv_bytes
    assert first.kv_bytes + second.kv_bytes == SETTINGS.kv_fallback_bytes


@given(
    layers=st.integers(1, 130),
    split=st.lists(st.floats(0.125, 100, width=32), min_size=2, max_size=8).map(tuple),
    on_gpus=st.integers(0, 140),
)
def test_every_layer_is_on_one_gpu_or_in_host_memory(
    layers: int, split: tuple[float, ...], on_gpus: int
) -> None:
    parts = parts_of(model_of(layers), split, on_gpus)
    stay = max(0, layers + 1 - on_gpus)
    assert sum(layers_of(parts)) == layers - min(stay, layers)
    has_output = [part.weights_bytes % LAYER_BYTES >= OUTPUT_BYTES for part in parts]
    assert sum(has_output) == (1 if on_gpus else 0)
