"""Small models of many architectures: real headers, and a hole where tensor data would be."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.core.sizing.small_models import (
    FEED_FORWARD,
    HEADS,
    MODELS,
    MODELS_WITH_STATE,
    VOCABULARY,
    WIDTH,
    Shape,
    Tensors,
    named,
)

Writer = Callable[..., Path]

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
