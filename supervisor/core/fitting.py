"""What would make a model smaller: the same model with one setting turned down."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from supervisor.core.gguf import GgufHeader
from supervisor.core.need import NeedSettings, estimate_need
from supervisor.core.values import Alternative
from supervisor.errors import EngineError

SMALLEST_CTX_SIZE = 512
"""Tokens of context below which a chat is of no use."""

_SMALL_UBATCH_SIZE = 512


def alternatives(headers: Sequence[GgufHeader], settings: NeedSettings) -> tuple[Alternative, ...]:
    """Return what each smaller setting would need, of each field the mildest first.

    Fields: the type of the KV cache, the context (halved again and again), the number of slots,
    the micro-batch. Settings that the server would refuse for this model are left out.
    """
    found = []
    now_bytes = estimate_need(headers, settings).total_bytes
    for words, smaller in _smaller(headers[0], settings):
        try:
            need_bytes = estimate_need(headers, smaller).total_bytes
        except EngineError:
            continue  # a quantised cache that this model cannot have
        if need_bytes < now_bytes:
            found.append(Alternative(setting=words, need_bytes=need_bytes))
    return tuple(found)


def _smaller(header: GgufHeader, settings: NeedSettings) -> Iterator[tuple[str, NeedSettings]]:
    if settings.cache_type_k not in {"q8_0", "q4_0"}:
        quantised = replace(
            settings, cache_type_k="q8_0", cache_type_v="q8_0", flash_attention=True
        )
        yield "cache_type_k: q8_0 and cache_type_v: q8_0", quantised
    own_tokens = header.count_parameter("context_length") or 0
    for ctx_size in _halved(settings.ctx_size_per_slot or own_tokens, SMALLEST_CTX_SIZE):
        yield f"ctx_size: {ctx_size}", replace(settings, ctx_size_per_slot=ctx_size)
    if not settings.kv_unified:
        for parallel in _halved(settings.parallel, 1):
            yield f"parallel: {parallel}", replace(settings, parallel=parallel)
    if settings.ubatch_size > _SMALL_UBATCH_SIZE:
        small = replace(settings, ubatch_size=_SMALL_UBATCH_SIZE)
        yield f"ubatch_size: {_SMALL_UBATCH_SIZE}", small


def _halved(count: int, least: int) -> Iterator[int]:
    while count // 2 >= least:
        count //= 2
        yield count
