"""One ledger of the memory that bodies take while they come in, wait, and are answered."""

import asyncio
import ctypes

from supervisor.config.holder import ConfigurationHolder
from supervisor.core.byte_size import MIB
from supervisor.errors import RequestRefused
from supervisor.telemetry.cgroup import MemoryCgroup

DEFAULT_MAX_BYTES = 256 * MIB
"""What all bodies may take where the operator names nothing; a quarter of the cgroup's limit where
that is less: servers and their page cache need the rest."""

_WORTH_TRIMMING_BYTES = 16 * MIB
_TRIM_AFTER_S = 1.0


class BodyLedger:
    """Counts the bytes of all bodies. `open` gives each request an account of its own."""

    def __init__(
        self, configuration: ConfigurationHolder, default_bytes: int | None = None
    ) -> None:
        self._configuration = configuration
        self._default_bytes = default_bytes or _default_bytes()
        self._peak_bytes = 0
        self.taken_bytes = 0

    @property
    def max_bytes(self) -> int:
        """What all bodies may take together."""
        given = self._configuration.current.settings.server.bodies_max_bytes
        return self._default_bytes if given is None else given

    def open(self) -> "BodyAccount":
        """Return an account, to be closed when its request is over."""
        return BodyAccount(self)

    def take(self, count: int) -> None:
        """Take bytes. Raises RequestRefused `bodies_full`."""
        if self.taken_bytes + count > self.max_bytes:
            raise RequestRefused(
                "bodies_full",
                f"bodies of {self.taken_bytes} bytes are being served already, and all may take "
                f"{self.max_bytes} bytes (server.bodies_max_bytes); try again later",
                {"retry_after_s": 1},
            )
        self.taken_bytes += count
        self._peak_bytes = max(self._peak_bytes, self.taken_bytes)

    def give_back(self, count: int) -> None:
        """Give bytes back; after the last ones the heap is given back to the system, too."""
        self.taken_bytes -= count
        if not self.taken_bytes and self._peak_bytes > _WORTH_TRIMMING_BYTES:
            self._peak_bytes = 0
            asyncio.get_running_loop().call_later(_TRIM_AFTER_S, self._trim)

    def _trim(self) -> None:
        if not self.taken_bytes:
            asyncio.get_running_loop().run_in_executor(None, _trim_heap)


class BodyAccount:
    """What one request's body takes."""

    __slots__ = ("_bytes", "_ledger")

    def __init__(self, ledger: BodyLedger) -> None:
        self._ledger = ledger
        self._bytes = 0

    def grow_to(self, size: int) -> None:
        """Take what the body has grown by. Raises RequestRefused `bodies_full`."""
        if size > self._bytes:
            self._ledger.take(size - self._bytes)
            self._bytes = size

    def close(self) -> None:
        """Give everything back."""
        if self._bytes:
            self._ledger.give_back(self._bytes)
            self._bytes = 0


def _default_bytes() -> int:
    limits = (limit.limit_bytes // 4 for limit in MemoryCgroup().limits(below_bytes=1 << 60))
    return min([DEFAULT_MAX_BYTES, *limits])


def _trim_heap() -> None:
    """Return free memory to the system (malloc_trim(3)); only glibc keeps so much of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
