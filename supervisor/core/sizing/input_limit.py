"""How long one input of an embedding model may be, from its header and its server's settings.

    a model that splits inputs:  tokens < slot        others:  tokens ≤ min(micro-batch, slot)

with slot = min(context of a slot, the model's own context). A model splits an input over several
micro-batches where it has a KV cache and pools the last token (or ranks by it); all others must see
an input at once.

Source: server_slot::can_split(), server_context_impl::n_ctx_slot() and update_slots() in
tools/server/server-context.cpp, and llama_context::llama_context(), in llama.cpp (build 11434).
"""

from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.kv_cache import keeps_no_kv, pad_cells

_LAST, _RANK = 3, 4
_POOLING_TYPES = {"none": 0, "mean": 1, "cls": 2, "last": _LAST, "rank": _RANK}


def longest_input(  # noqa: PLR0913 - the server's settings, as a profile has them
    header: GgufHeader,
    *,
    ctx_size: int,
    parallel: int,
    kv_unified: bool,
    ubatch_size: int,
    pooling: str | None,
) -> int:
    """Return the tokens of the longest input that llama-server takes, special ones included.

    `ctx_size` is per slot, or with `kv_unified` for all; 0 is the model's own. `ubatch_size` is the
    smaller of `-ub` and `-b`, in tokens. `pooling`: None is what the header says.
    """
    own = header.count_parameter("context_length") or 0
    total = pad_cells(ctx_size * (1 if kv_unified else parallel) or own)
    slot = total if kv_unified else pad_cells(total // parallel)
    slot = min(slot, own or slot)
    if _splits_inputs(header, pooling):
        return slot - 1
    return min(ubatch_size, slot)


def _splits_inputs(header: GgufHeader, pooling: str | None) -> bool:
    own = header.count_parameter("pooling_type") or 0
    pooling_type = own if pooling is None else _POOLING_TYPES[pooling]
    if keeps_no_kv(header.architecture):
        return False
    is_causal = header.parameter("attention.causal") is not False
    return pooling_type == _LAST or (pooling_type == _RANK and is_causal)
