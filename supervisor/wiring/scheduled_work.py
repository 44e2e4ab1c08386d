"""What is done in periods of the schedule, beside requests."""

import structlog

from supervisor.core.machine.values import Mode
from supervisor.errors import RequestRefused
from supervisor.vector_store.opening import StoreOpener
from supervisor.wiring.jobs import LazyJobs

log = structlog.get_logger()


class ScheduledWork:
    """See `calendar.reading.Work`."""

    def __init__(self, jobs: LazyJobs, vectors: StoreOpener) -> None:
        self._jobs = jobs
        self._vectors = vectors

    async def modes_left(self) -> frozenset[Mode]:
        """Return the modes of which jobs need models."""
        return await self._jobs.modes_left()

    async def optimize_vectors(self) -> None:
        """Build the index of each collection in turn; one that fails stops no other."""
        try:
            store = await self._vectors.store()
            names = [each.name for each in (await store.collections()).collections]
        except RequestRefused as refusal:
            log.warning("vectors.not_optimized", reason=refusal.message)
            return
        for name in names:
            try:
                await store.optimize(name)
                log.info("vectors.optimized", collection=name)
            except RequestRefused as refusal:
                log.warning("vectors.not_optimized", collection=name, reason=refusal.message)
