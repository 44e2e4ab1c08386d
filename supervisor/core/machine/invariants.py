"""What always holds of a snapshot. `switching` and `memory` say why.

Checked after every step: in tests each violation fails, at run time it is logged.
"""

from collections.abc import Iterator
from itertools import pairwise

from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import Gate, Switch
from supervisor.core.machine.values import BackendState, Phase

_GATE = frozenset({Phase.CONFIRMING, Phase.ROLLING_BACK})
_START = frozenset({Phase.STARTING, Phase.RESTORING})
_ROLLBACK = frozenset({Phase.ROLLING_BACK, Phase.RESTORING})


def violations(snapshot: Snapshot) -> tuple[str, ...]:
    """Return a sentence for each invariant that does not hold; none where all is well.

    Costs microseconds: it looks at each backend and each reading of the gate once, at no request.
    """
    return (*_of_backends(snapshot), *_of_switch(snapshot))


def _of_backends(snapshot: Snapshot) -> Iterator[str]:
    epochs = [backend.epoch for backend in snapshot.backends]
    if len(set(epochs)) < len(epochs) or any(e >= snapshot.next_epoch for e in epochs):
        yield f"epochs are not all different, or not given yet: {epochs}"
    yield from _of_parked(snapshot)
    if any(backend.in_flight < 0 for backend in snapshot.backends):
        yield "a backend has fewer requests in flight than none"
    switch = snapshot.switch
    awaited = None if switch is None else switch.start.epoch
    starting = [b.epoch for b in snapshot.backends if b.state is BackendState.STARTING]
    if any(epoch != awaited for epoch in starting):
        yield f"epochs {starting} start, and the switch waits for {awaited}"
    serving = (BackendState.STARTING, BackendState.READY)
    for device in snapshot.devices.values():
        there = [b for b in snapshot.backends if device.name in b.footprint.devices]
        if device.is_exclusive and sum(b.state in serving for b in there) > 1:
            yield f"{device.name} is exclusive, and more than one backend is on it"


def _of_parked(snapshot: Snapshot) -> Iterator[str]:
    for backend in snapshot.backends:
        is_parked = backend.state is BackendState.PARKED
        if is_parked != (backend.parked is not None):
            yield f"epoch {backend.epoch} is {backend.state}, and parked: {backend.parked}"
        if is_parked and backend.in_flight:
            yield f"epoch {backend.epoch} is parked, and has requests"
        if is_parked and any(
            b.epoch != backend.epoch and b.target.is_same(backend.target) for b in snapshot.parked()
        ):
            yield f"'{backend.target.model}' is parked more than once"


def _of_switch(snapshot: Snapshot) -> Iterator[str]:
    switch = snapshot.switch
    if switch is None:
        return
    phase = switch.phase
    if (phase in _START) != (switch.start.epoch is not None):
        yield f"in {phase}, the switch waits for the start of epoch {switch.start.epoch}"
    if phase in _START and (problem := _of_start(snapshot, switch)):
        yield problem
    if (phase in _GATE) != (switch.gate.question is not None):
        yield f"in {phase}, the question to the gate is {switch.gate.question}"
    if (phase in _ROLLBACK) != (switch.rollback.failure is not None):
        yield f"in {phase}, the failure to report is {switch.rollback.failure}"
    if phase in _GATE | _START:
        leaving = [b for b in snapshot.backends if b.epoch in switch.leaving.epochs]
        there = [b.epoch for b in leaving if b.state is not BackendState.PARKED]
        if there:
            yield f"in {phase}, epochs {there} must be gone, and are there"
    if switch.target is not None and switch.target.is_twin:
        ended = {*switch.leaving.first, *switch.leaving.behind, *switch.leaving.epochs}
        others = [b for b in snapshot.backends if b.epoch in ended]
        if any(b.target.model != switch.target.model for b in others):
            yield f"epochs {sorted(ended)} leave for a twin"
    yield from _of_readings(switch.gate)


def _of_start(snapshot: Snapshot, switch: Switch) -> str | None:
    backend = snapshot.backend(switch.start.epoch)
    if backend is None:
        return f"epoch {switch.start.epoch} is to start, and is not there"
    wanted = BackendState.STARTING if switch.start.given_up is None else BackendState.STOPPING
    return None if backend.state is wanted else f"epoch {backend.epoch} is {backend.state}"


def _of_readings(gate: Gate) -> Iterator[str]:
    question = gate.question
    if question is None:
        return
    if any(sample.device != question.device for sample in gate.samples):
        yield f"a reading is not of {question.device}, which is in question"
    times = (question.asked_at, *(sample.taken_at for sample in gate.samples))
    if times[1:2] and times[1] < times[0]:
        yield "a reading is from before the question"
    if any(earlier >= later for earlier, later in pairwise(times[1:])):
        yield "a reading is not later than the one before"
