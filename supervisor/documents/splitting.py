"""Texts into chunks of so many tokens, at the borders of sections, paragraphs and sentences."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from supervisor.documents.values import Chunk, Division


class Splitter:
    """Divides texts in one way; the tokenizer is read once."""

    def __init__(self, division: Division) -> None:
        """Read the tokenizer. Raises whatever is wrong with it."""
        size, overlap = division.size, division.overlap
        if division.tokenizer is None:
            self._plain = TextSplitter(size, overlap)
            self._markdown = MarkdownSplitter(size, overlap)
            return
        tokenizer = json.loads(Path(division.tokenizer).read_bytes())
        # Cut at the model's limit, every text would seem to fit into one chunk.
        tokenizer["truncation"] = tokenizer["padding"] = None
        text = json.dumps(tokenizer)
        self._plain = TextSplitter.from_huggingface_tokenizer_str(text, size, overlap)
        self._markdown = MarkdownSplitter.from_huggingface_tokenizer_str(text, size, overlap)

    def divide(
        self, text: str, page_starts: Sequence[int], *, is_markdown: bool = False
    ) -> Sequence[Chunk]:
        """Return a text's chunks in their order, with where they stand."""
        splitter = self._markdown if is_markdown else self._plain
        return [
            Chunk(chunk, start, start + len(chunk), bisect_right(page_starts, start) or None)
            for start, chunk in splitter.chunk_indices(text)
        ]
