"""What is kept of prompts in host memory: checkpoints of what cannot go back, and a cache."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.core.byte_size import MIB
from supervisor.core.sizing.estimate import MemorySettings
from supervisor.core.sizing.gguf import GgufHeader, read_header
from supervisor.core.sizing.kept_prompts import KeptPrompts, estimate_kept_prompts
from tests.core.sizing.test_estimate_against_server import start_server

Writer = Callable[..., Path]
SETTINGS = MemorySettings(ctx_size_per_slot=4096, parallel=4)


def read(path: Path) -> GgufHeader:
    return read_header(path.read_bytes(), file_size=path.stat().st_size)


def kept(header: GgufHeader, settings: MemorySettings = SETTINGS, **limits: int) -> KeptPrompts:
    return estimate_kept_prompts(
        header, settings, **{"checkpoints": 0, "cache_ram_mib": 0} | limits
    )


def test_checkpoints_hold_the_windows_of_sliding_layers_for_each_slot(write_model: Writer) -> None:
    header = read(write_model("gemma3"))  # 9 of 10 layers, 512 tokens, 2 heads of 32 + 32, f16
    window_bytes = 9 * (512 + 512) * 2 * (32 + 32) * 2

    found = kept(header, checkpoints=3)

    assert found.checkpoint_bytes == found.total_bytes == 4 * 3 * window_bytes
    assert found.explanation == "4 × 3 checkpoints 27.0 MiB"
    quantised = replace(SETTINGS, cache_type_k="q8_0", cache_type_v="q8_0")
    assert kept(header, quantised, checkpoints=3).total_bytes < 0.6 * found.total_bytes
    shorter = replace(SETTINGS, ctx_size_per_slot=256)
    assert kept(header, shorter, checkpoints=3).total_bytes == found.total_bytes / 4


def test_slots_that_share_their_cells_may_each_have_all_in_a_checkpoint(
    write_model: Writer,
) -> None:
    header = read(write_model("gemma3"))
    shared = kept(header, replace(SETTINGS, kv_unified=True), checkpoints=1)
    assert shared.total_bytes > kept(header, checkpoints=1).total_bytes


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "bert"])
def test_a_model_that_can_go_back_has_no_checkpoints(
    write_model: Writer, architecture: str
) -> None:
    assert kept(read(write_model(architecture)), checkpoints=32) == KeptPrompts()


@pytest.mark.parametrize("architecture", ["mamba", "lfm2"])
def test_recurrent_state_is_what_the_server_takes_for_a_slot(
    write_model: Writer, llama_server_bin: Path, architecture: str
) -> None:
    """In a hybrid its layers with a KV cache count as recurrent, too."""
    path = write_model(architecture)
    printed = start_server(llama_server_bin, path, SETTINGS)

    found = kept(read(path), checkpoints=1)

    assert printed.state - 0.01 <= found.total_bytes / MIB <= 2 * printed.state + 0.01


def test_a_state_that_the_header_does_not_tell_is_named(write_gguf: Writer) -> None:
    header = read(write_gguf("minimax-01", {"block_count": 2}, [("token_embd.weight", (32, 8))]))
    assert kept(header, checkpoints=4).total_bytes == 0
    assert kept(header, checkpoints=4).uncounted
    assert not kept(header, checkpoints=0).uncounted


def test_the_prompt_cache_counts_up_to_its_limit(write_model: Writer) -> None:
    header = read(write_model("llama"))
    assert kept(header, cache_ram_mib=64).total_bytes == 64 * MIB
    assert kept(header, cache_ram_mib=64).explanation == "prompt cache 64.0 MiB"
    unbounded = kept(header, cache_ram_mib=-1)
    assert (unbounded.total_bytes, len(unbounded.uncounted)) == (0, 1)
