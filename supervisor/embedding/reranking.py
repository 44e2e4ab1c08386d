"""Scores of texts for a query, by a model that pools by rank."""

from collections.abc import Sequence

import msgspec

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Target
from supervisor.core.scheduling.values import Priority
from supervisor.engine.servers.backend import MAX_REPEATS, Backend
from supervisor.engine.servers.framing import Request
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import BackendUnreachable, RequestRefused


class RerankRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A query, and the texts that are to be scored for it."""

    target: Target
    query: str
    texts: Sequence[str]
    priority: Priority = Priority.INTERACTIVE


class _Result(msgspec.Struct):
    index: int
    relevance_score: float


class _Answer(msgspec.Struct):
    results: list[_Result]


_decode = msgspec.json.Decoder(_Answer).decode


class Reranker:
    """Has texts scored by their model's server, as many at once as a batch of embeddings has."""

    def __init__(
        self, *, arbiter: Arbiter, configuration: ConfigurationHolder, targets: Targets
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets

    def target(self, wanted: Target | None, path: str) -> Target:
        """Return the model that a path means: the one that is wanted, else the only reranker.

        Raises RequestRefused where none is clear, or where it is no reranker.
        """
        return self._targets.able(wanted, ModelTask.RERANKING, path)

    async def scores(self, request: RerankRequest) -> list[float]:
        """Return each text's score as the model gives it: the higher, the better it answers.

        Waits for the model's turn. Raises RequestRefused.
        """
        self._targets.require_device(request.target)
        at_once = self._targets.resolved(request.target).profile.batching.max_batch_size
        scores: list[float] = []
        for begin in range(0, len(request.texts), at_once):
            scores += await self._score(request, request.texts[begin : begin + at_once])
        return scores

    async def _score(self, request: RerankRequest, texts: Sequence[str]) -> list[float]:
        """Score one batch, once more where its server died under it."""
        may_switch = self._configuration.current.settings.scheduler.auto_switch
        repeats_left = MAX_REPEATS
        while True:
            async with self._arbiter.lease(
                request.target, may_switch=may_switch, priority=request.priority
            ) as lease:
                try:
                    return await _ask_for_scores(lease.backend, request.query, texts)
                except BackendUnreachable:
                    if not repeats_left or not await lease.backend.is_found_dead():
                        raise
            repeats_left -= 1


async def _ask_for_scores(backend: Backend, query: str, texts: Sequence[str]) -> list[float]:
    body = msgspec.json.encode({"model": backend.model, "query": query, "documents": texts})
    headers = ((b"Content-Type", b"application/json"),)
    request = Request(method="POST", path="/v1/rerank", headers=headers, body=body)
    async with backend.exchange(request) as answer:
        status, content = answer.status, await answer.read()
    try:
        scores = {result.index: result.relevance_score for result in _decode(content).results}
        return [scores[index] for index in range(len(texts))]
    except (msgspec.MsgspecError, KeyError) as error:
        told = content[:500].decode(errors="replace")
        raise RequestRefused(
            "embedding_failed",
            f"the server of '{backend.model}' answered {status}, and no score for each text: "
            f"{told}",
        ) from error
