"""What is known of a document once it was read."""

from collections.abc import Sequence
from pathlib import Path

import msgspec


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
