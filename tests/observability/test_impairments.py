"""What does not work is shown, said once, and tried again until it works."""

import asyncio

from structlog.testing import capture_logs

from supervisor.observability.impairments import Impairments
from tests.patience import PATIENCE_S


def test_an_impairment_is_new_once_and_shown_until_it_is_over() -> None:
    impairments = Impairments()

    assert impairments.note("history", "the disk is full") is True
    assert impairments.note("history", "the disk is full still") is False
    assert impairments.describe() == ["history: the disk is full still"]
    with capture_logs() as lines:
        impairments.clear("history")
        impairments.clear("history")

    assert impairments.describe() == []
    assert [(line["event"], line["part"]) for line in lines] == [
        ("controller.recovered", "history")
    ]
    assert impairments.note("history", "full again") is True


async def test_what_failed_is_tried_again_until_it_works() -> None:
    impairments = Impairments()
    tried = 0
    works = asyncio.Event()
    loop = asyncio.get_running_loop()

    def retry() -> None:
        nonlocal tried
        tried += 1
        if tried == 3:
            impairments.clear("history")
            loop.call_soon_threadsafe(works.set)

    impairments.note("history", "the disk is full", retry=retry)
    impairments.note("an observer", "a bug, which no retry mends")
    async with impairments.retried(period_s=0.001), asyncio.timeout(PATIENCE_S):
        await works.wait()

    assert tried == 3
    assert impairments.describe() == ["an observer: a bug, which no retry mends"]
