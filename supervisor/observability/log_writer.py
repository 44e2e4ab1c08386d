"""Writes log lines in a thread of its own: a stream that is slow or broken never stops a caller."""

import os
import select
import threading
from collections.abc import Callable

MAX_BACKLOG_BYTES = 8 * 1024 * 1024
"""Bytes that wait for a slow stream; what is beyond them is dropped and counted. A line of a
request takes about 250, so that this is more than a second of the busiest relay."""

CLOSE_TIMEOUT_S = 1.0
"""Seconds that the end of the process waits for a stream that does not take its lines."""

_RETRY_S = 1.0


class LogWriter:
    """Takes lines from any thread at once, and writes them to a file descriptor in their order.

    What cannot be written (a full disk, a closed pipe) is dropped; later lines are tried again.
    `on_dropped` is called in the writer's thread with the number of lines that were dropped, once
    the stream takes lines again.
    """

    def __init__(self, descriptor: int, on_dropped: Callable[[int], None]) -> None:
        self._descriptor = descriptor
        self._on_dropped = on_dropped
        self._changed = threading.Condition()
        self._waiting: list[bytes] = []
        self._backlog_bytes = 0  # of what waits and of what is being written
        self._dropped_lines = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, lines: bytes) -> None:
        """Hand over whole lines. Never blocks for longer than it takes to append them."""
        with self._changed:
            if self._backlog_bytes + len(lines) > MAX_BACKLOG_BYTES:
                self._dropped_lines += lines.count(b"\n")
                return
            self._waiting.append(lines)
            self._backlog_bytes += len(lines)
            self._changed.notify_all()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything is written or dropped; False where that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._backlog_bytes, timeout_s)

    def close(self) -> None:
        """Write what is left, for as long as the stream takes it, and end the thread."""
        self.flush(CLOSE_TIMEOUT_S)
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while lines := self._next_lines():
            is_written = self._write_out(lines)
            with self._changed:
                self._backlog_bytes -= len(lines)
                self._dropped_lines += 0 if is_written else lines.count(b"\n")
                dropped = self._dropped_lines if is_written else 0
                self._dropped_lines -= dropped
                self._changed.notify_all()
            if dropped:
                self._on_dropped(dropped)

    def _next_lines(self) -> bytes:
        """Wait for lines and take all of them; nothing once the writer is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed)
            lines = b"".join(self._waiting)
            self._waiting.clear()
            return lines

    def _write_out(self, lines: bytes) -> bool:
        left = memoryview(lines)
        while left:
            try:
                left = left[os.write(self._descriptor, left) :]
            except BlockingIOError:  # somebody who shares the stream has made it non-blocking
                select.select([], [self._descriptor], [], _RETRY_S)
            except OSError:
                return False
        return True
