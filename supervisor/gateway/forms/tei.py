"""Embeddings as clients of text-embeddings-inference ask for them (its version 1.9).

Its answers are bare arrays, its bodies name no model (`?model=` does, else the default one is
meant), and it cuts what is too long unless it is told not to.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from supervisor.config.catalogue import LongInput
from supervisor.core.machine.values import Target
from supervisor.embedding.in_turns import in_turns
from supervisor.embedding.reranking import Reranker, RerankRequest
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.telling_tokens import TokenTeller
from supervisor.embedding.values import Computed, Content, EmbeddingRequest, Embeddings, Side
from supervisor.embedding.vectors import cosine
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, as_json, json_answer
from supervisor.gateway.call import Call, Headers
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.forms.embedding_answer import as_numbers, embedding_answer
from supervisor.gateway.forms.inputs import (
    GivenInputs,
    is_given,
    read_body,
    read_inputs,
    require_count,
)
from supervisor.telemetry.port import HOST

_SIDES = {"left": Side.LEFT, "right": Side.RIGHT}


class Sentences(msgspec.Struct, frozen=True):
    """A sentence, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How texts are to be read. `truncate` None: as the server does without being asked."""

    truncate: bool | None = None
    truncation_direction: str = "Right"
    prompt_name: str | None = None

    def long_input(self) -> LongInput:
        """Return what is to become of an input that is too long."""
        return LongInput.ERROR if self.truncate is False else LongInput.TRUNCATE

    def side(self) -> Side:
        """Return which end is cut off. Raises RequestRefused."""
        side = _SIDES.get(self.truncation_direction.lower())
        if side is None:
            raise RequestRefused("bad_request", "`truncation_direction` must be Left or Right")
        return side


class EmbedBody(Reading, frozen=True, kw_only=True):
    """The body of `/embed`."""

    inputs: GivenInputs
    normalize: bool = True
    dimensions: int | None = None


class SimilarityBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/similarity`."""

    inputs: Sentences
    parameters: Reading | None = None


class RerankBody(Reading, frozen=True, kw_only=True):
    """The body of `/rerank`."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


class TokenizeBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `/tokenize`."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class _AnyBody(msgspec.Struct, frozen=True):
    inputs: msgspec.Raw = msgspec.Raw()
    texts: msgspec.Raw = msgspec.Raw()


_embed_decoder = msgspec.json.Decoder(EmbedBody)
_similarity_decoder = msgspec.json.Decoder(SimilarityBody)
_rerank_decoder = msgspec.json.Decoder(RerankBody)
_tokenize_decoder = msgspec.json.Decoder(TokenizeBody)
_any_decoder = msgspec.json.Decoder(_AnyBody)


class TeiForm:
    """Handlers of its routes."""

    def __init__(self, service: EmbeddingService, reranker: Reranker, teller: TokenTeller) -> None:
        self._service = service
        self._reranker = reranker
        self._teller = teller

    async def own_task(self, call: Call) -> Answer:
        """Embed, compare sentences, or rank texts: clients post all to the address itself."""
        body = read_body(_any_decoder, call.body)
        if is_given(body.texts):
            return await self.rerank(call)
        is_comparison = bytes(body.inputs).lstrip().startswith(b"{")
        return await (self.similarity(call) if is_comparison else self.embed(call))

    async def embed(self, call: Call) -> Answer:
        """Embed the inputs; one array for each, also for one text."""
        body = read_body(_embed_decoder, call.body)
        inputs = read_inputs(body.inputs, "inputs")
        target = self._target(call)
        made = await self._embed(
            EmbeddingRequest(
                target=target,
                inputs=inputs,
                prompt_name=body.prompt_name,
                normalize=body.normalize,
                dimensions=body.dimensions,
                long_input=body.long_input(),
                truncation_side=body.side(),
                priority=call.priority,
            )
        )
        return _answer(await as_numbers(made.vectors), made, target, inputs)

    async def similarity(self, call: Call) -> Answer:
        """Return the cosine of a sentence with each of others."""
        body = read_body(_similarity_decoder, call.body)
        reading = body.parameters or Reading()
        inputs = read_inputs([body.inputs.source_sentence, *body.inputs.sentences], "inputs")
        if len(inputs) < 2:
            raise _empty("`inputs.sentences` cannot be empty")
        target = self._target(call)
        made = await self._embed(
            EmbeddingRequest(
                target=target,
                inputs=inputs,
                prompt_name=reading.prompt_name,
                long_input=reading.long_input(),
                truncation_side=reading.side(),
                priority=call.priority,
            )
        )
        source, *others = made.vectors
        cosines = await in_turns(partial(cosine, source), others)
        return _answer(cosines, made, target, inputs)

    async def rerank(self, call: Call) -> Answer:
        """Order texts by how well they answer a query, the best first."""
        body = read_body(_rerank_decoder, call.body)
        texts = body.texts
        require_count(texts, "texts")
        if not texts:
            raise _empty("`texts` cannot be empty")
        target = self._reranker.target(call.wanted, call.head.path)
        made = await self._reranker.rank(
            RerankRequest(
                target=target,
                query=body.query,
                texts=texts,
                truncates=body.truncate is not False,
                truncation_side=body.side(),
                priority=call.priority,
            )
        )
        best_first = sorted(range(len(texts)), key=lambda index: -made.scores[index])
        ranked = [_ranked(body, made.scores[index], index) for index in best_first]
        return _answer(ranked, made, target, [body.query, *texts])

    async def tokenize(self, call: Call) -> Answer:
        """Return each text's tokens, and where they stand."""
        body = read_body(_tokenize_decoder, call.body)
        texts = [str(each) for each in read_inputs(body.inputs, "inputs")]
        if not texts:
            raise _empty("`inputs` cannot be empty")
        return json_answer(
            await self._teller.tokens(
                self._teller.target(call.wanted, call.head.path),
                texts,
                prompt_name=body.prompt_name,
                adds_special=body.add_special_tokens,
                priority=call.priority,
            )
        )

    def _target(self, call: Call) -> Target:
        return self._service.target(call.wanted, call.head.path)

    async def _embed(self, request: EmbeddingRequest) -> Embeddings:
        if not request.inputs:
            raise _empty("`inputs` cannot be empty")
        return await self._service.embed(request)


def _ranked(body: RerankBody, raw_score: float, index: int) -> dict[str, Any]:
    score = raw_score if body.raw_scores else _sigmoid(raw_score)
    text = {"text": body.texts[index]} if body.return_text else {}
    return {"index": index, **text, "score": score}


def _sigmoid(score: float) -> float:
    """Return 1 / (1 + exp(-score)), in the form that no score overflows."""
    return 0.5 * (1.0 + math.tanh(0.5 * score))


def _answer(content: Any, made: Computed, target: Target, inputs: Sequence[Content]) -> Answer:
    total_s = made.tokenization_s + made.queue_s + made.inference_s
    characters = sum(len(each) for each in inputs if isinstance(each, str))
    is_by_twin = target.spill is not None and made.served_by == (target.spill.profile,)
    is_on_host = is_by_twin or target.device == HOST
    headers: Headers = (
        (b"x-compute-type", b"cpu" if is_on_host else b"gpu"),
        (b"x-compute-time", b"%d" % (made.inference_s * 1000)),
        (b"x-compute-characters", b"%d" % characters),
        (b"x-compute-tokens", b"%d" % sum(made.tokens)),
        (b"x-total-time", b"%d" % (total_s * 1000)),
        (b"x-tokenization-time", b"%d" % (made.tokenization_s * 1000)),
        (b"x-queue-time", b"%d" % (made.queue_s * 1000)),
        (b"x-inference-time", b"%d" % (made.inference_s * 1000)),
    )
    return embedding_answer(content, made, headers)


def _empty(message: str) -> RequestRefused:
    return RequestRefused("inputs_empty", message)


_ERROR_TYPE_AND_STATUS = {
    400: ("Validation", 422),
    422: ("Validation", 422),
    429: ("Overloaded", 429),
    500: ("Backend", 424),
    502: ("Backend", 424),
    503: ("Unhealthy", 503),
    504: ("Unhealthy", 503),
}
"""How its errors are called, and with which status it answers them, by ours."""

OVERLOADED = "Model is overloaded"
"""What its clients look for in a refusal that they may repeat."""


def tei_error(error: RequestRefused) -> Answer:
    """Answer with an error in its form: `{"error", "error_type"}`."""
    ours = error_answer(error)
    error_type, status = _ERROR_TYPE_AND_STATUS.get(
        ours.status, ("Backend" if ours.status > 500 else "Validation", ours.status)
    )
    if error.code == "inputs_empty":
        error_type, status = "Empty", 400
    message = f"{OVERLOADED}: {error.message}" if error_type == "Overloaded" else error.message
    return Answer(
        status=status,
        body=as_json({"error": message, "error_type": error_type}),
        headers=ours.headers,
    )
