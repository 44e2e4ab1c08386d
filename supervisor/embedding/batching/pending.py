"""What the workers of a model know: who comes, who waits for a lease, what is with the server."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sized

import msgspec

from supervisor.arbiter.arbiter import Lease
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batches import Batch
from supervisor.embedding.batching.exchange import Cancellable
from supervisor.embedding.batching.queue import Amount, BatchLimits, BatchQueue

_MAX_LOOKS = 16
"""Two turns of the loop each: together less than a text takes."""


class AskedLease(msgspec.Struct):
    """A lease that is waited for; `callers`: how many the scheduler knows to wait, 0 at first."""

    request_id: str
    priority: Priority
    callers: int = 0


class SentBatch:
    """A batch that is with the server, in the lease of its worker."""

    __slots__ = ("at", "batch", "exchange", "lease", "over", "tokens_of_busy")

    def __init__(self, batch: Batch, lease: Lease, at: float, tokens_of_busy: int | None) -> None:
        self.batch = batch
        self.lease = lease
        self.at = at
        self.tokens_of_busy = tokens_of_busy
        """What is with the server, this batch included; None: it could have had more."""
        self.exchange: Cancellable | None = None
        self.over: asyncio.Future[None] | None = None
        """Done once it is over, where somebody waits for that."""

    def give_back(self) -> None:
        """End its lease, under which those were answered that still waited."""
        self.lease.end(self.batch.present)
        if self.over is not None and not self.over.done():
            self.over.set_result(None)


class Arrivals(msgspec.Struct):
    """Callers as they come: `came` in all, of whom `seen` at the last look; `looks` so far."""

    came: int = 0
    seen: int = 0
    looks: int = 0

    def begin(self) -> None:
        """Begin to look."""
        self.seen, self.looks = self.came, 0

    def look(self) -> bool:
        """Return whether more came since the last look, so that others may be on their way.

        Of ten that come at once, the first would else go alone, and the last be computed third: a
        fifth later. Not for ever: who comes first need not wait for those who come without end.
        """
        more, self.seen = self.came > self.seen, self.came
        self.looks += 1
        return more and self.looks < _MAX_LOOKS


class Running(dict[Batch, SentBatch]):
    """The batches that are with the server."""

    @property
    def amount(self) -> Amount:
        """How much they are together."""
        return Amount(sum(map(len, self)), sum(batch.tokens for batch in self))

    def at_once(self, queue: BatchQueue, limits: BatchLimits) -> int:
        """Return how many there may be.

        One, where any was with a server that died: else others would die with the guilty.
        """
        if queue.has_survivors or any(batch.died for batch in self):
            return 1
        return limits.at_once(self.amount)

    def tokens_of_busy(self, batch: Batch, queue: BatchQueue, limits: BatchLimits) -> int | None:
        """Return what the server has with one more batch; None where it could have more still."""
        is_full = limits.is_full(Amount(len(batch), batch.tokens))
        if not is_full and queue.most_urgent is None:
            return None
        return self.amount.tokens + batch.tokens


class Alarm:
    """Calls at one time, which may be moved, or a moment earlier.

    `at`: that time, by the monotonic clock; None: none is set, or it has called.
    """

    __slots__ = ("_call", "_timer", "at")

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._timer: asyncio.TimerHandle | None = None
        self.at: float | None = None

    def set(self, at: float | None) -> None:
        """Call at another time; None: never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.at = at
        if at is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(at - time.monotonic(), self._ring)

    def forget_later_than(self, at: float) -> None:
        """Call never where the time is later than this one."""
        if self.at is not None and self.at > at:
            self.set(None)

    def _ring(self) -> None:
        self._timer = self.at = None
        self._call()


class VectorLength(msgspec.Struct):
    """How many bytes each vector of a server has; `epoch` is that server's."""

    epoch: int = 0
    bytes: int = 0

    def is_of(self, epoch: int, vector: Sized) -> bool:
        """Whether a vector is as long as the others of its server; the first one is."""
        if epoch != self.epoch:
            self.epoch, self.bytes = epoch, len(vector)
        return len(vector) == self.bytes


def in_a_moment(callback: Callable[[], None]) -> None:
    """Call it once the loop has looked at all connections: those that came together go together.

    Of 16 callers with a text each, 8 % more are answered so than one turn of the loop earlier.
    """
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, callback)


def caller_shares(
    asking: Iterable[AskedLease], waiting: Callable[[Priority], int]
) -> Iterator[tuple[AskedLease, int]]:
    """Yield for how many callers the first lease of each priority is asked for.

    Of those that wait, all but one for each of the others. Leases of which the scheduler knows
    nothing yet (`callers` 0) count for nothing.
    """
    known = [asked for asked in asking if asked.callers]
    for priority in Priority:
        same = [asked for asked in known if asked.priority is priority]
        if same:
            yield same[0], max(1, waiting(priority) - len(same) + 1)
