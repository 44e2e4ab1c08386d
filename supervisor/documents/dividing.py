"""How a document is divided for its model, and what state of it that makes."""

from collections.abc import Callable

import msgspec

from supervisor.config.settings import DocumentSettings
from supervisor.documents.request import DocumentRequest
from supervisor.documents.storing import generation_of
from supervisor.documents.values import CHUNKER, Division
from supervisor.embedding.preparing import Preparer
from supervisor.engine.targets import Targets

DOCUMENT_PROMPT = "document"
"""The prompt before each text of a document, where its model has one of that name."""

CHARACTERS_PER_TOKEN = 3
"""An estimate, for models without a tokenizer.json: English has about 4, Korean 2. Chunks that
turn out longer than their model takes are embedded in windows."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How a document is divided, and the state of it that follows from that and its content."""

    division: Division
    generation: str


class Planner:
    """Plans the division of documents."""

    def __init__(
        self, targets: Targets, preparer: Preparer, settings: Callable[[], DocumentSettings]
    ) -> None:
        self._targets = targets
        self._preparer = preparer
        self._settings = settings

    async def plan(self, request: DocumentRequest, content_hash: str) -> Plan:
        """Plan a document's division. Raises RequestRefused where its model cannot be used."""
        prompt, division = await self._division(request.model)
        return Plan(
            division=division,
            generation=generation_of(
                *(CHUNKER, division.size, division.overlap, request.model, prompt, content_hash),
                *(request.file_name, request.media_type, request.metadata),
            ),
        )

    async def _division(self, model: str) -> tuple[str, Division]:
        """Return what precedes each text, and chunks that a model takes with it."""
        target, settings = self._targets.target(model), self._settings()
        intake = await self._preparer.intake(target)
        prompt = intake.resolved.prompts.get(DOCUMENT_PROMPT, "")
        size, overlap = settings.chunk_tokens, settings.chunk_overlap_tokens
        if intake.tokenizer is None:
            size, overlap = size * CHARACTERS_PER_TOKEN, overlap * CHARACTERS_PER_TOKEN
            return prompt, Division(size=size, overlap=overlap)
        if intake.limit is not None:
            [framed] = (await intake.tokenizer.encode([prompt])).ids
            size = max(1, min(size, intake.limit - len(framed)))
        path = str(intake.resolved.tokenizer_path)
        return prompt, Division(size=size, overlap=min(overlap, size // 2), tokenizer=path)
