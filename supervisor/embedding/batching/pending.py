"""What the workers of a model wait for: leases, and answers."""

import asyncio

import msgspec

from supervisor.arbiter.arbiter import Lease
from supervisor.core.scheduling.values import Priority
from supervisor.embedding.batching.batches import Batch
from supervisor.embedding.batching.exchange import Cancellable


class AskedLease(msgspec.Struct):
    """A lease that is waited for; `callers`: how many the scheduler knows to wait, 0 at first."""

    request_id: str
    priority: Priority
    callers: int = 0


class SentBatch:
    """A batch that is with the server, in the lease of its worker."""

    __slots__ = ("at", "batch", "exchange", "lease", "over", "tokens")

    def __init__(self, batch: Batch, lease: Lease, at: float, tokens: int) -> None:
        self.batch = batch
        self.lease = lease
        self.at = at
        self.tokens = tokens
        """What is with the server, this batch included."""
        self.exchange: Cancellable | None = None
        self.over: asyncio.Future[None] | None = None
        """Done once it is over, where somebody waits for that."""
