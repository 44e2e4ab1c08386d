"""Embeddings as OpenAI's API asks for them: `POST /v1/embeddings`."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import msgspec

from supervisor.embedding.in_turns import in_turns
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.together import embed_together
from supervisor.embedding.values import EmbeddingRequest, Embeddings
from supervisor.embedding.vectors import to_base64
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer
from supervisor.gateway.call import Call
from supervisor.gateway.forms.embedding_answer import as_numbers, embedding_answer
from supervisor.gateway.forms.inputs import GivenInputs, read_body, read_inputs

MAX_TOKENS = 300_000
"""Tokens of all inputs of a request together (OpenAI's API reference, Create embeddings)."""

FLOAT, BASE64 = "float", "base64"
ENCODING_FORMATS = (FLOAT, BASE64)

PROMPT_BY_INPUT_TYPE = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
}
"""Which of a model's prompts `input_type` means, in NVIDIA's and Cohere's words."""


class EmbeddingsBody(msgspec.Struct, frozen=True):
    """What is read of the body; other fields are skipped, as llama-server does.

    Null is what was not given: LiteLLM sends it.
    """

    input: GivenInputs
    encoding_format: str | None = None
    dimensions: int | None = None
    input_type: str | None = None
    prompt_name: str | None = None


class Asked(msgspec.Struct, frozen=True):
    """What a call asks for."""

    request: EmbeddingRequest
    is_base64: bool


Keep = Callable[[Sequence[tuple[int, EmbeddingRequest, Embeddings]]], Awaitable[None]]
"""Keeps what was made of calls, by their places. Raises RequestRefused."""

_decoder = msgspec.json.Decoder(EmbeddingsBody)


class OpenAIForm:
    """Handlers of OpenAI's routes."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    async def embeddings(self, call: Call) -> Answer:
        """Embed the inputs, in their order."""
        return await self._embed(call, None)

    async def query_embeddings(self, call: Call) -> Answer:
        """Embed the inputs as queries, for clients that cannot name a prompt."""
        return await self._embed(call, "query")

    async def document_embeddings(self, call: Call) -> Answer:
        """Embed the inputs as documents, likewise."""
        return await self._embed(call, "document")

    async def embeddings_together(
        self, calls: Sequence[Call], keep: Keep | None = None
    ) -> AsyncIterator[Sequence[tuple[int, Answer | RequestRefused]]]:
        """Embed the inputs of many calls; yields answers by the places of their calls.

        `keep` is given what was made of some before they are answered, and refuses them all.
        """
        asked: dict[int, Asked] = {}
        for place, call in enumerate(calls):
            try:
                asked[place] = self._read(call, None)
            except RequestRefused as error:
                yield [(place, error)]
        places, requests = list(asked), [each.request for each in asked.values()]
        async for outcomes in embed_together(self._service, requests):
            made = [(places[number], outcome) for number, outcome in outcomes]
            refusal = await _kept(keep, asked, made) if keep is not None else None
            yield [
                (place, each)
                if isinstance(each, RequestRefused)
                else (place, refusal or await _answer(asked[place], each))
                for place, each in made
            ]

    async def _embed(self, call: Call, prompt_name: str | None) -> Answer:
        asked = self._read(call, prompt_name)
        return await _answer(asked, await self._service.embed(asked.request))

    def _read(self, call: Call, prompt_name: str | None) -> Asked:
        body = read_body(_decoder, call.body)
        inputs = read_inputs(body.input, "input")
        if not inputs:
            raise RequestRefused("bad_request", "`input` is empty; give at least one text")
        encoding_format = body.encoding_format or FLOAT
        if encoding_format not in ENCODING_FORMATS:
            raise RequestRefused(
                "bad_request", f"`encoding_format` must be {' or '.join(ENCODING_FORMATS)}"
            )
        request = EmbeddingRequest(
            target=self._service.target(call.wanted, call.head.path),
            inputs=inputs,
            prompt_name=prompt_name or _prompt_name(body),
            dimensions=body.dimensions,
            max_tokens=MAX_TOKENS,
            priority=call.priority,
        )
        return Asked(request, encoding_format == BASE64)


async def _kept(
    keep: Keep, asked: Mapping[int, Asked], made: Sequence[tuple[int, Embeddings | RequestRefused]]
) -> RequestRefused | None:
    """Have made vectors kept; returns why they are not."""
    kept = [
        (place, asked[place].request, each) for place, each in made if isinstance(each, Embeddings)
    ]
    try:
        if kept:
            await keep(kept)
    except RequestRefused as error:
        return error
    return None


def _prompt_name(body: EmbeddingsBody) -> str | None:
    if body.prompt_name is not None or body.input_type is None:
        return body.prompt_name
    name = PROMPT_BY_INPUT_TYPE.get(body.input_type)
    if name is None:
        raise RequestRefused(
            "bad_request", f"`input_type` must be one of {', '.join(PROMPT_BY_INPUT_TYPE)}"
        )
    return name


async def _answer(asked: Asked, made: Embeddings) -> Answer:
    tokens = sum(made.tokens)
    vectors = made.vectors
    written = await (in_turns(to_base64, vectors) if asked.is_base64 else as_numbers(vectors))
    content = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(written)
        ],
        "model": asked.request.target.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return embedding_answer(content, made)
