"""One ledger of the memory that bodies take while they come in, wait, and are answered."""

import asyncio
import ctypes
import math
from collections import Counter

from supervisor.config.holder import ConfigurationHolder
from supervisor.core.byte_size import MIB
from supervisor.errors import RequestRefused
from supervisor.telemetry.cgroup import MemoryCgroup

DEFAULT_MAX_BYTES = 256 * MIB
"""What all bodies may take where the operator names nothing; a quarter of the cgroup's limit where
that is less: servers and their page cache need the rest."""

_FIRST_RETRY_AFTER_S = 5
_LONGEST_RETRY_AFTER_S = 60
"""A client that is told to wait longer gives up: OpenAI's takes no more from Retry-After."""

_RATE_OVER_S = 1.0

_WORTH_TRIMMING_BYTES = 16 * MIB
_TRIM_AFTER_S = 1.0


class BodyLedger:
    """Counts the bytes of all bodies. `open` gives each request an account of its own.

    Bodies that wait for one model may take `queue.model_share` of the whole, so that there is room
    for those of the others.
    """

    def __init__(
        self, configuration: ConfigurationHolder, default_bytes: int | None = None
    ) -> None:
        self._configuration = configuration
        self._default_bytes = default_bytes or _default_bytes()
        self._peak_bytes = 0
        self._given_back_bytes = 0
        self._mark: tuple[float, int] | None = None
        """A refusal: when it was, and what had been given back in all by then."""
        self._rate = 0.0
        """Bytes that were given back in a second, as it was found at that refusal."""
        self._waiting: Counter[str | None] = Counter()
        """Bytes of those that wait, by model."""
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
                {"retry_after_s": self._retry_after_s(count)},
            )
        self.taken_bytes += count
        self._peak_bytes = max(self._peak_bytes, self.taken_bytes)

    def give_back(self, count: int) -> None:
        """Give bytes back; after the last ones the heap is given back to the system, too."""
        self.taken_bytes -= count
        self._given_back_bytes += count
        if not self.taken_bytes and self._peak_bytes > _WORTH_TRIMMING_BYTES:
            self._peak_bytes = 0
            asyncio.get_running_loop().call_later(_TRIM_AFTER_S, self._trim)

    def begin_to_wait(self, model: str | None, count: int) -> None:
        """Count bytes among those that wait for a model (None: for whatever will be live).

        The first body may wait, however large. Raises RequestRefused `queue_full`.
        """
        waiting = self._waiting[model]
        share = self._configuration.current.settings.queue.model_share
        if waiting and waiting + count > share * self.max_bytes:
            whose = f"for '{model}'" if model else "for a model to be live"
            raise RequestRefused(
                "queue_full",
                f"bodies of {waiting} bytes wait {whose} already, and they may take "
                f"{share:.0%} of {self.max_bytes} bytes (queue.model_share, "
                "server.bodies_max_bytes); try again later",
                {"retry_after_s": self._retry_after_s(count)},
            )
        self._waiting[model] += count

    def end_wait(self, model: str | None, count: int) -> None:
        """Count bytes no more among those that wait."""
        self._waiting[model] -= count
        if not self._waiting[model]:
            del self._waiting[model]

    def _retry_after_s(self, count: int) -> int:
        """Return when so many bytes may be free, at the rate between refusals.

        Those within a second have one rate: both doors may ask for one request.
        """
        now = asyncio.get_running_loop().time()
        at, given_back = self._mark or (now, self._given_back_bytes)
        if not self._rate or now - at >= _RATE_OVER_S:
            self._rate = (self._given_back_bytes - given_back) / max(now - at, 1e-3)
            self._mark = now, self._given_back_bytes
        if not self._rate:
            return _FIRST_RETRY_AFTER_S
        return min(_LONGEST_RETRY_AFTER_S, max(1, math.ceil(count / self._rate)))

    def _trim(self) -> None:
        if not self.taken_bytes:
            asyncio.get_running_loop().run_in_executor(None, _trim_heap)


class BodyAccount:
    """What one request's body takes."""

    __slots__ = ("_bytes", "_is_waiting", "_ledger", "_model")

    def __init__(self, ledger: BodyLedger) -> None:
        self._ledger = ledger
        self._bytes = 0
        self._is_waiting = False
        self._model: str | None = None

    def grow_to(self, size: int) -> None:
        """Take what the body has grown by. Raises RequestRefused `bodies_full`."""
        if size > self._bytes:
            self._ledger.take(size - self._bytes)
            self._bytes = size

    def begin_to_wait(self, model: str | None) -> None:
        """Its request waits for a model from now on. Raises RequestRefused `queue_full`."""
        self.end_wait()
        self._ledger.begin_to_wait(model, self._bytes)
        self._is_waiting, self._model = True, model

    def end_wait(self) -> None:
        """Its request waits no more. A second time changes nothing."""
        if self._is_waiting:
            self._is_waiting = False
            self._ledger.end_wait(self._model, self._bytes)

    def close(self) -> None:
        """Give everything back."""
        if self._is_waiting:
            self.end_wait()
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
