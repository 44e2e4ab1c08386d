"""Layers that stay in host memory: what is on the GPU, and what is not, make the whole."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.estimate import MemoryEstimate, MemorySettings, estimate_memory
from supervisor.core.sizing.gguf import GgufHeader, read_header
from tests.core.sizing.small_models import VOCABULARY, WIDTH
from tests.core.sizing.test_estimate_against_server import start_server

Writer = Callable[..., Path]
SETTINGS = MemorySettings(ctx_size_per_slot=4096, parallel=2)
EMBEDDING_BYTES = WIDTH * VOCABULARY * 2  # f16, as write_model writes it


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def copied_bytes(header: GgufHeader) -> int:
    """What a GPU has once more: the embeddings, where the output uses them; encoders have none."""
    is_encoder = header.architecture in {"bert", "nomic-bert"}
    return 0 if header.tensors.has_output_weights or is_encoder else EMBEDDING_BYTES


def with_layers(headers: list[GgufHeader], gpu_layers: int | None) -> MemoryEstimate:
    return estimate_memory(headers, replace(SETTINGS, gpu_layers=gpu_layers))


def test_parts_make_the_whole_for_each_architecture(
    write_model: Writer, each_architecture: str
) -> None:
    header = read(write_model(each_architecture))
    layers = header.count_parameter("block_count") or 0
    whole = with_layers([header], None)
    assert whole.host_bytes == 0
    assert with_layers([header], layers + 1) == whole

    on_gpu = []
    for gpu_layers in range(layers + 1):
        part = with_layers([header], gpu_layers)
        copied = copied_bytes(header) if gpu_layers else 0
        assert (
            part.weights_bytes + part.kv_bytes + part.host_bytes - part.compute_bytes
            == whole.weights_bytes + whole.kv_bytes + copied
        )
        on_gpu.append(part.total_bytes)
    assert on_gpu == sorted(on_gpu)
    assert on_gpu[0] == whole.compute_bytes


@pytest.mark.parametrize(("architecture", "is_own"), [("llama", True), ("qwen3", False)])
def test_output_is_the_first_layer_that_a_gpu_takes(
    write_model: Writer, architecture: str, is_own: bool
) -> None:
    """Where it uses the input's embeddings they are on either side."""
    header = read(write_model(architecture))
    assert header.tensors.has_output_weights is is_own
    per_layer = {*header.tensors.layer_bytes.values()}
    assert len(per_layer) == 1

    one, two = (with_layers([header], layers) for layers in (1, 2))

    assert one.kv_bytes == 0
    assert one.weights_bytes == header.tensors.output_bytes + (0 if is_own else EMBEDDING_BYTES)
    assert two.weights_bytes - one.weights_bytes == per_layer.pop()
    assert two.kv_bytes == with_layers([header], None).kv_bytes / 2


def test_shards_are_divided_as_the_whole_model_is(write_model: Writer) -> None:
    whole = [read(write_model("llama"))]
    first = write_model("llama", shards=3)
    shards = [read(path) for path in sorted(first.parent.glob("model-*.gguf"))]
    assert len(shards) == 3

    for gpu_layers in (0, 1, 2, 3):
        assert with_layers(shards, gpu_layers) == with_layers(whole, gpu_layers)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3moe"])
def test_all_parts_together_are_what_the_server_takes_without_a_gpu(
    write_model: Writer, llama_server_bin: Path, architecture: str
) -> None:
    path = write_model(architecture)
    printed = start_server(llama_server_bin, path, SETTINGS)

    part = with_layers([read(path)], 1)

    copied = 0 if read(path).tensors.has_output_weights else EMBEDDING_BYTES
    parts = part.weights_bytes + part.kv_bytes + part.host_bytes - part.compute_bytes - copied
    assert parts / MIB == pytest.approx(printed.weights + printed.kv, rel=0.01, abs=0.04)
