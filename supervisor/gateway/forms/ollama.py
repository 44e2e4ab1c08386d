"""Embeddings as Ollama's API asks for them: `POST /api/embed`."""

import time

import msgspec

from supervisor.config.catalogue import LongInput
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.values import EmbeddingRequest
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, as_json, json_answer
from supervisor.gateway.call import Call
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.forms.embedding_answer import as_numbers, embedding_answer
from supervisor.gateway.forms.inputs import read_body, read_inputs

NS_PER_S = 1_000_000_000


class EmbedBody(msgspec.Struct, frozen=True):
    """The body of `/api/embed`; `options` and `keep_alive` are for its own runner.

    As there, no input or an empty one gets no vector, and 0 dimensions are all.
    """

    input: str | list[str] | None = None
    truncate: bool | None = None
    dimensions: int | None = None


_decoder = msgspec.json.Decoder(EmbedBody)


class OllamaForm:
    """Handlers of its routes."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    async def embed(self, call: Call) -> Answer:
        """Embed the inputs; none give none."""
        began_at = time.monotonic()
        body = read_body(_decoder, call.body)
        inputs = read_inputs(body.input or [], "input")
        target = self._service.target(call.wanted, call.head.path)
        if not inputs:
            return json_answer({"model": call.named or target.model, "embeddings": []})
        made = await self._service.embed(
            EmbeddingRequest(
                target=target,
                inputs=inputs,
                dimensions=body.dimensions or None,
                long_input=LongInput.ERROR if body.truncate is False else LongInput.TRUNCATE,
                priority=call.priority,
            )
        )
        content = {
            "model": call.named or target.model,
            "embeddings": await as_numbers(made.vectors),
            "total_duration": int((time.monotonic() - began_at) * NS_PER_S),
            "load_duration": int(made.queue_s * NS_PER_S),
            "prompt_eval_count": sum(made.tokens),
        }
        return embedding_answer(content, made)


def ollama_error(error: RequestRefused) -> Answer:
    """Answer with an error in its form: `{"error": text}`."""
    ours = error_answer(error)
    body = as_json({"error": error.message})
    return Answer(status=ours.status, body=body, headers=ours.headers)
