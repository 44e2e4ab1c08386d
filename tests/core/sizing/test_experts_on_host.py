"""Experts that stay in host memory (`--cpu-moe`, `--n-cpu-moe`): what a GPU takes without them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.sizing.estimate import MemoryEstimate, MemorySettings, estimate_memory
from supervisor.core.sizing.gguf import GgufHeader, read_header
from tests.core.sizing.small_models import WIDTH

Writer = Callable[..., Path]
SETTINGS = MemorySettings(ctx_size_per_slot=4096, parallel=2, is_gpu=True)
TENSOR_BYTES = 8 * 128 * WIDTH * 2  # f16: gate, up or down of eight experts
LAYER_BYTES = 3 * TENSOR_BYTES


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def estimate(header: GgufHeader, **settings: int | bool | tuple[float, ...]) -> MemoryEstimate:
    return estimate_memory([header], replace(SETTINGS, **settings))  # type: ignore[arg-type]


@pytest.fixture
def header(write_model: Writer) -> GgufHeader:
    """A model of two layers with experts."""
    return read(write_model("qwen3moe"))


@pytest.mark.parametrize(("on_host", "layers"), [(0, 0), (1, 1), (2, 2), (1000, 2)])
def test_experts_of_the_first_layers_are_in_host_memory(
    header: GgufHeader, on_host: int, layers: int
) -> None:
    whole = estimate(header)
    part = estimate(header, host_expert_layers=on_host)

    assert part.weights_bytes == whole.weights_bytes - layers * LAYER_BYTES
    assert part.kv_bytes == whole.kv_bytes
    host_compute_bytes = whole.compute_bytes if layers else 0
    assert part.host_bytes == layers * LAYER_BYTES + host_compute_bytes
    assert ("experts of" in part.explanation) is (layers > 0)


def test_a_gpu_has_room_for_the_largest_tensor_that_it_is_handed(header: GgufHeader) -> None:
    """A batch of 32 tokens and more is computed there, with one tensor after the other."""
    beside_bytes = estimate(header).compute_bytes

    part = estimate(header, host_expert_layers=2)

    assert part.compute_bytes == beside_bytes + TENSOR_BYTES


def test_layers_in_host_memory_have_their_experts_there_already(header: GgufHeader) -> None:
    without, both = (estimate(header, gpu_layers=2, host_expert_layers=count) for count in (0, 1))
    assert both == without
    assert estimate(header, gpu_layers=2, host_expert_layers=2) != without


def test_each_of_several_gpus_is_without_the_experts_of_its_layers(header: GgufHeader) -> None:
    split = (1.0, 1.0)
    whole, part = (
        [
            estimate(header, tensor_split=split, part=gpu, host_expert_layers=count).weights_bytes
            for gpu in (0, 1)
        ]
        for count in (0, 2)
    )
    assert sum(whole) - sum(part) == 2 * LAYER_BYTES


def test_on_the_host_it_changes_nothing(header: GgufHeader) -> None:
    on_host = estimate(header, is_gpu=False)
    assert estimate(header, is_gpu=False, host_expert_layers=2) == on_host


def test_a_model_without_experts_is_the_same(write_model: Writer) -> None:
    dense = read(write_model("llama"))
    assert estimate(dense, host_expert_layers=2) == estimate(dense)
