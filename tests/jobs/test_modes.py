"""Which models jobs need, by which the schedule knows whether there is work for a period."""

from typing import Any

import pytest

from supervisor.core.machine.values import Mode
from supervisor.jobs.modes import mode_of
from supervisor.jobs.port import JobQueue
from supervisor.jobs.values import Job, JobKind, JobState, LineResult
from tests.jobs.conftest import add_running, new_job


@pytest.mark.parametrize(
    ("kind", "endpoint", "mode"),
    [
        (JobKind.BATCH, "/v1/embeddings", Mode.EMBEDDING),
        (JobKind.BATCH, "/v1/chat/completions", Mode.GENERATION),
        (JobKind.DOCUMENT, None, Mode.EMBEDDING),
        (JobKind.CALLBACK, None, None),
    ],
)
def test_job_needs_the_models_of_its_endpoint(
    kind: JobKind, endpoint: str | None, mode: Mode | None
) -> None:
    assert mode_of(Job(id="j", kind=kind, created_at=0.0, spec={"endpoint": endpoint})) is mode


async def test_job_needs_models_from_when_it_comes_until_none_of_its_lines_is_left(
    queue: JobQueue,
) -> None:
    assert await queue.modes_left() == frozenset()
    await queue.add(new_job("a", kind=JobKind.DOCUMENT))
    assert await queue.modes_left() == {Mode.EMBEDDING}
    await add_running(queue, new_job("b", lines=2))
    assert await queue.modes_left() == {Mode.EMBEDDING, Mode.GENERATION}
    for number in (1, 2):
        assert Mode.GENERATION in await queue.modes_left()
        settled = LineResult(job_id="b", number=number, is_success=number == 1, content=b"")
        await queue.settle([settled])
    assert await queue.modes_left() == {Mode.EMBEDDING}
    cancelled = new_job("a", kind=JobKind.DOCUMENT).entering(JobState.CANCELLING, 1001.0)
    assert await queue.change(cancelled, JobState.VALIDATING)
    assert await queue.modes_left() == frozenset()
    ended = new_job("b", lines=2).entering(JobState.FAILED, 1002.0)
    assert await queue.change(ended, JobState.IN_PROGRESS)
    assert await queue.reopen(ended.entering(JobState.IN_PROGRESS, 1003.0), JobState.FAILED)
    assert await queue.modes_left() == {Mode.GENERATION}
    await queue.remove("b")
    assert await queue.modes_left() == frozenset()


@pytest.mark.parametrize(
    "changes", [{"not_before": 9e9}, {"kind": JobKind.CALLBACK}], ids=["later", "no model"]
)
async def test_job_needs_no_models_that_may_not_be_worked_on_yet_or_asks_none(
    queue: JobQueue, changes: dict[str, Any]
) -> None:
    await add_running(queue, new_job("a", lines=1, **changes))
    assert await queue.modes_left() == frozenset()
