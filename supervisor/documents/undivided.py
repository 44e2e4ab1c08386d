"""Texts that their callers have divided themselves: each becomes a chunk as it is."""

from collections.abc import Sequence

from supervisor.documents.storing import EmbeddedChunk, EmbeddedDocument, generation_of
from supervisor.embedding.values import Content, Embeddings
from supervisor.embedding.vectors import joined, normalized

UNDIVIDED = "undivided"
"""The way in which these texts are divided into chunks."""


def undivided(
    document: str, model: str, texts: Sequence[Content], made: Embeddings
) -> EmbeddedDocument:
    """Return a document of these texts, a chunk each; token ids stand for a text nobody knows.

    The whole has the vector of its only text, or the mean of all, weighted by their tokens.
    """
    known = [{"text": text} if isinstance(text, str) else {} for text in texts]
    vectors = made.vectors
    return EmbeddedDocument(
        id=document,
        model=model,
        chunker=UNDIVIDED,
        generation=generation_of(model, UNDIVIDED, *texts),
        vector=vectors[0] if len(vectors) == 1 else normalized(joined(vectors, made.tokens)),
        payload=known[0] if len(known) == 1 else {},
        chunks=[
            EmbeddedChunk(vector=vector, payload=payload)
            for vector, payload in zip(vectors, known, strict=True)
        ],
    )
