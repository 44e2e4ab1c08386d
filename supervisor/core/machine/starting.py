"""How a backend is started, given up where it is late, and counted. Writes the switch's `start`."""

from msgspec.structs import replace

from supervisor.core.machine.commands import StartBackend, UnparkBackend
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.leaving import REAP_TIMEOUT_S, come_back, stop_backend
from supervisor.core.machine.residency import baseline_at_start, with_risen_floor
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import Switch
from supervisor.core.machine.values import (
    Backend,
    BackendState,
    Departure,
    Phase,
    Placement,
    Refusal,
)


def place(draft: Draft, placement: Placement | None) -> None:
    """Say what is started next."""
    draft.set_switch("start", placement=placement)


def start_placed(draft: Draft, phase: Phase) -> None:
    """Start what is placed, in its phase: the gate has just opened for it on every device.

    Where its server is parked, that takes its memory back.
    """
    switch = draft.running_switch()
    placement = switch.start.placement
    assert placement is not None  # noqa: S101 - the gate's questions were about it
    baselines = tuple(
        baseline_at_start(draft.snapshot, question, sample)
        for question, sample in switch.gate.opened
        if sample is not None
    )
    for question, sample in switch.gate.opened:
        if sample is not None:
            draft.set(backends=with_risen_floor(draft.snapshot, question, sample))
    draft.enter_phase(phase)
    parked = draft.snapshot.parked_of(placement.target)
    if parked is None:
        _spawn(draft, placement, baselines)
    else:
        _unpark(draft, parked, placement, baselines)


def _spawn(draft: Draft, placement: Placement, baselines: tuple[Baseline, ...]) -> None:
    epoch = draft.snapshot.next_epoch
    draft.set_switch("start", epoch=epoch)
    draft.set(next_epoch=epoch + 1)
    draft.put_backend(
        Backend(
            epoch=epoch,
            target=placement.target,
            state=BackendState.STARTING,
            footprint=placement.footprint,
            started_at=draft.at,
            baselines=baselines,
        )
    )
    draft.commands.append(StartBackend(epoch=epoch, target=placement.target))


def _unpark(
    draft: Draft, parked: Backend, placement: Placement, baselines: tuple[Baseline, ...]
) -> None:
    """Have a parked server take its memory back; what it kept was in the readings of the gate."""
    if draft.running_switch().phase is Phase.STARTING:
        draft.set_switch("notes", was_parked=True)
    come_back(draft, parked)
    draft.set_switch("start", epoch=parked.epoch)
    draft.put_last(draft.move_backend(parked, BackendState.STARTING))
    draft.put_backend(
        replace(
            parked,
            target=placement.target,
            state=BackendState.STARTING,
            footprint=placement.footprint,
            started_at=draft.at,
            baselines=tuple(
                replace(b, used_bytes=b.used_bytes - parked.footprint.on(b.device))
                for b in baselines
            ),
            parked=None,
            departure=Departure(),
        )
    )
    draft.commands.append(UnparkBackend(epoch=parked.epoch, target=placement.target))


def note_live(draft: Draft, epoch: int) -> None:
    """The target is live already, as this backend."""
    draft.set_switch("start", epoch=epoch)


def forget_start(draft: Draft) -> None:
    """What was started is ready or gone: the switch waits for it no more."""
    draft.set_switch("start", epoch=None, given_up=None)


def give_up_late_start(draft: Draft, backend: Backend) -> None:
    """The backend did not become ready in time."""
    timeout_s = backend.target.patience.start_timeout_s
    refusal = Refusal(
        code="backend_start_timeout",
        message=f"'{backend.target.model}' was not ready {timeout_s:g} s after its start",
    )
    give_up_start(draft, backend, refusal)


def give_up_start(draft: Draft, backend: Backend, refusal: Refusal) -> None:
    """The backend that is started must not serve: stop it, and fail when it is reaped."""
    draft.set_switch("start", given_up=refusal)
    stop_backend(draft, backend)


def start_deadline(snapshot: Snapshot, switch: Switch) -> float | None:
    """Return when what is started must be ready; once that was given up, when it must be gone."""
    backend = snapshot.backend(switch.start.epoch)
    if backend is None:
        return None
    ready_by = backend.started_at + backend.target.patience.start_timeout_s
    if backend.state is BackendState.STARTING:
        return ready_by
    return ready_by + backend.target.patience.stop_grace_s + REAP_TIMEOUT_S
