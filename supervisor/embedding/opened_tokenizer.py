"""A model's `tokenizer.json` as the controller uses it: a large one is in a process of its own.

Reading it keeps the interpreter's lock for 70 ms a megabyte, in which nobody is served, and takes
40 MB of memory for each: 250,000 tokens, as multilingual models have them, take 380 MB. So does the
process, which ends when it was not asked for a while.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supervisor.embedding.tokenizer import FileTokenizer, ModelTokenizer, Tokenized
from supervisor.embedding.tokenizer_process import Describe, Encode, Tell, stamp_of
from supervisor.embedding.values import Token
from supervisor.errors import ModelFileError, RequestRefused
from supervisor.side_process.kept import KeptProcess

INLINE_BYTES = 700_000
"""Files of up to this size are read by the controller, in less than 50 ms, and no text goes to
another process then. Models of one language have some 30,000 tokens, in less."""

IDLE_S = 900.0
"""How long the process stays without a question. The next one waits while the file is read."""

_PROGRAM = "supervisor.embedding.tokenizer_process"


class Tokenizers:
    """Opens the tokenizers of models: each file once, however many models name it."""

    def __init__(self) -> None:
        self._opened: dict[tuple[Path, str], ModelTokenizer] = {}
        self._opening: dict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._processes: list[ProcessTokenizer] = []

    async def open(self, path: Path) -> ModelTokenizer:
        """Return the tokenizer of a file as it is now.

        Raises RequestRefused: `extra_missing`, or `target_cannot_start` with the reason.
        """
        try:
            async with self._opening[path]:
                stamp = stamp_of(path)
                if (path, stamp) not in self._opened:
                    self._opened[path, stamp] = await self._open(path, stamp)
                return self._opened[path, stamp]
        except OSError as error:
            raise RequestRefused(
                "target_cannot_start", f"{path} cannot be read: {error.strerror}"
            ) from error
        except ModelFileError as error:
            raise RequestRefused("target_cannot_start", str(error)) from error

    async def close(self) -> None:
        """End their processes."""
        for process in self._processes:
            await process.close()

    async def _open(self, path: Path, stamp: str) -> ModelTokenizer:
        if not _is_large(path):
            return await asyncio.to_thread(FileTokenizer, path)
        process = await ProcessTokenizer.open(path, stamp)
        self._processes.append(process)
        return process


def _is_large(path: Path) -> bool:
    return path.stat().st_size > INLINE_BYTES


class ProcessTokenizer:
    """A `ModelTokenizer` in a process of its own."""

    def __init__(self, process: KeptProcess, vocabulary_size: int) -> None:
        self._process = process
        self._size = vocabulary_size
        self._asked_at = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._resting: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path, stamp: str) -> "ProcessTokenizer":
        """Start the process, and wait until it has read the file. Raises RequestRefused."""
        program = (_PROGRAM, str(path), stamp)
        process = KeptProcess(f"the tokenizer {path.name}", program, "embedding_failed")
        try:
            size: int = await process.ask(Describe(), int)
        except BaseException:
            await process.close(0)
            raise
        opened = cls(process, size)
        opened._note_asked()
        return opened

    @property
    def vocabulary_size(self) -> int:
        """See `ModelTokenizer`."""
        return self._size

    async def encode(self, texts: Sequence[str]) -> Tokenized:
        """See `Tokenizer`."""
        tokenized: Tokenized = await self._ask(Encode(list(texts)), Tokenized)
        return tokenized

    async def told(self, text: str, *, adds_special: bool) -> list[Token]:
        """See `ModelTokenizer`."""
        told: list[Token] = await self._ask(Tell(text, adds_special), list[Token])
        return told

    async def close(self) -> None:
        """End the process."""
        if self._alarm is not None:
            self._alarm.cancel()
        await self._process.close(0)

    async def _ask(self, request: Encode | Tell, kind: Any) -> Any:
        self._note_asked()
        return await self._process.ask(request, kind)

    def _note_asked(self) -> None:
        loop = asyncio.get_running_loop()
        self._asked_at = loop.time()
        if self._alarm is None:
            self._alarm = loop.call_later(IDLE_S, self._look)

    def _look(self) -> None:
        """End the process where it was not asked for long; look again later where it was."""
        loop = asyncio.get_running_loop()
        running = self._process.running
        is_busy = running is not None and running.is_busy
        rests_at = loop.time() + IDLE_S if is_busy else self._asked_at + IDLE_S
        self._alarm = None
        if loop.time() >= rests_at:
            self._resting = asyncio.create_task(self._process.rest(), name="tokenizer-rest")
        else:
            self._alarm = loop.call_at(rests_at, self._look)
