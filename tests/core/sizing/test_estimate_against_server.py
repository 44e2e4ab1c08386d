"""Estimating memory, against the sizes that the native llama-server prints for the same file."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.estimate import (
    MemoryEstimate,
    MemorySettings,
    estimate_memory,
    is_embedding_model,
)
from supervisor.core.sizing.gguf import GgufHeader, read_header
from supervisor.errors import EngineError
from tests.core.sizing.server_output import lines_until


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


@dataclass(frozen=True, kw_only=True)
class Printed:
    """What a server prints of its buffers, in MiB."""

    weights: float
    kv: float
    state: float
    compute: float
    output: float


def start_server(binary: Path, model: Path, settings: MemorySettings) -> Printed:
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
    # A CPU with AMX keeps a second copy of some weights in a form of its own, unless told not to.
    switches = ["--no-warmup", "--no-repack"]
    switches.append("--kv-unified" if settings.kv_unified else "--no-kv-unified")
    if settings.is_embedding:
        switches.append("--embeddings")
    words = [str(word) for flag in flags.items() for word in flag]
    sizes: dict[str, float] = defaultdict(float)
    log = lines_until("reserve took", [str(binary), *words, *switches])
    for line in log:
        if found := re.search(r"(\w+) buffer size = +([\d.]+) MiB", line):
            sizes[found[1]] += float(found[2])
    assert "reserve took" in log[-1], "".join(log[-10:])
    return Printed(
        weights=sizes["model"],
        kv=sizes["KV"],
        state=sizes["RS"],
        compute=sizes["compute"],
        output=sizes["output"],
    )


def assert_close(need: MemoryEstimate, printed: Printed) -> None:
    """Weights and cache are exact but for rounding; compute is bounded, and not out of reach."""
    assert need.weights_bytes / MIB == pytest.approx(printed.weights, rel=0.01, abs=0.02)
    assert need.kv_bytes / MIB == pytest.approx(printed.kv, rel=0.01, abs=0.02)
    assert printed.compute <= need.compute_bytes / MIB
    assert need.total_bytes == need.weights_bytes + need.kv_bytes + need.compute_bytes


@pytest.mark.parametrize("kv_unified", [True, False])
def test_estimate_agrees_with_the_server_for_each_architecture(
    write_model: Callable[..., Path],
    llama_server_bin: Path,
    each_architecture: str,
    kv_unified: bool,
) -> None:
    path = write_model(each_architecture)
    settings = MemorySettings(
        ctx_size_per_slot=6000,
        parallel=2,
        kv_unified=kv_unified,
        is_embedding=is_embedding_model(read(path)),
    )

    need = estimate_memory([read(path)], settings)

    assert_close(need, start_server(llama_server_bin, path, settings))


SETTINGS: Mapping[str, MemorySettings] = MappingProxyType(
    {
        "the model's own context": MemorySettings(),
        "own context, shared by separate slots": MemorySettings(parallel=3),
        "cells are padded": MemorySettings(ctx_size_per_slot=1000, parallel=3),
        "one pool": MemorySettings(ctx_size_per_slot=7000, parallel=3, kv_unified=True),
        "large micro-batch": MemorySettings(ctx_size_per_slot=8192, ubatch_size=2048),
        "micro-batch above the context": MemorySettings(ctx_size_per_slot=256, ubatch_size=512),
        "quantised": MemorySettings(
            ctx_size_per_slot=4096, parallel=2, cache_type_k="q8_0", cache_type_v="q4_0"
        ),
        "unlike types": MemorySettings(
            ctx_size_per_slot=4096, cache_type_k="f32", cache_type_v="bf16"
        ),
        "without flash attention": MemorySettings(
            ctx_size_per_slot=4096, parallel=2, flash_attention=False
        ),
    }
)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@pytest.mark.parametrize("case", SETTINGS)
def test_estimate_agrees_with_the_server_for_each_setting(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str, case: str
) -> None:
    path = write_model(architecture)

    need = estimate_memory([read(path)], SETTINGS[case])

    printed = start_server(llama_server_bin, path, SETTINGS[case])
    assert_close(need, printed)
    assert need.host_output_bytes / MIB == pytest.approx(printed.output, rel=0.1, abs=0.02)


@pytest.mark.parametrize("architecture", ["llama", "qwen3moe"])
def test_estimate_of_a_model_in_shards_agrees_with_the_server(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str
) -> None:
    first = write_model(architecture, shards=3)
    settings = MemorySettings(ctx_size_per_slot=4096, parallel=2)
    headers = [read(path) for path in sorted(first.parent.glob("*.gguf"))]
    assert len(headers) == 3

    need = estimate_memory(headers, settings)

    assert_close(need, start_server(llama_server_bin, first, settings))


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_where_a_cache_is_assumed_the_weights_are_exact_and_the_rest_is_enough(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str
) -> None:
    path = write_model(architecture)
    settings = MemorySettings(ctx_size_per_slot=4096, parallel=2)

    need = estimate_memory([read(path)], settings)

    printed = start_server(llama_server_bin, path, settings)
    assert printed.kv + printed.state > 0
    assert need.kv_assumed_because is not None
    assert need.weights_bytes / MIB == pytest.approx(printed.weights, rel=0.01, abs=0.02)
    assert printed.kv + printed.state <= need.kv_bytes / MIB
    assert printed.compute <= need.compute_bytes / MIB


def test_odd_context_of_the_model_is_divided_as_the_server_does(
    write_model: Callable[..., Path], llama_server_bin: Path
) -> None:
    path = write_model("llama", context_length=769)
    settings = MemorySettings(parallel=3)

    need = estimate_memory([read(path)], settings)

    assert "3 × 512 cells" in need.explanation
    assert_close(need, start_server(llama_server_bin, path, settings))


def test_values_take_the_room_of_the_widest_layer_without_flash_attention(
    write_model: Callable[..., Path], llama_server_bin: Path
) -> None:
    path = write_model("mimo2")
    settings = MemorySettings(flash_attention=False)

    need = estimate_memory([read(path)], settings)

    assert_close(need, start_server(llama_server_bin, path, settings))


@pytest.mark.parametrize("name", ["minilm", "bench-chat", "demo-chat"])
def test_estimate_agrees_with_the_server_for_the_demo_models(
    models_dir: Path, tmp_path: Path, llama_server_bin: Path, name: str
) -> None:
    path = tmp_path / f"{name}.gguf"
    path.symlink_to(models_dir / path.name)
    header = read(path)
    settings = MemorySettings(
        ctx_size_per_slot=512, parallel=2, is_embedding=is_embedding_model(header)
    )

    need = estimate_memory([header], settings)

    assert_close(need, start_server(llama_server_bin, path, settings))


@pytest.mark.parametrize("architecture", ["qwen3", "bert"])
def test_compute_bound_for_embedding_is_near_what_the_server_takes(
    write_model: Callable[..., Path], llama_server_bin: Path, architecture: str
) -> None:
    """A qwen3 computes logits for every token, which is most of it; an encoder computes none."""
    path = write_model(architecture, pooling_type=3 if architecture == "qwen3" else 1)
    settings = MemorySettings(
        ctx_size_per_slot=8192,
        parallel=8,
        kv_unified=True,
        ubatch_size=4096,
        is_embedding=True,
    )

    need = estimate_memory([read(path)], settings)

    printed = start_server(llama_server_bin, path, settings)
    assert printed.compute <= need.compute_bytes / MIB <= 3 * printed.compute


@pytest.mark.parametrize(
    ("architecture", "settings", "refusal"),
    [
        ("llama", MemorySettings(cache_type_v="q9_9"), "there is no cache type 'q9_9'"),
        ("mimo2", MemorySettings(cache_type_k="q8_0"), r"divide the keys .* \(48 numbers"),
        ("deepseek2", MemorySettings(cache_type_k="f32"), "cache types f32 and f16 differ"),
        (
            "llama",
            MemorySettings(cache_type_v="q8_0", flash_attention=False),
            "cached values of type q8_0 need flash attention",
        ),
    ],
)
def test_cache_types_that_the_server_refuses_are_refused_before_it_is_started(
    write_model: Callable[..., Path],
    llama_server_bin: Path,
    architecture: str,
    settings: MemorySettings,
    refusal: str,
) -> None:
    path = write_model(architecture)

    with pytest.raises(EngineError, match=refusal):
        estimate_memory([read(path)], settings)

    with pytest.raises(AssertionError, match=r"exiting due to|Unsupported"):
        start_server(llama_server_bin, path, settings)
