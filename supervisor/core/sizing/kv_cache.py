"""How large the KV cache of a model is, from its header.

bytes = Σ over layers of  streams × cells × heads × (key length × bytes per key value
                                                   + value length × bytes per value)

with one stream for a unified cache, else one per slot, and cells in steps of 256. Layers with a
sliding window keep fewer cells. Architectures differ in which layers those are, which keep
nothing, and which keep something else altogether; that is what the tables below are for.

Source: llama_model::create_memory(), llama_model_base::load_hparams(), load_arch_hparams() of each
architecture, and the constructors of llama_kv_cache and llama_kv_cache_iswa, in llama.cpp (build
11434).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from supervisor.core.sizing.ggml_types import GgmlType
from supervisor.core.sizing.gguf import GgufHeader

MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS: a header that announces more is not loaded."""

EMBEDDING_WITHOUT_KV = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
    }
)
"""Encoders: each input is computed at once, and nothing is kept."""

_OTHERS_WITHOUT_KV = frozenset({"dream", "llada", "llada-moe", "rnd1", "wavtokenizer-dec"})

_RECURRENT = frozenset(
    {
        *("arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"),
        *("bailingmoe3", "deepseek4", "falcon-h1", "glm5-next", "granitehybrid", "jamba"),
        *("kimi-k3", "kimi-linear", "lfm2", "lfm2moe", "minimax-01", "nemotron_h"),
        *("nemotron_h_moe", "plamo2", "qwen35", "qwen35moe", "qwen3next", "qwen4exp"),
    }
)
"""Recurrent and hybrid architectures: state per slot instead of, or beside, a KV cache."""

_SPECIAL = frozenset(
    {
        *("deepseek32", "dots3note", "glm-dsa", "hy_v4", "minimax-m3"),  # an indexer's cache, too
        *("graniteswitch", "hrm_text", "nanbeige"),  # layers beside those of the block count
        *("dflash", "eagle3", "gemma4-assistant"),  # draft models, which share another's cache
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sliding:
    """Which layers of an architecture have a sliding window, where the header does not say.

    Of each `period` layers one attends to everything: the first or the last of them. A
    `fixed_window` takes precedence over the header's, `usual_window` stands in for it; in tokens.
    `only_layers`: the rule holds for models with so many layers alone.
    """

    period: int = 1
    is_first_full: bool = False
    usual_window: int = 0
    fixed_window: int = 0
    only_layers: int | None = None


_PATTERN_IN_HEADER = _Sliding()
_SLIDING: Mapping[str, _Sliding] = MappingProxyType(
    {
        "afmoe": _Sliding(period=4),
        "cohere2": _Sliding(period=4),
        "cohere2moe": _Sliding(period=4, is_first_full=True),
        "exaone-moe": _Sliding(period=4, usual_window=128),
        "exaone4": _Sliding(period=4, usual_window=4096, only_layers=64),
        "gemma2": _Sliding(period=2, usual_window=4096),
        "gemma3": _Sliding(period=6),
        "gemma3n": _Sliding(period=5),
        "gemma4": _PATTERN_IN_HEADER,
        "gpt-oss": _Sliding(period=2),
        "granite_swa": _PATTERN_IN_HEADER,
        "laguna": _Sliding(period=4, is_first_full=True),
        "llama4": _Sliding(period=4, usual_window=8192, fixed_window=8192),
        "maple": _PATTERN_IN_HEADER,
        "mellum": _Sliding(period=4),
        "mimo2": _PATTERN_IN_HEADER,
        "muse-glimmer": _Sliding(period=4),
        "olmo2": _Sliding(period=4),
        "plamo3": _Sliding(period=8),
        "smallthinker": _Sliding(period=4, is_first_full=True, fixed_window=4096),
        "spark2_5": _PATTERN_IN_HEADER,
        "step35": _PATTERN_IN_HEADER,
    }
)
"""An architecture that is not here keeps all cells in all layers, whatever its header says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCache:
    """What one layer keeps per cell: a key and a value of so many numbers for each head."""

    heads: int
    key_length: int
    value_length: int
    is_sliding: bool

    @property
    def cell_length(self) -> int:
        """Numbers in one cell, keys and values together."""
        return self.heads * (self.key_length + self.value_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLayout:
    """The layers that have a KV cache, and the window of the sliding ones, in tokens."""

    layers: tuple[LayerCache, ...]
    window: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCells:
    """How many tokens the layers of each kind keep, and in how many separate streams."""

    full: int
    sliding: int
    streams: int


def keeps_no_kv(architecture: str) -> bool:
    """Whether models of this architecture have no KV cache."""
    return architecture in EMBEDDING_WITHOUT_KV or architecture in _OTHERS_WITHOUT_KV


def keeps_recurrent_state(architecture: str) -> bool:
    """Whether layers of this architecture keep state instead of, or beside, a KV cache."""
    return architecture in _RECURRENT


def read_layout(header: GgufHeader) -> CacheLayout | str:
    """Return what each layer keeps, or the reason why that is not known."""
    if header.architecture in _RECURRENT:
        return f"architecture '{header.architecture}' keeps recurrent state"
    if header.architecture in _SPECIAL:
        return f"architecture '{header.architecture}' has a cache of its own kind"
    block_count = header.count_parameter("block_count") or 0
    if not 0 < block_count <= MAX_LAYERS:
        return f"the header has no believable block count ({block_count})"
    head_counts = per_layer(header, "attention.head_count", block_count)
    if head_counts is None or not head_counts[0]:
        return "the header names no attention heads"
    head_counts_kv = per_layer(header, "attention.head_count_kv", block_count) or head_counts
    window, sliding = _sliding_layers(header, block_count)
    lengths = {kind: _head_lengths(header, head_counts[0], kind) for kind in (False, True)}
    return CacheLayout(
        layers=tuple(
            LayerCache(
                heads=heads,
                key_length=lengths[is_sliding][0],
                value_length=lengths[is_sliding][1],
                is_sliding=is_sliding,
            )
            for heads, is_sliding in zip(head_counts_kv, sliding, strict=True)
        )[: _kept_layers(header, block_count)],
        window=window,
    )


def count_cells(
    *, window: int, ctx_tokens: int, parallel: int, is_unified: bool, ubatch_size: int
) -> CacheCells:
    """Return the cells of a context of `ctx_tokens` in all (already padded), for all slots."""
    streams = 1 if is_unified else parallel
    full = pad_cells(ctx_tokens // streams)
    in_window = window * (parallel if is_unified else 1) + ubatch_size
    sliding = pad_cells(min(full, in_window)) if window else 0
    return CacheCells(full=full, sliding=sliding, streams=streams)


def layer_cache_bytes(
    layout: CacheLayout,
    cells: CacheCells,
    *,
    key_type: GgmlType,
    value_type: GgmlType,
    has_flash_attention: bool,
) -> tuple[int, ...]:
    """Return the bytes of each layer's cache.

    Without flash attention values are kept transposed, and all layers get the widest one's room.
    """
    value_rows = [layer.heads * layer.value_length for layer in layout.layers]
    if not has_flash_attention:
        value_rows = [max(value_rows, default=0)] * len(value_rows)
    return tuple(
        cells.streams
        * (cells.sliding if layer.is_sliding else cells.full)
        * (key_type.row_bytes(layer.heads * layer.key_length) + value_type.row_bytes(value_row))
        for layer, value_row in zip(layout.layers, value_rows, strict=True)
    )


def pad_cells(cells: int) -> int:
    """Round up to a multiple of 256, as llama.cpp does with cells."""
    return -(-cells // 256) * 256


def per_layer(header: GgufHeader, name: str, block_count: int) -> tuple[int, ...] | None:
    """Return a hyperparameter that is one number for all layers, or an array with one for each."""
    count = header.count_parameter(name)
    if count is not None:
        return (count,) * block_count
    values = header.parameter(name)
    if not isinstance(values, tuple):
        return None
    counts = tuple(value for value in values[:block_count] if isinstance(value, int) and value >= 0)
    return counts + (0,) * (block_count - len(counts))


def _head_lengths(header: GgufHeader, heads: int, is_sliding: bool) -> tuple[int, int]:
    """Return how many numbers a head's key and value have; with latent attention keys alone."""
    usual = (header.count_parameter("embedding_length") or 0) // heads
    key = header.count_parameter("attention.key_length")
    value = header.count_parameter("attention.value_length")
    key = usual if key is None else key
    value = usual if value is None else value
    if is_sliding:
        key = header.count_parameter("attention.key_length_swa") or key
        value = header.count_parameter("attention.value_length_swa") or value
    is_latent = header.count_parameter("attention.key_length_mla") and header.count_parameter(
        "attention.value_length_mla"
    )
    return key, 0 if is_latent else value


def _sliding_layers(header: GgufHeader, block_count: int) -> tuple[int, tuple[bool, ...]]:
    """Return the window in tokens, and for each layer whether it has one."""
    rule = _SLIDING.get(header.architecture)
    none = (0, (False,) * block_count)
    if rule is None or rule.only_layers not in {None, block_count}:
        return none
    window = header.count_parameter("attention.sliding_window")
    window = rule.usual_window if window is None else window
    if window <= 0:
        return none
    name = "attention.sliding_window_pattern"
    if isinstance(header.parameter(name), tuple):
        flags = per_layer(header, name, block_count) or ()
        return rule.fixed_window or window, tuple(bool(flag) for flag in flags)
    pattern = header.count_parameter(name)
    period = rule.period if pattern is None else pattern
    full = 0 if rule.is_first_full else period - 1
    return rule.fixed_window or window, tuple(
        period == 0 or layer % period != full for layer in range(block_count)
    )


def _kept_layers(header: GgufHeader, block_count: int) -> int:
    """Return how many layers, from the first, have a cache of their own.

    Prediction layers at the end belong to a draft context, and the last layers of Gemma 3n and 4
    look into the cache of earlier ones.
    """
    if header.architecture == "gemma3n":
        return 20
    shared = header.count_parameter("attention.shared_kv_layers") or 0
    if header.architecture == "gemma4" and shared:
        return max(0, block_count - shared)
    prediction = header.count_parameter("nextn_predict_layers") or 0
    return block_count - prediction if 0 < prediction < block_count else block_count
