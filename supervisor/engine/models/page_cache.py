"""Warm start: a model's file is read into the page cache while its predecessor still drains.

A server that starts finds its weights in memory then, and the disk's time overlaps with the time
that the switch waits anyway. What is live comes first: nothing is read that would have to push it
out.

The file is read, not announced: `POSIX_FADV_WILLNEED` is cut to one readahead window (8 MiB of a
1 GiB file here), reports no error and gives no pace that could be stopped. Reading copies each byte
once, into a buffer that is used again: about 0.15 s of processor time per GiB.

The thread keeps its priority. With all processors busy a low one does not yield politely: it is
preempted while it holds the interpreter's lock, and the event loop waits with it (seen: 1 s), and
reading 1 GiB takes 20 s instead of 2.
"""

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from mmap import ACCESS_COPY, PAGESIZE, mmap
from pathlib import Path

from supervisor.core.byte_size import MIB

CHUNK_BYTES = 8 * MIB
"""Read between two looks at the memory and at `should_stop`: some milliseconds from a fast disk."""

MEMORY_IS_SHORT = "memory is scarce"
STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What came of warming files, in bytes over all of them.

    `resident_bytes` were in the page cache before, `read_bytes` were missing and have been read;
    both make `total_bytes` unless `stopped_because` says why it ended early: `memory is scarce`,
    `stopped`, or `unreadable: …` with the file.
    """

    total_bytes: int
    resident_bytes: int
    read_bytes: int
    took_s: float
    stopped_because: str | None = None


class FileWarmer:
    """Reads files into the page cache, as long as there is room for all of them.

    `available_bytes` returns what may be filled without pushing out what is live: free memory and
    page cache that nobody needs, so not what live servers have mapped (`mapped_file_bytes()`).
    `reserve_bytes` of it are left alone. It is asked every few milliseconds, from any thread.
    """

    def __init__(self, available_bytes: Callable[[], int], reserve_bytes: int) -> None:
        self._available_bytes = available_bytes
        self._reserve_bytes = reserve_bytes

    def warm(self, paths: Sequence[Path], should_stop: threading.Event) -> Warmed:
        """Read what is missing of the files, one after the other; block until that is done.

        Give it a thread: it lets others run while it reads. It raises nothing, because a switch
        goes on without it; the reason stands in the result. What has been read stays.
        """
        started_at = time.monotonic()
        progress = _Progress()
        stopped_because = self._read_all(paths, should_stop, progress)
        return Warmed(
            total_bytes=progress.total_bytes,
            resident_bytes=progress.resident_bytes,
            read_bytes=progress.read_bytes,
            took_s=time.monotonic() - started_at,
            stopped_because=stopped_because,
        )

    def _read_all(
        self, paths: Sequence[Path], should_stop: threading.Event, progress: "_Progress"
    ) -> str | None:
        """Return why it ended early, or None when everything is resident."""
        path = None
        try:
            for path in paths:
                progress.total_bytes += path.stat().st_size
            for path in paths:
                reason = self._read_one(path, should_stop, progress)
                if reason is not None:
                    return reason
        except (OSError, ValueError) as error:  # ValueError: a file shrank before it was mapped
            return f"unreadable: {path}: {getattr(error, 'strerror', None) or error}"
        return None

    def _read_one(
        self, path: Path, should_stop: threading.Event, progress: "_Progress"
    ) -> str | None:
        buffer = bytearray()
        with _opened(path) as fd:
            # Looked at before anything is read: later, our own readahead would count.
            for chunk in list(look_at_chunks(path, fd)):
                if should_stop.is_set():
                    return STOPPED
                progress.resident_bytes += chunk.resident_bytes
                if not chunk.missing_bytes:
                    continue
                if not self._has_room(progress.total_bytes):
                    return MEMORY_IS_SHORT
                # Made for the first of them: it takes milliseconds in which nobody else runs.
                buffer = buffer or bytearray(CHUNK_BYTES)
                _read(fd, chunk, buffer)
                progress.read_bytes += chunk.missing_bytes
        return None

    def _has_room(self, total_bytes: int) -> bool:
        """Whether all of the files fit; what is read of them already counts as available, too."""
        return total_bytes <= self._available_bytes() - self._reserve_bytes


@dataclass(slots=True)
class _Progress:
    """What has been done so far; see `Warmed`."""

    total_bytes: int = 0
    resident_bytes: int = 0
    read_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of a file, in bytes, and how much of it is in the page cache."""

    offset: int
    length: int
    resident_bytes: int

    @property
    def missing_bytes(self) -> int:
        """How much of it the disk must deliver."""
        return self.length - self.resident_bytes


def look_at_chunks(path: Path, fd: int) -> Iterator[Chunk]:
    """Look at an open file chunk by chunk: 10 to 20 ms per GiB.

    The kernel reveals residency only of files that we own or may write to, because it would betray
    what others read (mincore(2), since Linux 5.2); of others it says that all is resident. Those
    count as missing: reading what is cached costs little, and skipping what is not helps nobody.

    Raises OSError, and ValueError when the file shrinks meanwhile.
    """
    status = os.fstat(fd)
    is_known = status.st_uid == os.geteuid() or os.access(path, os.W_OK)
    for offset in range(0, status.st_size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, status.st_size - offset)
        resident_bytes = _count_resident_bytes(fd, offset, length) if is_known else 0
        yield Chunk(offset=offset, length=length, resident_bytes=resident_bytes)


def mapped_file_bytes(pids: Collection[int]) -> int:
    """Sum the page cache that processes have mapped: `RssFile` of /proc/PID/status, in bytes.

    Servers that map their weights (llama.cpp does by default) hold them there, where the kernel
    counts them as available. A process that is gone maps nothing.
    """
    return sum(map(_mapped_file_bytes, pids))


def _mapped_file_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return 0
    return sum(1024 * int(kib) for kib in _MAPPED.findall(status))


_MAPPED = re.compile(rb"^RssFile:\s*(\d+) kB$", re.MULTILINE)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block us
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # doubles the readahead window
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, chunk: Chunk, buffer: bytearray) -> None:
    """Read a whole chunk. Raises OSError, also when the file ends before the chunk does."""
    done = 0
    while done < chunk.length:
        with memoryview(buffer)[: chunk.length - done] as rest:
            count = os.preadv(fd, [rest], chunk.offset + done)
        if count == 0:
            raise OSError("the file became shorter while it was read")
        done += count


_libc = ctypes.CDLL(None)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


def _count_resident_bytes(fd: int, offset: int, length: int) -> int:
    """Count by mincore(2): a byte per page, 1 when it is resident; 0 where the kernel does not say.

    The mapping is copy-on-write because only of a writable one does Python give the address; nobody
    writes to it.
    """
    states = ctypes.create_string_buffer(-(-length // PAGESIZE))
    try:
        with mmap(fd, length, access=ACCESS_COPY, offset=offset) as mapping:
            address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
            is_known = _libc.mincore(address, length, states) == 0
    except OSError:  # a file system that maps nothing; whether it can be read, reading shows
        return 0
    return min(length, states.raw.count(1) * PAGESIZE) if is_known else 0
