"""What is known of a document as it is sent in, divided and read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

CHUNKER = "semantic-text-splitter-1"
"""A word for the way in which documents are divided: it changes where chunks would."""


class NewDocument(msgspec.Struct, frozen=True, kw_only=True):
    """A document as it is sent in.

    `content`: its file, which is taken from there, or its text. `id`: None: its file's name, or a
    word for its content. `model`: None: the default one for embedding. `collection`: None: it is
    not stored. `callback_url`: who is told when it is done.
    """

    content: Path | str
    id: str | None
    file_name: str | None
    media_type: str | None
    model: str | None
    collection: str | None
    metadata: Mapping[str, Any]
    priority: str
    callback_url: str | None = None


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A document's file, and what its sender says of it: its name and its media type."""

    path: Path
    file_name: str | None = None
    media_type: str | None = None


class Division(msgspec.Struct, frozen=True, kw_only=True):
    """How texts are divided into chunks.

    `size` and `overlap` are tokens of the tokenizer.json at `tokenizer`, special ones not counted;
    without one they are characters.
    """

    size: int
    overlap: int
    tokenizer: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """A part of a document's text: characters `start` to `stop`.

    `page`: where it begins, counted from 1; None where the document has no pages.
    """

    text: str
    start: int
    stop: int
    page: int | None


class ReadDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What a file says.

    `page_starts`: the character with which each page begins; none where it has no pages.
    """

    format: str
    text: str
    page_starts: Sequence[int]
    chunks: Sequence[Chunk]
