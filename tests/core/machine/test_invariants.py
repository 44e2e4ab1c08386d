"""Each invariant is found broken where it is; the other tests hold them after every step."""

from typing import Any

import pytest
from immutables import Map
from msgspec.structs import replace

from supervisor.core.machine.invariants import violations
from supervisor.core.machine.memory import MemoryPolicy, MemorySample, ReleaseQuestion
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import Gate, Leaving, Order, Rollback, Start, Switch
from supervisor.core.machine.values import Backend, BackendState, Parked, Phase, Refusal
from tests.core.machine.story import CHAT, EMBED, EXCLUSIVE
from tests.core.machine.surroundings import taking

FAILURE = Refusal(code="backend_died", message="it died")
QUESTION = ReleaseQuestion(
    device="gpu0", need_bytes=1, baseline_used_bytes=None, policy=MemoryPolicy(), asked_at=10.0
)


def backend(epoch: int, state: BackendState = BackendState.READY, **changes: Any) -> Backend:
    made = Backend(
        epoch=epoch,
        target=CHAT,
        state=state,
        footprint=taking(1),
        started_at=0.0,
    )
    return replace(made, **changes)


def reading(taken_at: float, device: str = "gpu0") -> MemorySample:
    return MemorySample(
        device=device, taken_at=taken_at, total_bytes=9, used_bytes=0, free_bytes=9, source="test"
    )


def snapshot(*backends: Backend, phase: Phase | None = None, **parts: Any) -> Snapshot:
    order = Order(switch_id="s1", target=EMBED, requested_by="test", started_at=0.0)
    made = Snapshot(devices=Map({"gpu0": EXCLUSIVE}), backends=backends, next_epoch=9)
    if phase is None:
        return made
    return replace(made, switch=Switch(order=order, phase=phase, phase_started_at=0.0, **parts))


PARKED = Parked(since=0.0, host_bytes=1)
STARTS = Start(epoch=8)
STARTING = backend(8, BackendState.STARTING)


@pytest.mark.parametrize(
    "sound",
    [
        snapshot(),
        snapshot(backend(7), phase=Phase.PREFLIGHT),
        snapshot(STARTING, phase=Phase.STARTING, start=STARTS),
        snapshot(
            backend(6, BackendState.PARKED, parked=PARKED),
            STARTING,
            phase=Phase.STARTING,
            leaving=Leaving(epochs=(6,)),
            start=STARTS,
        ),
        snapshot(
            backend(8, BackendState.STOPPING),
            phase=Phase.STARTING,
            start=Start(epoch=8, given_up=FAILURE),
        ),
        snapshot(
            phase=Phase.CONFIRMING,
            leaving=Leaving(epochs=(7,)),
            gate=Gate(question=QUESTION, samples=(reading(10.0), reading(11.0))),
        ),
        snapshot(
            phase=Phase.ROLLING_BACK,
            gate=Gate(question=QUESTION),
            rollback=Rollback(failure=FAILURE),
        ),
        snapshot(STARTING, phase=Phase.RESTORING, start=STARTS, rollback=Rollback(failure=FAILURE)),
    ],
)
def test_what_is_sound_breaks_none(sound: Snapshot) -> None:
    assert violations(sound) == ()


@pytest.mark.parametrize(
    ("broken", "word"),
    [
        (snapshot(backend(7), backend(7, target=replace(CHAT, device="gpu1"))), "all different"),
        (snapshot(backend(9)), "not given yet"),
        (snapshot(backend(7, BackendState.PARKED)), "parked: None"),
        (snapshot(backend(7, parked=PARKED)), "is ready, and parked"),
        (snapshot(backend(7, BackendState.PARKED, parked=PARKED, in_flight=1)), "has requests"),
        (
            snapshot(
                backend(6, BackendState.PARKED, parked=PARKED),
                backend(7, BackendState.PARKED, parked=PARKED),
            ),
            "parked more than once",
        ),
        (snapshot(backend(7, in_flight=-1)), "in flight"),
        (snapshot(STARTING), "the switch waits for None"),
        (snapshot(backend(6), backend(7)), "exclusive"),
        (snapshot(phase=Phase.STARTING), "waits for the start of epoch None"),
        (snapshot(phase=Phase.STARTING, start=STARTS), "is not there"),
        (snapshot(backend(8), phase=Phase.STARTING, start=STARTS), "is ready"),
        (
            snapshot(STARTING, phase=Phase.STARTING, start=Start(epoch=8, given_up=FAILURE)),
            "is starting",
        ),
        (snapshot(STARTING, phase=Phase.CONFIRMING, start=STARTS), "waits for the start"),
        (snapshot(phase=Phase.CONFIRMING), "the question to the gate is None"),
        (snapshot(phase=Phase.PREFLIGHT, gate=Gate(question=QUESTION)), "the question to the gate"),
        (
            snapshot(phase=Phase.ROLLING_BACK, gate=Gate(question=QUESTION)),
            "the failure to report is None",
        ),
        (snapshot(phase=Phase.DRAINING, rollback=Rollback(failure=FAILURE)), "failure to report"),
        (
            snapshot(
                backend(7, BackendState.DRAINING),
                phase=Phase.CONFIRMING,
                leaving=Leaving(epochs=(7,)),
                gate=Gate(question=QUESTION),
            ),
            "must be gone",
        ),
        (
            snapshot(
                phase=Phase.CONFIRMING,
                gate=Gate(question=QUESTION, samples=(reading(11.0, "gpu1"),)),
            ),
            "not of gpu0",
        ),
        (
            snapshot(phase=Phase.CONFIRMING, gate=Gate(question=QUESTION, samples=(reading(9.0),))),
            "before the question",
        ),
        (
            snapshot(
                phase=Phase.CONFIRMING,
                gate=Gate(question=QUESTION, samples=(reading(11.0), reading(11.0))),
            ),
            "not later",
        ),
    ],
)
def test_what_is_broken_is_named(broken: Snapshot, word: str) -> None:
    sentences = violations(broken)
    assert any(word in sentence for sentence in sentences), sentences
