"""Estimate what a server takes on its device, from the model's header and the server's settings.

    weights   the tensors of all shards
    KV cache  keys and values of every cell of every layer (`core/sizing/kv_cache.py`)
    compute   intermediate results of one micro-batch: an upper bound

What a GPU driver takes for each process, some hundred MiB, is not part of it: that is measured.

Source: llama-context.cpp of llama.cpp (build 11434), and the buffer sizes that llama-server prints
at `-lv 4`, which the tests compare with what is estimated here.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from supervisor.core.byte_size import MIB, format_bytes
from supervisor.core.sizing.ggml_types import GGML_TYPES_BY_NAME, GgmlType
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.kv_cache import (
    EMBEDDING_WITHOUT_KV,
    CacheCells,
    CacheLayout,
    count_cells,
    keeps_no_kv,
    layer_cache_bytes,
    pad_cells,
    read_layout,
)
from supervisor.core.sizing.layer_shares import layers_of_part
from supervisor.errors import EngineError

EMBEDDING_ARCHITECTURES = EMBEDDING_WITHOUT_KV | {"llama-embed"}

_WITHOUT_FLASH = frozenset({"grok"})
_WITHOUT_OUTPUT = EMBEDDING_WITHOUT_KV - {"gemma-embedding"}  # their loaders make none
_FLOAT_BYTES = 4  # intermediate results are f32
_PIPELINE_COPIES = 4  # GGML_SCHED_MAX_COPIES: inputs of GPUs that work on several batches at once


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """The settings of a server that decide how much memory it takes.

    `ctx_size_per_slot` is in tokens, or with `kv_unified` the tokens that all slots share; 0 is
    the model's own (`-c 0`). `ubatch_size` is the smaller of `-ub` and `-b`, in tokens.
    `flash_attention` is False only where it is switched off. `is_embedding`: the server answers
    with vectors (`--embeddings`). `gpu_layers` (`-ngl`) is how many layers a GPU takes, from the
    last one backwards, the output being the first of them; None: all, or there is no GPU.
    `host_expert_layers` (`-ncmoe`): of so many layers, from the first one on, a GPU does not take
    the experts. `tensor_split` (`-ts`): how much each of several GPUs takes, empty where there is
    one; `part` is the GPU that is asked about, by its position among them. `is_gpu`: the device is
    a GPU, and so without the input's tables. `kv_fallback_bytes` stands in for a KV cache that is
    not known from the header.
    """

    ctx_size_per_slot: int = 0
    parallel: int = 1
    kv_unified: bool = False
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    ubatch_size: int = 512
    flash_attention: bool = True
    is_embedding: bool = False
    gpu_layers: int | None = None
    host_expert_layers: int = 0
    tensor_split: tuple[float, ...] = ()
    part: int = 0
    is_gpu: bool = False
    kv_fallback_bytes: int = 2048 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """What a server will take on its device, in bytes, and the sentence that explains it.

    `host_output_bytes` is not in the total: results are handed over in host memory, also when
    the model is on a GPU. It is small for chat, and large for embedding with a large vocabulary,
    because llama.cpp makes room for the logits of every token of a batch. `host_bytes` is what the
    layers take that stay in host memory, `tensor_split` or not; it is not in the total either.
    `kv_assumed_because` is why the KV cache is not known from the header; None where it was.
    """

    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    total_bytes: int
    host_output_bytes: int
    explanation: str
    host_bytes: int = 0
    kv_assumed_because: str | None = None


def is_embedding_model(header: GgufHeader) -> bool:
    """Whether the model is made for vectors: by its architecture, or because it pools tokens.

    Pooling types: 0 none, 1 mean, 2 cls, 3 last, 4 rank.
    """
    pooling_type = header.count_parameter("pooling_type") or 0
    return header.architecture in EMBEDDING_ARCHITECTURES or pooling_type >= 1


def estimate_memory(headers: Sequence[GgufHeader], settings: MemorySettings) -> MemoryEstimate:
    """Estimate the memory for a model whose shards have these headers, the first one first.

    Raises EngineError when the server would refuse the cache types for this model.
    """
    plan = _plan(headers[0], settings)
    weights = _split_weights(headers, plan)
    kv, kv_reason = _estimate_kv(plan)
    compute_bytes = _estimate_compute(plan)
    host_compute_bytes = compute_bytes  # the bound holds on either side
    experts_bytes = sum(_experts_on_host(headers, plan).values())
    if experts_bytes:  # of a larger batch the GPU computes them, too: it gets them one by one
        compute_bytes += max(header.tensors.largest_expert_bytes for header in headers)
    total_bytes = weights.device_bytes + kv.device_bytes + compute_bytes
    host_bytes = weights.host_bytes + kv.host_bytes
    sentences = [
        f"{format_bytes(total_bytes)}: weights {format_bytes(weights.device_bytes)}",
        kv_reason,
        f"compute at most {format_bytes(compute_bytes)}",
    ]
    if plan.host_layers or experts_bytes:
        host_bytes += host_compute_bytes
    if experts_bytes:
        sentences.append(f"experts of {format_bytes(experts_bytes)} in host memory")
    if plan.host_layers:
        sentences.append(f"{plan.host_layers} layers in {format_bytes(host_bytes)} of host memory")
    if settings.tensor_split:
        shares = ",".join(f"{share:g}" for share in settings.tensor_split)
        sentences.append(f"{len(plan.layers)} layers by tensor_split {shares}")
    return MemoryEstimate(
        weights_bytes=weights.device_bytes,
        kv_bytes=kv.device_bytes,
        compute_bytes=compute_bytes,
        total_bytes=total_bytes,
        host_output_bytes=_estimate_output(plan),
        host_bytes=host_bytes,
        explanation="; ".join(sentences),
        kv_assumed_because=plan.layout if isinstance(plan.layout, str) else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """Bytes on the device, and beside it in host memory."""

    device_bytes: int
    host_bytes: int = 0


def _split_weights(headers: Sequence[GgufHeader], plan: "_Plan") -> _Split:
    """Divide the weights as llama.cpp does: the input always stays on the host, then the layers do.

    Where all layers are on GPUs what belongs to no layer counts on the first. Tokens are looked up
    in the file's pages then, which the host can take back, so that these tables, which are half of
    some models, count nowhere. An output without weights of its own gets a copy of the embeddings.
    Source: llama_model_base::load_tensors(), `dev_input` and `i_gpu_start`.
    """
    tensors = [header.tensors for header in headers]
    total_bytes = sum(one.total_bytes for one in tensors)
    if not any(one.layer_bytes for one in tensors):
        return _Split(device_bytes=ceil(total_bytes * plan.share))
    sizes: Counter[int] = Counter()
    for one in tensors:
        sizes[plan.output] += one.output_bytes
        for number, size in one.layer_bytes.items():
            sizes[min(number, plan.output)] += size
    rest_bytes = total_bytes - sizes.total()
    device_bytes = sum(sizes[number] for number in plan.layers)
    host_bytes = sum(sizes[number] for number in range(plan.host_layers))
    if plan.host_layers:
        host_bytes += rest_bytes
    elif plan.settings.part == 0:
        device_bytes += rest_bytes
    if plan.is_all_on_gpus:
        device_bytes -= sum(one.input_bytes for one in tensors) if plan.settings.part == 0 else 0
    if plan.copies_embeddings and not any(one.has_output_weights for one in tensors):
        device_bytes += sum(one.embedding_bytes for one in tensors)
    experts = _experts_on_host(headers, plan)
    device_bytes -= sum(experts[number] for number in plan.layers)
    return _Split(device_bytes=device_bytes, host_bytes=host_bytes + experts.total())


def _experts_on_host(headers: Sequence[GgufHeader], plan: "_Plan") -> Counter[int]:
    """Return the bytes of experts in host memory, of each layer whose rest is on a GPU."""
    found: Counter[int] = Counter()
    for header in headers if plan.settings.is_gpu else ():
        for number, size in header.tensors.expert_bytes.items():
            if plan.host_layers <= number < plan.settings.host_expert_layers:
                found[min(number, plan.output)] += size
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What header and settings mean together. `layout` is a reason where it is not known.

    `layers` are those of the device by number, the output being the one behind the last. Of all,
    the first `host_layers` stay in host memory, with the input.
    """

    header: GgufHeader
    settings: MemorySettings
    layout: CacheLayout | str
    cells: CacheCells
    tokens: int  # of one micro-batch
    has_flash: bool
    layers: range
    output: int
    host_layers: int

    @property
    def is_all_on_gpus(self) -> bool:
        """Whether the host has nothing but the input."""
        return not self.host_layers and (self.settings.is_gpu or bool(self.settings.tensor_split))

    @property
    def copies_embeddings(self) -> bool:
        """Whether the device takes embeddings for the output, which the input has elsewhere."""
        has_output = self.output in self.layers and self.header.architecture not in _WITHOUT_OUTPUT
        return has_output and (bool(self.host_layers) or self.is_all_on_gpus)

    @property
    def share(self) -> float:
        """The part of all that the device takes of what is not known by layers."""
        split = self.settings.tensor_split
        return split[self.settings.part] / sum(split) if split else 1.0


def _plan(header: GgufHeader, settings: MemorySettings) -> _Plan:
    slots = 1 if settings.kv_unified else settings.parallel
    own_tokens = header.count_parameter("context_length") or 0
    ctx_tokens = pad_cells(settings.ctx_size_per_slot * slots or own_tokens)
    tokens = min(settings.ubatch_size, ctx_tokens or settings.ubatch_size)
    layout = read_layout(header) if ctx_tokens else "the length of its context is not known"
    if keeps_no_kv(header.architecture):
        layout = CacheLayout(layers=(), window=0)
        cells = CacheCells(full=tokens, sliding=tokens, streams=1)
    else:
        cells = count_cells(
            window=layout.window if isinstance(layout, CacheLayout) else 0,
            ctx_tokens=ctx_tokens,
            parallel=settings.parallel,
            is_unified=settings.kv_unified,
            ubatch_size=tokens,
        )
    output = header.count_parameter("block_count") or 0
    gpu_layers = output + 1 if settings.gpu_layers is None else settings.gpu_layers
    host_layers = max(0, output + 1 - gpu_layers)
    return _Plan(
        header=header,
        settings=settings,
        layout=layout,
        cells=cells,
        tokens=tokens,
        has_flash=settings.flash_attention and header.architecture not in _WITHOUT_FLASH,
        layers=layers_of_part(range(host_layers, output + 1), settings.tensor_split, settings.part),
        output=output,
        host_layers=host_layers,
    )


def _estimate_kv(plan: _Plan) -> tuple[_Split, str]:
    settings, layout, cells = plan.settings, plan.layout, plan.cells
    key_type = _fitting_type(plan, "key", settings.cache_type_k)
    value_type = _fitting_type(plan, "value", settings.cache_type_v)
    if isinstance(layout, str):
        assumed = _Split(device_bytes=ceil(settings.kv_fallback_bytes * plan.share))
        return assumed, (f"KV cache {format_bytes(assumed.device_bytes)} assumed, because {layout}")
    if not layout.layers:
        return _Split(device_bytes=0), "no KV cache"
    if key_type != value_type and not all(layer.value_length for layer in layout.layers):
        raise EngineError(
            f"cache types {key_type.name} and {value_type.name} differ, and this model's latent "
            "attention has one type for both: set cache_type_v to the same as cache_type_k"
        )
    sizes = layer_cache_bytes(
        layout,
        cells,
        key_type=key_type,
        value_type=value_type,
        has_flash_attention=plan.has_flash,
    )
    sliding = sum(layer.is_sliding for layer in layout.layers)
    window = f", {sliding} of them with {cells.sliding} cells" if sliding else ""
    split = _Split(
        device_bytes=sum(sizes[plan.layers.start : plan.layers.stop]),
        host_bytes=sum(sizes[: plan.host_layers]),
    )
    return split, (
        f"KV cache {format_bytes(split.device_bytes)} ({cells.streams} × {cells.full} cells, "
        f"{len(layout.layers)} layers{window}, {settings.cache_type_k}/{settings.cache_type_v})"
    )


def _fitting_type(plan: _Plan, role: str, name: str) -> GgmlType:
    """Return the type of cached keys or values, if the server would take it for this model.

    Source: llama_init_from_model() in llama-context.cpp.
    """
    cache_type = GGML_TYPES_BY_NAME.get(name)
    if cache_type is None:
        raise EngineError(f"there is no cache type '{name}'; usual ones are f16, q8_0 and q4_0")
    layers = plan.layout.layers if isinstance(plan.layout, CacheLayout) else ()
    lengths = {layer.key_length if role == "key" else layer.value_length for layer in layers}
    uneven = [length for length in sorted(lengths) if length % cache_type.block_values]
    if uneven and plan.has_flash:
        raise EngineError(
            f"cache type {name} holds blocks of {cache_type.block_values} numbers, which do not "
            f"divide the {role}s of this model ({uneven[0]} numbers per head): use f16"
        )
    if role == "value" and cache_type.block_values > 1 and layers and not plan.has_flash:
        raise EngineError(f"cached values of type {name} need flash attention: use f16")
    return cache_type


def _estimate_compute(plan: _Plan) -> int:
    """Return an upper bound of the compute buffer, in bytes.

    The buffer keeps the attention masks all the time, and has room for the larger of two more:
    the widest layer, or the logits. Logits count for every token of a micro-batch, which is true
    of embedding; for chat newer builds reserve one row per slot, older ones all of them.
    Of several GPUs with all layers each computes on several batches at once, and so has more than
    one of the masks, and of what it takes from the GPU before it and hands to the next one
    (llama_context, `pipeline_parallel`). An eighth and 8 MiB come on top, for what some
    architectures add.
    """
    tokens, cells = plan.tokens, plan.cells
    masks = tokens * (cells.full + cells.sliding) * (2 if plan.has_flash else 4)
    logits = 0 if keeps_no_kv(plan.header.architecture) else _vocabulary(plan.header)
    width = plan.header.count_parameter("embedding_length") or 0
    scores = 0 if plan.has_flash else _largest(plan.header, "attention.head_count") * cells.full
    values = max(_widest_layer_values(plan.header) + scores, width + logits)
    if plan.settings.tensor_split and not plan.host_layers:
        masks *= _PIPELINE_COPIES
        values += 2 * _PIPELINE_COPIES * width
    bound = masks + tokens * values * _FLOAT_BYTES + _unpacked_layer_bytes(plan)
    return bound + bound // 8 + 8 * MIB


def _widest_layer_values(header: GgufHeader) -> int:
    """Return how many values per token one layer holds at a time, at most.

    Four times the model's width, beside either queries, keys, values and their product, or the
    feed-forward network's gate, input and product, of each expert that a token goes through.
    """
    width = header.count_parameter("embedding_length") or 0
    heads = _largest(header, "attention.head_count")
    head_length = _largest(header, "attention.key_length") or width // max(1, heads)
    feed_forward = _largest(header, "feed_forward_length")
    expert = _largest(header, "expert_feed_forward_length") or feed_forward
    experts = _largest(header, "expert_used_count") * (3 * expert + 2 * width)
    shared = 3 * max(
        _largest(header, "expert_shared_feed_forward_length"),
        _largest(header, "expert_shared_count") * expert,
    )
    return 4 * width + max(4 * heads * head_length, 3 * feed_forward, experts + shared)


def _unpacked_layer_bytes(plan: _Plan) -> int:
    """Return the bytes of one layer's quantised cache as f16, which CUDA's flash attention makes.

    Source: launch_fattn() in ggml/src/ggml-cuda/fattn-common.cuh.
    """
    types = {plan.settings.cache_type_k, plan.settings.cache_type_v}
    if isinstance(plan.layout, str) or types <= {"f32", "f16", "bf16"}:
        return 0
    widest = max((layer.cell_length for layer in plan.layout.layers), default=0)
    return plan.cells.streams * plan.cells.full * widest * 2


def _estimate_output(plan: _Plan) -> int:
    """Return the bytes of the results: logits and a vector for each token that has any."""
    rows = max(plan.tokens, plan.settings.parallel) if plan.settings.is_embedding else 0
    width = plan.header.count_parameter("embedding_length") or 0
    rows = rows or plan.settings.parallel
    return rows * (_vocabulary(plan.header) + width) * _FLOAT_BYTES


def _vocabulary(header: GgufHeader) -> int:
    listed = header.array_lengths.get("tokenizer.ggml.tokens", 0)
    return listed or header.count_parameter("vocab_size") or 0


def _largest(header: GgufHeader, name: str) -> int:
    """Return a hyperparameter, or the largest of its array, or 0 where it is missing."""
    values = header.parameter(name)
    numbers = values if isinstance(values, tuple) else (values,)
    return max((number for number in numbers if isinstance(number, int)), default=0)
