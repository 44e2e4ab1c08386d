"""Parts of documents become vectors, those of many documents together."""

from collections.abc import AsyncIterator, Sequence

from supervisor.config.catalogue import LongInput
from supervisor.core.scheduling.values import Priority
from supervisor.documents.dividing import DOCUMENT_PROMPT
from supervisor.documents.parts import EmbeddedPart, Part
from supervisor.documents.values import Chunk
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.together import embed_together
from supervisor.embedding.values import EmbeddingRequest
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused

PartOutcome = tuple[int, EmbeddedPart | RequestRefused]
"""Which part, and what came of it."""


class PartEmbedder:
    """Embeds parts of documents, as work that may wait."""

    def __init__(self, service: EmbeddingService, targets: Targets) -> None:
        self._service = service
        self._targets = targets

    async def embed(self, parts: Sequence[Part]) -> AsyncIterator[Sequence[PartOutcome]]:
        """Yield what came of parts as soon as it is known."""
        requests: dict[int, EmbeddingRequest] = {}
        for place, part in enumerate(parts):
            try:
                requests[place] = self._request(part)
            except RequestRefused as error:
                yield [(place, error)]
        places = list(requests)
        async for outcomes in embed_together(self._service, list(requests.values())):
            yield [
                (places[number], made)
                if isinstance(made, RequestRefused)
                else (
                    places[number],
                    _embedded(parts[places[number]], made.vectors[0], made.tokens[0]),
                )
                for number, made in outcomes
            ]

    def _request(self, part: Part) -> EmbeddingRequest:
        """Say what is to be made of a part. Raises RequestRefused where its model is not here.

        A stretch's vector is not normalised: the mean of several must weigh each by its tokens.
        """
        target = self._targets.target(part.model)
        has_prompt = DOCUMENT_PROMPT in self._targets.resolved(target).prompts
        return EmbeddingRequest(
            target=target,
            inputs=(part.text,),
            prompt_name=DOCUMENT_PROMPT if has_prompt else None,
            normalize=isinstance(part.content, Chunk),
            long_input=LongInput.WINDOW,
            priority=Priority.BATCH,
        )


def _embedded(part: Part, vector: bytes, tokens: int) -> EmbeddedPart:
    chunk = part.content if isinstance(part.content, Chunk) else None
    return EmbeddedPart(vector, tokens, chunk)
