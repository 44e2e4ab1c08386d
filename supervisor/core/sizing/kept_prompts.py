"""Estimate what llama-server keeps of prompts in host memory: checkpoints, and its prompt cache.

A model with sliding windows or recurrent state cannot go back in a conversation. For these, the
server copies that state at points of each slot's prompt, `--ctx-checkpoints` for each slot at most:

    slots × checkpoints × bytes of the state of one slot

Source: create_checkpoint() in server-context.cpp, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY, and
llama_hparams::n_embd_r() and n_embd_s() of llama.cpp (build 11434).
"""

from dataclasses import dataclass, replace

from supervisor.core.byte_size import MIB, format_bytes
from supervisor.core.sizing.estimate import MemorySettings
from supervisor.core.sizing.ggml_types import GGML_TYPES_BY_NAME
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.kv_cache import (
    count_cells,
    keeps_recurrent_state,
    layer_cache_bytes,
    pad_cells,
    read_layout,
)

_FLOAT_BYTES = 4  # recurrent state is f32, whatever the type of the KV cache


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptPrompts:
    """What is kept in host memory at most, in bytes, with what it is; `uncounted`: what is not."""

    checkpoint_bytes: int = 0
    cache_bytes: int = 0
    explanation: str = ""
    uncounted: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Checkpoints and prompt cache together."""
        return self.checkpoint_bytes + self.cache_bytes


def estimate_kept_prompts(
    header: GgufHeader, settings: MemorySettings, *, checkpoints: int, cache_ram_mib: int
) -> KeptPrompts:
    """Estimate it for `checkpoints` of each slot, and a prompt cache of so many MiB (-1: no limit).

    `settings` are those of the whole model, with cache types that it can have.
    """
    uncounted = ["the prompt cache in host memory has no limit"] if cache_ram_mib < 0 else []
    slot_bytes = _state_bytes(header, settings) if checkpoints else 0
    if slot_bytes is None:
        uncounted.append("checkpoints of its state in host memory are not counted")
    checkpoint_bytes = (slot_bytes or 0) * settings.parallel * checkpoints
    cache_bytes = max(0, cache_ram_mib) * MIB
    parts = [
        f"{settings.parallel} × {checkpoints} checkpoints {format_bytes(checkpoint_bytes)}",
        f"prompt cache {format_bytes(cache_bytes)}",
    ]
    sizes = (checkpoint_bytes, cache_bytes)
    return KeptPrompts(
        checkpoint_bytes=checkpoint_bytes,
        cache_bytes=cache_bytes,
        explanation=" and ".join(part for part, size in zip(parts, sizes, strict=True) if size),
        uncounted=tuple(uncounted),
    )


def _state_bytes(header: GgufHeader, settings: MemorySettings) -> int | None:
    """Return the bytes of one slot's state that cannot go back; None: not known."""
    if keeps_recurrent_state(header.architecture):
        layers = header.count_parameter("block_count") or 0
        return layers * _recurrent_numbers(header) * _FLOAT_BYTES or None
    layout = read_layout(header)
    if isinstance(layout, str) or not layout.window:
        return 0
    slots = 1 if settings.kv_unified else settings.parallel
    own_tokens = header.count_parameter("context_length") or 0
    cells = count_cells(
        window=layout.window,
        ctx_tokens=pad_cells(settings.ctx_size_per_slot * slots or own_tokens),
        parallel=settings.parallel,
        is_unified=settings.kv_unified,
        ubatch_size=settings.ubatch_size,
    )
    sizes = layer_cache_bytes(
        layout,
        replace(cells, full=0, streams=1),
        key_type=GGML_TYPES_BY_NAME[settings.cache_type_k],
        value_type=GGML_TYPES_BY_NAME[settings.cache_type_v],
        has_flash_attention=settings.flash_attention,
    )
    return sum(sizes)


def _recurrent_numbers(header: GgufHeader) -> int:
    """Return how many numbers a recurrent layer keeps; in hybrids all layers count as such."""

    def count(name: str) -> int:
        return header.count_parameter(name) or 0

    width, heads = count("embedding_length"), count("attention.head_count")
    if head_size := count("wkv.head_size"):
        return width * (head_size + (count("token_shift_count") or 2))
    if l_cache := count("shortconv.l_cache"):
        return width * (l_cache - 1)
    kernel = max(0, count("ssm.conv_kernel") - 1)
    if head_size := count("kda.head_dim"):
        return heads * head_size * (head_size + 3 * (kernel or 3))
    inner, state = count("ssm.inner_size"), count("ssm.state_size")
    return kernel * (inner + 2 * count("ssm.group_count") * state) + inner * state
