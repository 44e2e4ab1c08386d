"""What an embedding model takes: how long an input may be, in what form, and whose tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from supervisor.config.configuration import ResolvedModel
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.core.sizing.input_limit import longest_input
from supervisor.embedding.tokenizer import ModelTokenizer
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.models.model_source import look_at_model
from supervisor.engine.port import Abilities
from supervisor.errors import EngineError, ModelFileError, RequestRefused

log = structlog.get_logger()

_VOCABULARY = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intake:
    """What a model takes.

    `limit`: tokens of its longest input, special ones included; None: not known. `vocabulary_size`:
    token ids are below; None: not known. `dimensions`: of its vectors; None: not known.
    `takes_ids`: its server is sent token ids, else texts. `tokenizer`: out of its own file; None:
    its server is asked, where `tells_tokens`.
    """

    resolved: ResolvedModel
    limit: int | None
    vocabulary_size: int | None
    dimensions: int | None
    takes_ids: bool
    tells_tokens: bool
    tokenizer: ModelTokenizer | None


def look_at(
    ways: Sequence[ResolvedModel],
    twin: ResolvedModel | None,
    engines: Engines,
    tokenizer: ModelTokenizer | None,
) -> Intake:
    """Read what a model takes from its files, its profile and its engine; blocks.

    `ways`: with each profile that it may run with, its own first; what is taken is what all take.
    `twin`: the model as its twin, which must be asked in the same way, but may take less at a time.
    `tokenizer`: out of the file that the model names, where it names one.
    Raises RequestRefused: `extra_missing`, `target_cannot_start` for files and engines that cannot
    be used.
    """
    own, *others = [_look_at(resolved, engines, tokenizer) for resolved in ways]
    if own.tokenizer is not None and any(own.takes_ids is not each.takes_ids for each in others):
        raise RequestRefused(
            "target_cannot_start",
            f"'{own.resolved.name}' names a tokenizer, and one of its profile and the fallback "
            "takes token ids and the other texts: the two would make other vectors of one text; "
            "leave out `fallback_profile`, or choose an engine that takes ids",
        )
    if twin is not None:
        _require_alike(own, _abilities_of(twin, engines))
    limits = [each.limit for each in (own, *others) if each.limit is not None]
    return replace(
        own,
        limit=min(limits, default=None),
        takes_ids=all(each.takes_ids for each in (own, *others)),
        tells_tokens=all(each.tells_tokens for each in (own, *others)),
    )


def _abilities_of(resolved: ResolvedModel, engines: Engines) -> Abilities:
    try:
        return engines.choose(resolved.profile.engine).abilities(resolved)
    except (EngineError, ModelFileError) as error:
        raise RequestRefused("target_cannot_start", str(error)) from error


def _look_at(resolved: ResolvedModel, engines: Engines, tokenizer: ModelTokenizer | None) -> Intake:
    abilities = _abilities_of(resolved, engines)
    try:
        file = look_at_model(resolved, abilities)
    except (EngineError, ModelFileError) as error:
        raise RequestRefused("target_cannot_start", str(error)) from error
    header = file.header if file else None
    if tokenizer is None and header is not None and _loses_hangul(header, abilities):
        log.warning(
            "embedding.tokenizer_missing",
            model=resolved.name,
            reason="llama.cpp's WordPiece keeps only the initial of each Hangul syllable; name the "
            "model's tokenizer.json as `tokenizer` in models.yaml",
        )
    return Intake(
        resolved=resolved,
        limit=_limit(resolved, header, abilities),
        vocabulary_size=_vocabulary_size(resolved, header, tokenizer),
        dimensions=_dimensions(header) if header else None,
        takes_ids=abilities.takes_token_ids,
        tells_tokens=abilities.tokenize is not None,
        tokenizer=tokenizer,
    )


def _require_alike(own: Intake, twin: Abilities) -> None:
    takes_other = own.tokenizer is not None and own.takes_ids is not twin.takes_token_ids
    tells_less = own.tokenizer is None and own.tells_tokens and twin.tokenize is None
    if takes_other or tells_less:
        what = "takes token ids" if takes_other else "tells how many tokens a text has"
        raise RequestRefused(
            "target_cannot_start",
            f"of '{own.resolved.name}' and its twin only one {what}; leave out `spill`, or choose "
            "the same engine for both",
        )


def require_dimensions(resolved: ResolvedModel, wanted: int, own: int) -> None:
    """Raise RequestRefused where a model's vectors, `own` long, cannot be cut to what is wanted."""
    known = resolved.matryoshka_dimensions
    if wanted == own or wanted in known:
        return
    can = (
        f"only to {', '.join(map(str, known))}" if known else "models.yaml names no lengths for it"
    )
    raise RequestRefused(
        "bad_request",
        f"the vectors of '{resolved.name}' have {own} dimensions and cannot be cut to {wanted}: "
        f"{can} (matryoshka_dimensions)",
    )


def _dimensions(header: GgufHeader) -> int | None:
    """Return how long vectors are; some models make others of theirs than they compute with."""
    out = header.count_parameter("embedding_length_out")
    return out or header.count_parameter("embedding_length")


def _vocabulary_size(
    resolved: ResolvedModel, header: GgufHeader | None, tokenizer: ModelTokenizer | None
) -> int | None:
    """Return how many tokens a model has. Raises RequestRefused for a tokenizer that has more."""
    known = header.array_lengths.get(_VOCABULARY) if header else None
    if tokenizer is None:
        return known
    size = known or tokenizer.vocabulary_size
    if tokenizer.vocabulary_size > size:
        raise RequestRefused(
            "target_cannot_start",
            f"{resolved.tokenizer_path} is not the tokenizer of '{resolved.name}': it has "
            f"{tokenizer.vocabulary_size} tokens, and the model {size}",
        )
    return size


def _loses_hangul(header: GgufHeader, abilities: Abilities) -> bool:
    return abilities.runs_gguf_only and header.metadata.get("tokenizer.ggml.model") == "bert"


def _limit(resolved: ResolvedModel, header: GgufHeader | None, abilities: Abilities) -> int | None:
    """Return the smallest of the limits that are known."""
    profile = resolved.profile
    at_once = min(profile.batch_size, profile.ubatch_size)
    limits = [resolved.max_input_tokens]
    if header is not None and abilities.runs_gguf_only:
        limits.append(
            longest_input(
                header,
                ctx_size=profile.ctx_size,
                parallel=profile.parallel,
                kv_unified=profile.kv_unified,
                ubatch_size=at_once,
                pooling=profile.pooling,
            )
        )
        if not abilities.splits_inputs:
            limits.append(at_once)
    elif header is not None:
        limits.append(header.count_parameter("context_length"))
    return min((limit for limit in limits if limit is not None), default=None)
