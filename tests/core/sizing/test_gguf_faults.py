"""Faults that a header shows: each is one for which the real server ends, and no sound one is."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.core.sizing.gguf import GgufHeader, read_header
from supervisor.core.sizing.gguf_faults import find_fault

Writer = Callable[..., Path]


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def loads(binary: Path, model: Path) -> bool:
    """Whether llama-server gets as far as listening; what refuses a model ends it."""
    words = ["--model", model, "--host", model.with_name("s.sock"), "--ctx-size", "256"]
    with subprocess.Popen(
        [binary, *map(str, words), "--no-warmup"],
        stderr=subprocess.PIPE,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": ""},
    ) as server:
        assert server.stderr is not None
        is_loaded = any("model loaded" in line for line in server.stderr)
        server.kill()
    return is_loaded


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"context_length": "8192"}, "llama.context_length must be a whole number, not '8192'"),
        ({"embedding_length": 2.5}, "llama.embedding_length must be a whole number, not 2.5"),
        ({"block_count": "two"}, "llama.block_count must be a whole number, not 'two'"),
        ({"block_count": 0}, "llama.block_count is 0"),
        ({"block_count": 513}, "513 layers, more than 512"),
        ({"attention.head_count": 0}, "llama.attention.head_count is 0"),
        ({"attention.head_count": "4"}, "attention.head_count must be a whole number, not '4'"),
    ],
)
def test_fault_is_named_and_the_server_does_not_load_it(
    write_model: Writer, llama_server_bin: Path, parameters: dict[str, Any], fault: str
) -> None:
    path = write_model("llama", **parameters)

    assert fault in str(find_fault([read(path)]))
    assert not loads(llama_server_bin, path)


@pytest.mark.parametrize("missing", ["context_length", "embedding_length", "block_count"])
def test_missing_size_is_a_fault(write_gguf: Writer, llama_server_bin: Path, missing: str) -> None:
    sizes = {"context_length": 512, "embedding_length": 64, "block_count": 1}
    kept = {name: value for name, value in sizes.items() if name != missing}
    path = write_gguf("llama", kept, [("token_embd.weight", (64, 32))])

    assert f"lacks llama.{missing}" in str(find_fault([read(path)]))
    assert not loads(llama_server_bin, path)


def test_file_without_tensors_is_a_fault(write_gguf: Writer, llama_server_bin: Path) -> None:
    sizes = {"context_length": 512, "embedding_length": 64, "block_count": 1}
    path = write_gguf("llama", sizes, [])

    assert "no tensors" in str(find_fault([read(path)]))
    assert not loads(llama_server_bin, path)


@pytest.mark.parametrize(
    ("key", "fault"),
    [(b"tokenizer.ggml.model", "no tokenizer"), (b"tokenizer.ggml.tokens", "no vocabulary")],
)
def test_file_without_a_tokenizer_is_a_fault(
    models_dir: Path, llama_server_bin: Path, tmp_path: Path, key: bytes, fault: str
) -> None:
    path = tmp_path / "mute.gguf"
    whole = (models_dir / "demo-chat.gguf").read_bytes()
    path.write_bytes(whole)
    assert loads(llama_server_bin, path)
    path.write_bytes(whole.replace(key, key.replace(b"ggml", b"gone")))

    assert fault in str(find_fault([read(path)]))
    assert not loads(llama_server_bin, path)


def test_no_architecture_is_taken_for_faulty(write_model: Writer, each_architecture: str) -> None:
    assert find_fault([read(write_model(each_architecture))]) is None


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_recurrent_models_need_no_heads(write_model: Writer, architecture: str) -> None:
    assert find_fault([read(write_model(architecture))]) is None


@pytest.mark.parametrize("name", ["minilm", "bench-chat", "demo-chat"])
def test_demo_models_are_sound(models_dir: Path, name: str) -> None:
    assert find_fault([read(models_dir / f"{name}.gguf")]) is None


def test_shards_count_together(write_model: Writer) -> None:
    first = write_model("llama", shards=3)
    headers = [read(path) for path in sorted(first.parent.glob("*.gguf"))]

    assert find_fault(headers) is None
