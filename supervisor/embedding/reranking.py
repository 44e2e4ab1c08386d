"""Scores of texts for a query, by a model that pools by rank."""

import time
from collections.abc import Iterator, Sequence
from functools import partial

import msgspec

from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.preparing import Preparer, guessed_tokens
from supervisor.embedding.servers import Servers
from supervisor.embedding.text_lengths import cut_text
from supervisor.embedding.tokenizer import Tokenizer
from supervisor.embedding.values import Piece, Ranking, Side, too_long
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import post_json
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused

_BETWEEN = 2
"""The most that llama-server puts between query and text beside the frame of one: an end, and a
separator (`format_prompt_rerank()` in its server-common.cpp)."""


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A query, and the texts that are to be scored for it.

    `truncates`: whether a text is cut that is too long beside the query, else it is refused.
    """

    target: Target
    query: str
    texts: Sequence[str]
    truncates: bool = True
    truncation_side: Side = Side.RIGHT
    priority: Priority = Priority.INTERACTIVE


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    results: list[_Result]
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Batch(msgspec.Struct, frozen=True):
    scores: Sequence[float]
    tokens: int
    sent_at: float


_decode = msgspec.json.Decoder(_Answer).decode


class Reranker:
    """Has texts scored by their model's server, as much at once as a batch of embeddings has."""

    def __init__(self, *, targets: Targets, preparer: Preparer, servers: Servers) -> None:
        self._targets = targets
        self._preparer = preparer
        self._servers = servers

    def target(self, wanted: Target | None, path: str) -> Target:
        """Return the model that a path means: the one that is wanted, else the only reranker.

        Raises RequestRefused where none is clear, or where it is no reranker.
        """
        return self._targets.able(wanted, ModelTask.RERANKING, path)

    async def rank(self, request: RerankRequest) -> Ranking:
        """Return each text's score as the model gives it: the higher, the better it answers.

        Waits for the model's turn. Raises RequestRefused; `index` names a text that is too long.
        """
        began_at = time.monotonic()
        pieces = await self._fitting(request)
        fitted_at = time.monotonic()
        profile = self._targets.resolved(request.target).profile
        batches: list[_Batch] = []
        for texts in parts_of(pieces, profile.batching.max_batch_size, profile.batch_tokens):
            question = partial(_ask_for_scores, query=request.query, texts=texts)
            batches.append(await self._servers.ask(request.target, request.priority, question))
        sent_at = batches[0].sent_at
        return Ranking(
            scores=[score for batch in batches for score in batch.scores],
            tokens=[batch.tokens for batch in batches],
            truncated=sum(
                piece.content != text for piece, text in zip(pieces, request.texts, strict=True)
            ),
            tokenization_s=fitted_at - began_at,
            queue_s=sent_at - fitted_at,
            inference_s=time.monotonic() - sent_at,
        )

    async def _fitting(self, request: RerankRequest) -> Sequence[Piece]:
        """Return the texts, with the query's tokens; those cut that are too long beside it."""
        intake = await self._preparer.intake(request.target)
        tokenizer = self._preparer.tokenizer(intake, request.target, request.priority)
        if tokenizer is None or intake.limit is None:
            return [Piece(text, guessed_tokens(request.query + text)) for text in request.texts]
        own, *tokens = map(len, (await tokenizer.encode([request.query, *request.texts])).ids)
        room = intake.limit - own - _BETWEEN
        pieces = [
            Piece(text, own + count) for text, count in zip(request.texts, tokens, strict=True)
        ]
        for index, count in enumerate(tokens):
            if count > room and not request.truncates:
                raise too_long(
                    index,
                    f"`inputs` must have less than {intake.limit} tokens. Given: {count} beside "
                    f"{own} of the query",
                )
            if count > room:
                pieces[index] = Piece(await _cut(tokenizer, request, index, room), intake.limit)
        return pieces


def parts_of(pieces: Sequence[Piece], max_size: int, max_tokens: int) -> Iterator[list[str]]:
    """Divide texts into those that are asked about together, in order, within both bounds.

    So nobody who comes meanwhile waits for more than a batch of embeddings takes.
    """
    part: list[str] = []
    left = max_tokens
    for piece in pieces:
        if part and (len(part) == max_size or piece.tokens > left):
            yield part
            part, left = [], max_tokens
        part.append(str(piece.content))
        left -= piece.tokens
    yield part


async def _cut(tokenizer: Tokenizer, request: RerankRequest, index: int, room: int) -> str:
    async def count(text: str) -> int:
        [ids] = (await tokenizer.encode([text])).ids
        return len(ids)

    try:
        piece = await cut_text(request.texts[index], room, request.truncation_side, count)
    except ValueError as error:
        raise too_long(index, f"the query leaves no room: {error}") from error
    return str(piece.content)


async def _ask_for_scores(backend: Backend, *, query: str, texts: Sequence[str]) -> _Batch:
    content = {"model": backend.model, "query": query, "documents": texts}
    request = post_json("/v1/rerank", content)
    sent_at = time.monotonic()
    async with backend.exchange(request) as answer:
        status, received = answer.status, await answer.read()
    try:
        told = _decode(received)
        scores = {result.index: result.relevance_score for result in told.results}
        in_order = [scores[index] for index in range(len(texts))]
        return _Batch(in_order, told.usage.prompt_tokens, sent_at)
    except (msgspec.MsgspecError, KeyError) as error:
        words = received[:500].decode(errors="replace")
        raise RequestRefused(
            "embedding_failed",
            f"the server of '{backend.model}' answered {status}, and no score for each text: "
            f"{words}",
        ) from error
