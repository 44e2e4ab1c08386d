"""The form of the service that this one replaces: `POST /embed {"text", "store", "collection"}`."""

import msgspec

from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.values import EmbeddingRequest
from supervisor.embedding.vectors import unpack
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer
from supervisor.gateway.call import Call
from supervisor.gateway.forms.embedding_answer import embedding_answer
from supervisor.gateway.forms.inputs import read_body, read_inputs


class EmbedBody(msgspec.Struct, frozen=True):
    """The body. It stores unless it is told not to."""

    text: str
    store: bool = True
    collection: str | None = None


_decoder = msgspec.json.Decoder(EmbedBody)


class OlderForm:
    """The handler of its route."""

    def __init__(self, service: EmbeddingService) -> None:
        self._service = service

    async def embed(self, call: Call) -> Answer:
        """Embed one text."""
        body = read_body(_decoder, call.body)
        if body.store:
            raise RequestRefused(
                "not_implemented",
                "there is no store for vectors yet, and `store` is true where it is left out; send "
                '`"store": false` to get the vector',
            )
        target = self._service.target(call.wanted, call.head.path)
        inputs = read_inputs(body.text, "text")
        made = await self._service.embed(
            EmbeddingRequest(target=target, inputs=inputs, priority=call.priority)
        )
        content = {
            "embedding": unpack(made.vectors[0]),
            "dimensions": len(made.vectors[0]) // 4,
            "model": target.model,
            "tokens": made.tokens[0],
        }
        return embedding_answer(content, made)
