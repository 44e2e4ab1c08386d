"""The ledger of bodies: one model's flood leaves room for the bodies of the others."""

from pathlib import Path

import pytest

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.errors import RequestRefused
from supervisor.gateway.bodies import BodyAccount, BodyLedger


@pytest.fixture
async def ledger(profiles_dir: Path, models_dir: Path) -> BodyLedger:
    """One for 1000 bytes, of which those that wait for one model may take 750."""
    return BodyLedger(ConfigurationHolder(load(profiles_dir, models_dir, {})), default_bytes=1000)


def wait(ledger: BodyLedger, model: str | None, size: int) -> BodyAccount:
    """Take a body in, and let its request wait."""
    account = ledger.open()
    account.grow_to(size)
    account.begin_to_wait(model)
    return account


async def test_bodies_that_wait_for_one_model_leave_room_for_those_of_another(
    ledger: BodyLedger,
) -> None:
    wait(ledger, "chat", 700)

    with pytest.raises(RequestRefused, match="'chat'") as refused:
        wait(ledger, "chat", 100)
    wait(ledger, "minilm", 100)

    assert refused.value.code == "queue_full"


async def test_first_body_may_wait_however_large(ledger: BodyLedger) -> None:
    wait(ledger, "chat", 900)
    wait(ledger, None, 100)

    assert ledger.taken_bytes == 1000


async def test_body_that_waits_no_more_counts_as_taken_only(ledger: BodyLedger) -> None:
    served = wait(ledger, "chat", 600)
    served.end_wait()
    served.end_wait()

    waiting = wait(ledger, "chat", 300)
    with pytest.raises(RequestRefused) as refused:
        ledger.open().grow_to(200)
    waiting.close()
    served.close()

    assert refused.value.code == "bodies_full"
    assert ledger.taken_bytes == 0


async def test_body_that_waits_again_counts_once(ledger: BodyLedger) -> None:
    account = wait(ledger, "chat", 400)
    account.begin_to_wait("chat")  # its server died, and its successor is to come

    wait(ledger, "chat", 350)


async def test_refused_clients_come_back_after_as_long_as_giving_back_takes(
    ledger: BodyLedger,
) -> None:
    accounts = [wait(ledger, "chat", 100) for _ in range(7)]
    first = retry_after_s(ledger, 400)

    for account in accounts[:2]:
        account.close()
    second = retry_after_s(ledger, 10**9)
    again = retry_after_s(ledger, 10**9)  # as the other door does for the same request

    assert first == 5  # nothing is known yet
    assert second == again == 60  # a thousand seconds and more, at 200 bytes in no time at all


def retry_after_s(ledger: BodyLedger, size: int) -> object:
    with pytest.raises(RequestRefused) as refused:
        wait(ledger, "chat", size)
    return refused.value.details["retry_after_s"]
