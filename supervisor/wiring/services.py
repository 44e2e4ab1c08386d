"""Makes those who do what is asked, whoever asks: embedding, and the work that nobody waits for."""

from dataclasses import dataclass

from supervisor.embedding.batching.batcher import Batcher
from supervisor.engine.targets import Targets
from supervisor.gateway.call_reader import CallReader
from supervisor.wiring.embedding import Embedding, make_embedding
from supervisor.wiring.ground import Ground
from supervisor.wiring.jobs import LazyJobs
from supervisor.wiring.machine import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Who does what is asked."""

    reader: CallReader
    batcher: Batcher
    embedding: Embedding
    jobs: LazyJobs

    async def close(self) -> None:
        """End the work that nobody waits for; it is gone on with after the next start."""
        await self.jobs.close()


def make_services(ground: Ground, machine: Machine, targets: Targets) -> Services:
    """Make them; none of them works yet."""
    arbiter, holder = machine.arbiter, ground.configuration
    reader = CallReader(holder, targets)
    batcher = Batcher(arbiter=arbiter, configuration=holder, targets=targets)
    embedding = make_embedding(ground, arbiter, targets, batcher)
    jobs = LazyJobs(ground, reader, targets, embedding)
    return Services(reader=reader, batcher=batcher, embedding=embedding, jobs=jobs)
