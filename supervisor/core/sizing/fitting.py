"""What makes a model fit: one setting turned down, or the largest value that still fits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from supervisor.core.sizing.estimate import MemorySettings, estimate_memory
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.kv_cache import keeps_no_kv, pad_cells
from supervisor.errors import EngineError

SMALLEST_CTX_SIZE = 512
"""Tokens of context below which a chat is not useful."""

CTX_STEP = 256
"""Tokens by which a context grows: llama.cpp keeps cells in steps of 256."""

MAX_CTX_SIZE = 1024 * 1024
"""Tokens of the longest context that is tried where a header does not name the trained one."""

MAX_PARALLEL = 256
"""LLAMA_MAX_SEQ: llama.cpp has no more slots."""

_SMALL_UBATCH_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A setting that would make a target smaller: as it is written, and what is needed then."""

    setting: str
    need_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest value of a setting that fits, all else unchanged; None: not even the minimum.

    `maximum` is the largest value that is allowed; `is_maximum`: memory is not what limits it.
    """

    value: int | None
    maximum: int
    is_maximum: bool


def alternatives(
    headers: Sequence[GgufHeader], settings: MemorySettings
) -> tuple[Alternative, ...]:
    """Return what each smaller setting would need, of each field the mildest first.

    Fields: the type of the KV cache, the context (halved again and again), the number of slots,
    the micro-batch. Settings that the server would refuse for this model are left out.
    """
    found = []
    now_bytes = estimate_memory(headers, settings).total_bytes
    for words, smaller in _smaller(headers[0], settings):
        try:
            need_bytes = estimate_memory(headers, smaller).total_bytes
        except EngineError:
            continue  # a quantised cache that this model cannot have
        if need_bytes < now_bytes:
            found.append(Alternative(setting=words, need_bytes=need_bytes))
    return tuple(found)


def _smaller(header: GgufHeader, settings: MemorySettings) -> Iterator[tuple[str, MemorySettings]]:
    if settings.cache_type_k not in {"q8_0", "q4_0"}:
        quantised = replace(
            settings, cache_type_k="q8_0", cache_type_v="q8_0", flash_attention=True
        )
        yield "cache_type_k: q8_0 and cache_type_v: q8_0", quantised
    tokens = settings.ctx_size_per_slot or trained_ctx_size(header) or 0
    for ctx_size in _halved(tokens, SMALLEST_CTX_SIZE):
        yield f"ctx_size: {ctx_size}", replace(settings, ctx_size_per_slot=ctx_size)
    if not settings.kv_unified:
        for parallel in _halved(settings.parallel, 1):
            yield f"parallel: {parallel}", replace(settings, parallel=parallel)
    if settings.ubatch_size > _SMALL_UBATCH_SIZE:
        small = replace(settings, ubatch_size=_SMALL_UBATCH_SIZE)
        yield f"ubatch_size: {_SMALL_UBATCH_SIZE}", small


def _halved(count: int, minimum: int) -> Iterator[int]:
    while count // 2 >= minimum:
        count //= 2
        yield count


def trained_ctx_size(header: GgufHeader) -> int | None:
    """Return the tokens of context that a model was trained for, where its header says so."""
    return header.count_parameter("context_length") or None


def mildest_fitting(smaller: Sequence[Alternative], room_bytes: int) -> tuple[Alternative, ...]:
    """Return, for each field, the mildest of its alternatives that fits."""
    by_field: dict[str, Alternative] = {}
    for alternative in smaller:
        if alternative.need_bytes <= room_bytes:
            by_field.setdefault(alternative.setting.partition(":")[0], alternative)
    return tuple(by_field.values())


Fits = Callable[[MemorySettings], bool]
"""Whether a model fits with these settings. What fits does so with a smaller context, too."""


def largest_ctx_size(header: GgufHeader, settings: MemorySettings, fits: Fits) -> Largest:
    """Return the largest `ctx_size` that fits, in steps of 256 tokens.

    It is no more than what the model was trained for (slots that share one context can each use as
    much), and at least 256 (or that).
    """
    trained = trained_ctx_size(header)
    users = settings.parallel if settings.kv_unified else 1
    maximum = trained * users if trained is not None else MAX_CTX_SIZE
    steps = pad_cells(maximum) // CTX_STEP
    found = _last_that_fits(
        lambda step: fits(replace(settings, ctx_size_per_slot=step * CTX_STEP)), steps
    )
    # A trained context that is not a multiple of 256 takes the room of the next one.
    value = None if found is None else min(found * CTX_STEP, maximum)
    return Largest(value=value, maximum=maximum, is_maximum=value == maximum)


def largest_parallel(header: GgufHeader, settings: MemorySettings, fits: Fits) -> Largest:
    """Return the largest number of slots that fits, 256 at most.

    Each is tried, from the top: where the slots share the model's own context (`ctx_size: 0`),
    more of them may take less. An encoder takes only numbers that divide its micro-batch.
    """
    is_encoder = settings.is_embedding and keeps_no_kv(header.architecture)
    allowed = [
        slots
        for slots in range(MAX_PARALLEL, 0, -1)
        if not is_encoder or settings.ubatch_size % slots == 0
    ]
    value = next((n for n in allowed if fits(replace(settings, parallel=n))), None)
    return Largest(value=value, maximum=allowed[0], is_maximum=value == allowed[0])


def _last_that_fits(fits: Callable[[int], bool], maximum: int) -> int | None:
    """Return the largest of 1 … maximum that fits, by bisection: what fits, fits at all smaller."""
    low, high = 0, maximum
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low or None
