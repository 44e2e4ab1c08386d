"""Inputs as their model takes them: with its prompt, as its tokens, within its limit."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from supervisor.config.catalogue import LongInput
from supervisor.config.configuration import ResolvedModel
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.intake import Intake, look_at, require_dimensions
from supervisor.embedding.lengths import Ids
from supervisor.embedding.opened_tokenizer import Tokenizers
from supervisor.embedding.server_tokenizer import ServerTokenizers
from supervisor.embedding.servers import Servers
from supervisor.embedding.shortening import Shortening
from supervisor.embedding.tokenizer import Tokenized, Tokenizer
from supervisor.embedding.values import (
    TOO_LONG,
    Content,
    EmbeddingRequest,
    Piece,
    Prepared,
    PreparedInput,
    Side,
    too_long,
)
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused

LONGEST_TEXT = 1024 * 1024
"""Characters of a text that are looked at: more than any context takes, and 100 MB while they are
tokenised."""

_ANY_TEXT = "a"

_BYTES_PER_TOKEN = 4
"""A guess, for servers of which nobody knows the tokens."""


class Preparer:
    """Makes of a request's inputs what can be sent to a server."""

    def __init__(self, *, targets: Targets, engines: Engines, servers: Servers) -> None:
        self._targets = targets
        self._engines = engines
        self._server_tokenizers = ServerTokenizers(servers)
        self._tokenizers = Tokenizers()
        self._intakes: dict[tuple[str, str, Path], Intake] = {}
        self._looking: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def intake(self, target: Target, running: Path | None = None) -> Intake:
        """Return what a target takes; its files are read once for each configuration.

        `running`: the model's file that its server still runs, where another is configured since;
        what was taken with that holds then, where it is known. Raises RequestRefused:
        `extra_missing`, or `target_cannot_start`.
        """
        resolved = self._targets.resolved(target)
        key = target.model, target.profile, running or resolved.path
        known = self._intakes.get(key)
        if known is not None and (known.resolved is resolved or running is not None):
            return known
        key = target.model, target.profile, resolved.path
        async with self._looking[target.model]:
            known = self._intakes.get(key)
            if known is None or known.resolved is not resolved:
                known = await self._look_at(target, resolved)
                self._intakes[key] = known
        return known

    async def close(self) -> None:
        """Give back what tokenizers take; nothing may be prepared any more."""
        await self._tokenizers.close()

    async def _look_at(self, target: Target, resolved: ResolvedModel) -> Intake:
        ways = [resolved]
        if target.fallback is not None:
            ways.append(self._targets.resolved(target.fallback))
        path = resolved.tokenizer_path
        tokenizer = await self._tokenizers.open(path) if path else None
        twin = self._targets.resolved(target.spill) if target.spill else None
        return await asyncio.to_thread(look_at, ways, twin, self._engines, tokenizer)

    async def prepare(self, request: EmbeddingRequest, running: Path | None = None) -> Prepared:
        """Return each input in the pieces that its server is sent; `running` as for `intake`.

        May wait for the model's turn, where its server is asked for tokens. Raises RequestRefused:
        `bad_request` for a prompt that the model does not have or token ids that it does not know,
        `input_too_long`, `extra_missing`, and what a lease is refused with.
        """
        intake = await self.intake(request.target, running)
        if request.dimensions is not None and intake.dimensions is not None:
            require_dimensions(intake.resolved, request.dimensions, intake.dimensions)
        prompt = prompt_of(intake.resolved, request.prompt_name)
        long_input = request.long_input or intake.resolved.long_input
        inputs = [
            _require_ids(each, intake, index)
            if isinstance(each, tuple)
            else _looked_at(prompt + each, index, long_input, request)
            for index, each in enumerate(request.inputs)
        ]
        path = intake.resolved.path if intake.takes_ids else None
        return Prepared(await self._in_pieces(inputs, request, intake), path)

    async def _in_pieces(
        self, inputs: Sequence[Content], request: EmbeddingRequest, intake: Intake
    ) -> Sequence[PreparedInput]:
        """Return inputs, with their prompts, as they are sent."""
        tokenizer = self.tokenizer(intake, request.target, request.priority)
        if tokenizer is None:
            return [_uncounted(each) for each in inputs]
        long_input = request.long_input or intake.resolved.long_input
        limit = None if long_input is LongInput.ERROR else intake.limit
        tokenized = await _tokenized(tokenizer, inputs, limit)
        shortening = Shortening(
            intake, long_input, request.truncation_side, tokenized.frame, tokenizer
        )
        prepared: list[PreparedInput] = []
        errors: dict[int, RequestRefused] = {}
        for index, (each, own) in enumerate(zip(inputs, tokenized.ids, strict=True)):
            if intake.limit is None or len(own) <= intake.limit:
                prepared.append(
                    PreparedInput((Piece(own if intake.takes_ids else each, len(own)),))
                )
                continue
            try:
                prepared.append(await shortening.apply(each, own, index))
            except RequestRefused as error:
                if error.code != "input_too_long":
                    raise
                errors[index] = error
        if errors:
            first = errors[min(errors)]
            raise RequestRefused(first.code, first.message, first.details | {TOO_LONG: [*errors]})
        return prepared

    def tokenizer(self, intake: Intake, target: Target, priority: Priority) -> Tokenizer | None:
        """Return who knows the tokens of a target's texts; None where nobody does."""
        if intake.tokenizer is not None:
            return intake.tokenizer
        if intake.tells_tokens:
            return self._server_tokenizers.of(target, priority, intake.resolved.path)
        return None


async def _tokenized(
    tokenizer: Tokenizer, inputs: Sequence[Content], limit: int | None
) -> Tokenized:
    """Return the ids of each input, and the frame where there are texts, or ids to be shortened.

    `limit`: beyond it they are.
    """
    texts = [each for each in inputs if isinstance(each, str)]
    if not texts and (limit is None or all(len(each) <= limit for each in inputs)):
        return Tokenized([each for each in inputs if not isinstance(each, str)])
    # Ids that are cut need the frame, which the tokens of any text tell.
    tokenized = await tokenizer.encode(texts or [_ANY_TEXT])
    ids = iter(tokenized.ids)
    return Tokenized(
        [next(ids) if isinstance(each, str) else each for each in inputs], tokenized.frame
    )


def prompt_of(resolved: ResolvedModel, name: str | None) -> str:
    """Return what precedes each text. Raises RequestRefused for a prompt that the model has not."""
    if name is None:
        return ""
    prompt = resolved.prompts.get(name)
    if prompt is not None:
        return prompt
    known = ", ".join(resolved.prompts) or "none; the operator may write some in models.yaml"
    raise RequestRefused(
        "bad_request",
        f"'{resolved.name}' has no prompt '{name}'; there are: {known}",
        {"prompts": list(resolved.prompts)},
    )


def _looked_at(text: str, index: int, long_input: LongInput, request: EmbeddingRequest) -> str:
    """Return what of a text is tokenised. Raises RequestRefused `input_too_long`."""
    if len(text) <= LONGEST_TEXT:
        return text
    if long_input is not LongInput.TRUNCATE:
        raise too_long(
            index, f"it has {len(text)} characters, and may have {LONGEST_TEXT}; divide it"
        )
    return text[:LONGEST_TEXT] if request.truncation_side is Side.RIGHT else text[-LONGEST_TEXT:]


def _require_ids(ids: Ids, intake: Intake, index: int) -> Ids:
    """Return token ids. Raises RequestRefused where the model has no such, or takes none."""
    if not intake.takes_ids:
        raise RequestRefused(
            "bad_request",
            f"input {index} is a list of token ids, and the engine of '{intake.resolved.name}' "
            "takes texts only",
            {"index": index},
        )
    size = intake.vocabulary_size
    unknown = [each for each in ids if each < 0 or (size is not None and each >= size)]
    if unknown:
        raise RequestRefused(
            "bad_request",
            f"input {index} has the token id {unknown[0]}, and '{intake.resolved.name}' knows "
            f"those from 0 to {size - 1 if size else '?'}; ids of another model's tokenizer give "
            "wrong vectors: send texts (LangChain: check_embedding_ctx_length=False)",
            {"index": index},
        )
    return ids


def guessed_tokens(text: str) -> int:
    """Return about how many tokens a text has, where nobody tells."""
    return len(text.encode()) // _BYTES_PER_TOKEN + 1


def _uncounted(content: Content) -> PreparedInput:
    """Return an input whose tokens its server alone knows, and whether it is too long."""
    tokens = guessed_tokens(content) if isinstance(content, str) else len(content)
    return PreparedInput(pieces=(Piece(content=content, tokens=tokens),), is_guess=True)
