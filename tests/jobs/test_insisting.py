"""A queue that is away is told once, in its own words; a fault of ours with where it was raised."""

from unittest.mock import AsyncMock

import pytest
from structlog.testing import capture_logs

from supervisor.errors import RequestRefused
from supervisor.jobs import insisting
from supervisor.jobs.insisting import Insisting
from supervisor.observability.impairments import Impairments

AWAY = RequestRefused("queue_unreachable", "the server of the queue does not answer")
FAULT = ValueError("x")


@pytest.mark.parametrize(("error", "trace"), [(AWAY, None), (FAULT, FAULT)])
async def test_traces_are_for_faults_of_ours(
    monkeypatch: pytest.MonkeyPatch, error: Exception, trace: Exception | None
) -> None:
    monkeypatch.setattr(insisting, "_FIRST_PAUSE_S", 0.0)
    act = AsyncMock(side_effect=[error, error, "done"])

    with capture_logs() as lines:
        assert await Insisting(Impairments())(act) == "done"

    line = next(line for line in lines if line["event"] == "jobs.queue_failed")
    assert line["reason"] == str(error)
    assert line["exc_info"] is trace
