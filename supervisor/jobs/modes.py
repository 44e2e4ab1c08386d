"""Which models jobs need, by which the schedule knows whether there is work for a period."""

from supervisor.core.machine.values import Mode
from supervisor.jobs.batch_lines import EMBEDDINGS
from supervisor.jobs.values import Job, JobKind


def mode_of(job: Job) -> Mode | None:
    """Return the mode of the models that a job needs; None where it needs none."""
    if job.kind is JobKind.CALLBACK:
        return None
    is_generation = job.kind is JobKind.BATCH and job.spec.get("endpoint") != EMBEDDINGS
    return Mode.GENERATION if is_generation else Mode.EMBEDDING
