"""An input that is longer than its model takes: cut, or in windows."""

import asyncio
from typing import NamedTuple

from supervisor.config.catalogue import LongInput
from supervisor.embedding.intake import Intake
from supervisor.embedding.lengths import Frame, Ids, truncated, windows
from supervisor.embedding.text_lengths import cut_text, divide_text
from supervisor.embedding.tokenizer import Tokenizer
from supervisor.embedding.values import Content, Piece, PreparedInput, Side, too_long


class Shortening(NamedTuple):
    """How inputs of one request are shortened to what their model takes.

    `frame`: the special tokens around each text.
    """

    intake: Intake
    long_input: LongInput
    side: Side
    frame: Frame
    tokenizer: Tokenizer

    async def apply(self, content: Content, ids: Ids, index: int) -> PreparedInput:
        """Return one that is too long as it is sent. Raises RequestRefused `input_too_long`."""
        limit = self.intake.limit or 0
        if self.long_input is LongInput.ERROR:
            raise too_long(index, f"`inputs` must have less than {limit} tokens. Given: {len(ids)}")
        try:
            pieces = await self._pieces(content, ids, limit)
        except ValueError as error:
            raise too_long(index, str(error)) from error
        is_cut = self.long_input is LongInput.TRUNCATE
        return PreparedInput(pieces=pieces, was_truncated=is_cut)

    async def _pieces(self, content: Content, ids: Ids, limit: int) -> tuple[Piece, ...]:
        """Return what is sent of an input that is too long. Raises ValueError."""
        if self.intake.takes_ids or not isinstance(content, str):
            if self.long_input is LongInput.TRUNCATE:
                parts: tuple[Ids, ...] = (truncated(ids, limit, self.frame, self.side),)
            else:
                parts = await asyncio.to_thread(windows, ids, limit, self.frame)
            return tuple(Piece(part, len(part)) for part in parts)
        if self.long_input is LongInput.TRUNCATE:
            return (await cut_text(content, limit, self.side, self._count),)
        return await divide_text(content, limit, self._count)

    async def _count(self, text: str) -> int:
        [ids] = (await self.tokenizer.encode([text])).ids
        return len(ids)
