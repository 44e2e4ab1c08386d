"""Answers the requests of batches: as their routes would, and as work that may wait.

Requests for embeddings that want the same are computed together: each on its own would cost the
tokenizer and the queue as much as its text costs the model.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

import msgspec

from supervisor.documents.storing import store_documents
from supervisor.documents.undivided import undivided
from supervisor.embedding.servers import Servers
from supervisor.embedding.values import EmbeddingRequest, Embeddings
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request
from supervisor.errors import RequestRefused
from supervisor.gateway.call import Call, CallHead
from supervisor.gateway.call_reader import CallReader, read_head, request_id_of
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.forms.openai import OpenAIForm
from supervisor.jobs.answering import Answered, Asked, Keeping, NotAnswered
from supervisor.jobs.batch_lines import EMBEDDINGS, ENDPOINTS
from supervisor.vector_store.opening import StoreOpener

_Outcome = Answered | NotAnswered

_HEADERS = ((b"Content-Type", b"application/json"), (b"X-Priority", b"batch"))

_MAY_PASS = frozenset({408, 409, 429, 500, 502, 503, 504, 507})
"""Statuses of what may go well another time."""

_STAYS = frozenset({"collection_mismatch"})
"""Codes of what has such a status and does not pass."""

_MAY_BE_ITS_FAULT = frozenset({500, 502})
"""Those after which a request may be to blame, as one that ends its server."""

_STORES_FAULTS = frozenset({"store_failed", "storage_full"})
_STORE_PAUSE_S = 60.0
"""Seconds until a request is computed once more whose vectors could not be stored: no fault of its
own, and no small work."""


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Told(msgspec.Struct, frozen=True):
    usage: _Usage = _Usage()


_decode_told = msgspec.json.Decoder(_Told).decode


class BatchAnswerer:
    """See `jobs.answering.Answerer`."""

    def __init__(
        self, reader: CallReader, openai: OpenAIForm, servers: Servers, opener: StoreOpener
    ) -> None:
        self._reader = reader
        self._openai = openai
        self._servers = servers
        self._opener = opener

    async def answer(self, asked: Sequence[Asked]) -> AsyncIterator[Sequence[_Outcome]]:
        """Yield what came of some of the requests as soon as it is known, each once."""
        heads = {url: self._head(url) for url in ENDPOINTS}
        calls: dict[int, Call] = {}
        for index, each in enumerate(asked):
            try:
                calls[index] = self._read(heads[each.url], each)
            except RequestRefused as error:
                yield [refused(index, error)]
        texts = {index: call for index, call in calls.items() if call.head.path == EMBEDDINGS}
        for keeping in {asked[index].keeping for index in texts}:
            some = {i: call for i, call in texts.items() if asked[i].keeping == keeping}
            names = [asked[index].name for index in some]
            async for outcomes in self._embedded(some, names, keeping):
                yield outcomes
        others = {index: call for index, call in calls.items() if index not in texts}
        async for outcomes in self._generated(others):
            yield outcomes

    def _head(self, url: str) -> CallHead:
        return self._reader.read_head(read_head("POST", url, _HEADERS, takes_chunks=True))

    def _read(self, head: CallHead, asked: Asked) -> Call:
        request_id = request_id_of(read_head("POST", asked.url, (), takes_chunks=True))
        return self._reader.read(head, asked.body, request_id)

    async def _embedded(
        self, calls: Mapping[int, Call], names: Sequence[str], keeping: Keeping | None
    ) -> AsyncIterator[Sequence[_Outcome]]:
        indices = list(calls)
        keep = None if keeping is None else partial(self._keep, names, keeping)
        async for answers in self._openai.embeddings_together(list(calls.values()), keep):
            outcomes = [(indices[place], answer) for place, answer in answers]
            yield [
                refused(index, answer)
                if isinstance(answer, RequestRefused)
                else _answered(index, calls[index], answer.status, answer.body)
                for index, answer in outcomes
            ]

    async def _keep(
        self,
        names: Sequence[str],
        keeping: Keeping,
        made: Sequence[tuple[int, EmbeddingRequest, Embeddings]],
    ) -> None:
        """Store the vectors of requests as documents. The same again changes nothing.

        What is not wanted any more is not stored: nobody gets its answer either.
        """
        documents = [
            undivided(names[place], request.target.model, request.inputs, each)
            for place, request, each in made
        ]
        store = await self._opener.store()
        async with self._opener.replacing(keeping.collection):
            if await keeping.is_wanted():
                await store_documents(store, keeping.collection, documents)

    async def _generated(self, calls: Mapping[int, Call]) -> AsyncIterator[Sequence[_Outcome]]:
        """Ask servers all at once: those that may not be admitted yet wait in their line."""
        asking = {asyncio.create_task(self._generate(i, call)) for i, call in calls.items()}
        try:
            while asking:
                done, asking = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                yield [task.result() for task in done]
        finally:
            for task in asking:
                task.cancel()

    async def _generate(self, index: int, call: Call) -> _Outcome:
        assert call.wanted is not None  # noqa: S101 - the task of its path has a default model
        try:
            status, body = await self._servers.ask(
                call.wanted, call.priority, lambda backend: _exchange(backend, call.request)
            )
        except RequestRefused as error:
            return refused(index, error)
        if status in _MAY_PASS:
            reason = f"its server answered {status}: {body[:200].decode(errors='replace')}"
            return NotAnswered(index=index, reason=reason, counts=status in _MAY_BE_ITS_FAULT)
        return _answered(index, call, status, body)


async def _exchange(backend: Backend, request: Request) -> tuple[int, bytes]:
    async with backend.exchange(request) as answer:
        return answer.status, await answer.read()


def _answered(index: int, call: Call, status: int, body: bytes) -> Answered:
    try:
        usage = _decode_told(body).usage
    except msgspec.MsgspecError:  # no object, no usage, or no JSON at all
        usage = _Usage()
        body = _as_json(body)
    return Answered(
        index=index,
        status=status,
        body=body,
        request_id=call.request_id,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
    )


def _as_json(body: bytes) -> bytes:
    """Return a body as it is where it is JSON, else as a text in JSON."""
    try:
        msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.encode(body.decode(errors="replace"))
    return body


def refused(index: int, error: RequestRefused) -> Answered | NotAnswered:
    """Return what a refusal means for a request: its answer, or that it is to be tried again."""
    answer = error_answer(error)
    is_stores_fault = error.code in _STORES_FAULTS
    if answer.status in _MAY_PASS and error.code not in _STAYS:
        return NotAnswered(
            index=index,
            reason=f"{error.code}: {error.message}",
            counts=answer.status in _MAY_BE_ITS_FAULT and not is_stores_fault,
            after_s=_STORE_PAUSE_S if is_stores_fault else error.details.get("retry_after_s"),
        )
    return Answered(index=index, status=answer.status, body=answer.body, request_id="")
