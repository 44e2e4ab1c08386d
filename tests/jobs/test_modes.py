"""Which models jobs need, by which the schedule knows whether there is work for a period."""

import pytest

from supervisor.core.machine.values import Mode
from supervisor.jobs.service import mode_of
from supervisor.jobs.values import Counts, Job, JobKind, JobState

NOW = 1000.0


@pytest.mark.parametrize(
    ("kind", "endpoint", "mode"),
    [
        (JobKind.BATCH, "/v1/embeddings", Mode.EMBEDDING),
        (JobKind.BATCH, "/v1/chat/completions", Mode.GENERATION),
        (JobKind.DOCUMENT, None, Mode.EMBEDDING),
    ],
)
def test_job_needs_the_models_of_its_endpoint(
    kind: JobKind, endpoint: str | None, mode: Mode
) -> None:
    assert mode_of(Job(id="j", kind=kind, created_at=0.0, spec={"endpoint": endpoint})) is mode


@pytest.mark.parametrize(
    ("facts", "needs"),
    [
        ({}, True),
        ({"state": JobState.IN_PROGRESS, "lines": 2, "counts": Counts(succeeded=1)}, True),
        ({"state": JobState.IN_PROGRESS, "lines": 2, "counts": Counts(succeeded=2)}, False),
        ({"state": JobState.FINALIZING}, False),
        ({"state": JobState.COMPLETED}, False),
        ({"not_before": NOW + 1.0}, False),
        ({"kind": JobKind.CALLBACK}, False),
    ],
)
def test_job_needs_models_while_lines_are_left_that_may_be_worked_on(
    facts: dict[str, object], *, needs: bool
) -> None:
    job = Job(**{"id": "j", "kind": JobKind.BATCH, "created_at": 0.0, **facts})  # type: ignore[arg-type]

    assert job.needs_models(NOW) is needs
