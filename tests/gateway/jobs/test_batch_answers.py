"""What a request of a batch is told from a refusal: whether it counts, and when to try again."""

import pytest

from supervisor.errors import RequestRefused
from supervisor.gateway.batch_answers import refused
from supervisor.jobs.answering import Answered, NotAnswered


@pytest.mark.parametrize(
    ("code", "counts", "after_s"),
    [
        ("embedding_failed", True, None),  # it may be what its server dies of
        ("hold_timeout", False, None),
        ("store_failed", False, 60.0),  # a store that is away for a night fails no batch,
        ("storage_full", False, 60.0),  # nor does a disk that is full for one
    ],
)
def test_what_is_no_fault_of_a_request_never_uses_up_its_attempts(
    code: str, counts: bool, after_s: float | None
) -> None:
    outcome = refused(3, RequestRefused(code, "so it is"))

    assert isinstance(outcome, NotAnswered)
    assert (outcome.index, outcome.counts, outcome.after_s) == (3, counts, after_s)


def test_what_does_not_pass_is_its_answer() -> None:
    outcome = refused(0, RequestRefused("collection_mismatch", "another model's"))

    assert isinstance(outcome, Answered)
    assert outcome.status == 409
