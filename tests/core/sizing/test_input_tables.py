"""The tables that tokens are looked up in never take a GPU's memory."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.sizing.estimate import MemoryEstimate, MemorySettings, estimate_memory
from supervisor.core.sizing.gguf import GgufHeader, read_header
from tests.core.sizing.small_models import VOCABULARY, WIDTH
from tests.core.sizing.test_partial_offload import copied_bytes

Writer = Callable[..., Path]
SETTINGS = MemorySettings(ctx_size_per_slot=4096, parallel=2)
LAYERS, PER_LAYER = 3, 16
EMBEDDING_BYTES = WIDTH * VOCABULARY * 2
PER_LAYER_BYTES = LAYERS * PER_LAYER * VOCABULARY * 2


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def on_gpu(header: GgufHeader, gpu_layers: int | None = None) -> MemoryEstimate:
    return estimate_memory([header], replace(SETTINGS, is_gpu=True, gpu_layers=gpu_layers))


@pytest.fixture
def e_model(write_gguf: Writer) -> GgufHeader:
    """A model like Gemma 3n: each layer has embeddings of its own; the output has no weights."""
    numbers = {
        "block_count": LAYERS,
        "context_length": 4096,
        "embedding_length": WIDTH,
        "attention.head_count": 2,
    }
    tensors = [
        ("token_embd.weight", (WIDTH, VOCABULARY)),
        ("per_layer_token_embd.weight", (LAYERS * PER_LAYER, VOCABULARY)),
        *((f"blk.{number}.ffn_up.weight", (WIDTH, WIDTH)) for number in range(LAYERS)),
    ]
    return read(write_gguf("gemma4", numbers, tensors))


def test_embeddings_of_layers_stay_in_pages_of_the_file(e_model: GgufHeader) -> None:
    need = on_gpu(e_model)
    assert need.weights_bytes == e_model.tensors.total_bytes - PER_LAYER_BYTES
    assert need.host_bytes == 0


def test_embeddings_of_layers_count_once_where_layers_stay_there_too(e_model: GgufHeader) -> None:
    none, one = (on_gpu(e_model, gpu_layers) for gpu_layers in (0, 1))
    assert none.host_bytes - none.compute_bytes - none.kv_bytes >= e_model.tensors.total_bytes
    assert one.weights_bytes == EMBEDDING_BYTES
    assert none.host_bytes == one.host_bytes


def test_of_several_gpus_none_takes_the_tables(e_model: GgufHeader) -> None:
    parts = [
        estimate_memory(
            [e_model], replace(SETTINGS, is_gpu=True, tensor_split=(1.0, 1.0), part=part)
        )
        for part in (0, 1)
    ]
    assert sum(part.weights_bytes for part in parts) == (
        e_model.tensors.total_bytes - PER_LAYER_BYTES
    )
    assert [part.host_bytes for part in parts] == [0, 0]


def test_on_the_host_all_of_it_counts(e_model: GgufHeader) -> None:
    need = estimate_memory([e_model], SETTINGS)
    assert (need.weights_bytes, need.host_bytes) == (e_model.tensors.total_bytes, 0)


def test_a_gpu_takes_embeddings_only_for_an_output_that_uses_them(
    write_model: Writer, each_architecture: str
) -> None:
    header = read(write_model(each_architecture))
    expected = header.tensors.total_bytes - header.tensors.input_bytes + copied_bytes(header)
    assert on_gpu(header).weights_bytes == expected
    assert on_gpu(header).host_bytes == 0


def test_minilm_takes_what_it_was_seen_to_take(models_dir: Path) -> None:
    """20.4 MiB on an H100; the file has 43.5 MiB."""
    with (models_dir / "minilm.gguf").open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        header = read_header(file.read(), file_size=size)
    assert on_gpu(header).weights_bytes / 2**20 == pytest.approx(20.4, abs=0.1)
