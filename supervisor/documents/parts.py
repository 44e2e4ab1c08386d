"""The lines of a document's job: parts of its text, and what comes of them.

A document is embedded in chunks, which are searched, and whole: in stretches that are each embedded
in windows as long as the model takes, and whose mean, weighted by tokens, is its vector. A document
of one chunk is that chunk.
"""

from collections.abc import Iterator, Sequence

import msgspec

from supervisor.documents.values import Chunk, ReadDocument
from supervisor.embedding.vectors import joined, normalized

STRETCH_CHARACTERS = 64 * 1024
"""Of the whole text, embedded at one go: some seconds on a processor."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What a model is to embed: a chunk, or a stretch of the whole text."""

    model: str
    content: Chunk | str

    @property
    def text(self) -> str:
        """The text that is embedded."""
        return self.content if isinstance(self.content, str) else self.content.text


class EmbeddedPart(msgspec.Struct, frozen=True, array_like=True):
    """What came of a part. `vector`: of length 1 for a chunk, and as it was made for a stretch.

    `tokens`: as the model saw them.
    """

    vector: bytes
    tokens: int
    chunk: Chunk | None


encode = msgspec.msgpack.Encoder().encode
decode_part = msgspec.msgpack.Decoder(Part).decode
decode_embedded = msgspec.msgpack.Decoder(EmbeddedPart).decode


def parts_of(document: ReadDocument, model: str) -> Iterator[Part]:
    """Yield the parts of a document: its chunks, then the stretches of the whole."""
    for chunk in document.chunks:
        yield Part(model, chunk)
    if len(document.chunks) > 1:
        for text in stretches(document.text, STRETCH_CHARACTERS):
            yield Part(model, text)


def stretches(text: str, most: int) -> Iterator[str]:
    """Yield a text in parts of up to `most` characters, divided between words where there are."""
    begin = 0
    while len(text) - begin > most:
        space = text.rfind(" ", begin + most // 2, begin + most)
        end = space + 1 if space >= 0 else begin + most
        yield text[begin:end]
        begin = end
    yield text[begin:]


def whole_vector(parts: Sequence[EmbeddedPart]) -> bytes:
    """Return the vector of the whole document that these are all parts of."""
    own = [part for part in parts if part.chunk is None]
    if not own:
        [only] = parts
        return only.vector
    return normalized(joined([part.vector for part in own], [part.tokens for part in own]))
