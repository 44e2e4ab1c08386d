"""What a server prints: cut into lines, and handed on no faster than they can be of use.

A server may print 200,000 lines as it starts, or megabytes without a line's end. The pipe is always
read on, so that it never waits for us; but lines are handed on at a bounded rate, a piece of the
output at a time, and of the rest only the number.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import IO

KEPT_LINES = 200
"""Lines of output that are kept for error messages."""

BURST = 2000.0
"""Lines that are handed on at once; a line counts for one more with each KiB of it."""

LINES_PER_S = 200.0
"""Lines that are handed on over a longer time."""

PAUSE_S = 0.02
"""Seconds between two looks at a server that serves: it prints several lines for each request, and
to be woken for each costs more than the line. A pipe holds 64 KiB, 3 MB/s at that pace."""

_MAX_LINE_BYTES = 16 * 1024
_MAX_CHUNK_BYTES = 4 * 1024  # some fifty lines, which cost about a millisecond


class Output:
    """Reads what a process prints, until its end."""

    def __init__(
        self, on_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_line = on_line
        self._clock = clock
        self._rest = b""
        self._budget, self._filled_at = BURST, clock()
        self._is_skipping = False
        self._skipped_lines = self._skipped_bytes = 0
        self._pause_s = 0.0
        self._resting: asyncio.TimerHandle | None = None
        self._listen: Callable[[], None] = lambda: None
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        """The last lines, also those that were not handed on."""

    def slow_down(self) -> None:
        """Look only now and then from now on: what is printed is no news any more."""
        self._pause_s = PAUSE_S

    def hurry(self) -> None:
        """Look whenever there is something again, and at once."""
        self._pause_s = 0.0
        if self._resting is not None:
            self._rest_no_more()

    async def read(self, pipe: IO[bytes]) -> None:
        """Read the pipe to its end, and close it.

        It is read by hand: uvloop's own pipe transport closes the descriptor twice, and the second
        time it may be one that another thread has just opened.
        """
        loop, is_over = asyncio.get_running_loop(), asyncio.Event()
        with pipe:
            descriptor = pipe.fileno()
            os.set_blocking(descriptor, False)

            def read() -> None:
                with contextlib.suppress(BlockingIOError):
                    chunk = os.read(descriptor, _MAX_CHUNK_BYTES)
                    self.feed(chunk)
                    if not chunk:
                        is_over.set()
                        loop.remove_reader(descriptor)
                    elif self._pause_s and len(chunk) < _MAX_CHUNK_BYTES:  # that was all
                        loop.remove_reader(descriptor)
                        self._resting = loop.call_later(self._pause_s, self._rest_no_more)

            self._listen = partial(loop.add_reader, descriptor, read)
            self._listen()
            try:
                await is_over.wait()
            finally:
                if self._resting is not None:
                    self._resting.cancel()
                loop.remove_reader(descriptor)
                self.end()

    def _rest_no_more(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
            self._listen()

    def feed(self, chunk: bytes) -> None:
        """Take a piece of output; a line without an end is cut, and never awaited."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        self._refill()
        for number, line in enumerate(lines):
            if self._is_skipping or self._budget <= 0:
                self._skip(lines[number:])
                return
            self._hand_on(line)

    def end(self) -> None:
        """Hand on what stands behind the last line's end."""
        self._tell_of_skipped()
        if self._rest:
            self._hand_on(self._rest)
        self._rest = b""

    def _hand_on(self, line: bytes) -> None:
        text = _text(line)
        if text:
            self._budget -= 1 + len(line) // 1024
            self.last_lines.append(text)
            self._on_line(text)

    def _skip(self, lines: list[bytes]) -> None:
        self._is_skipping = True
        self._skipped_lines += len(lines)
        self._skipped_bytes += sum(map(len, lines))
        self.last_lines.extend(text for line in lines[-KEPT_LINES:] if (text := _text(line)))

    def _refill(self) -> None:
        """Let time pass; after a second without handing on there is room again."""
        now = self._clock()
        self._budget = min(BURST, self._budget + (now - self._filled_at) * LINES_PER_S)
        self._filled_at = now
        if self._is_skipping and self._budget >= LINES_PER_S:
            self._tell_of_skipped()

    def _tell_of_skipped(self) -> None:
        if self._skipped_lines:
            self._on_line(
                f"({self._skipped_lines} lines, {self._skipped_bytes} bytes, came too fast "
                "and are left out here)"
            )
        self._is_skipping = False
        self._skipped_lines = self._skipped_bytes = 0


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="replace").rstrip()
