"""The working copy that one `step()` edits, so that decisions read as a sequence of sentences.

It lives for one event only: seen from outside, `step()` is a pure function.
"""

from typing import Any

from immutables import Map
from msgspec import Struct, field
from msgspec.structs import replace

from supervisor.core.machine.commands import Command
from supervisor.core.machine.learning import end_stay, note_left
from supervisor.core.machine.residency import without
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.switch import Switch
from supervisor.core.machine.values import Backend, BackendState, Phase
from supervisor.errors import InvalidTransition

BACKEND_TRANSITIONS: dict[BackendState, frozenset[BackendState]] = {
    BackendState.STARTING: frozenset({BackendState.READY, BackendState.STOPPING}),
    BackendState.READY: frozenset({BackendState.DRAINING, BackendState.STOPPING}),
    BackendState.DRAINING: frozenset(
        {BackendState.PARKING, BackendState.STOPPING, BackendState.READY}
    ),
    BackendState.PARKING: frozenset({BackendState.PARKED, BackendState.STOPPING}),
    BackendState.PARKED: frozenset({BackendState.STARTING, BackendState.STOPPING}),
    BackendState.STOPPING: frozenset(),
}
"""From each state the states that may follow; every state may also end in the process's exit."""


class Draft(Struct, eq=False):
    """A snapshot under edit at a time, the commands for the performer, and the phases left so far.

    `moves`: each phase that was left, and the one that followed; `phases` says which may.
    """

    snapshot: Snapshot
    at: float
    commands: list[Command] = field(default_factory=list)
    moves: list[tuple[Phase, Phase]] = field(default_factory=list)

    def set(self, **changes: Any) -> None:
        """Replace fields of the snapshot."""
        self.snapshot = replace(self.snapshot, **changes)

    def set_scheduling(self, **changes: Any) -> None:
        """Replace fields of what the scheduler knows."""
        self.set(scheduling=replace(self.snapshot.scheduling, **changes))

    def set_requests(self, **changes: Any) -> None:
        """Replace fields of the snapshot's requests."""
        self.set(requests=replace(self.snapshot.requests, **changes))

    def running_switch(self) -> Switch:
        """Return the running switch. Raises InvalidTransition when there is none."""
        if self.snapshot.switch is None:
            raise InvalidTransition("no switch is running")
        return self.snapshot.switch

    def set_switch(self, part: str, **changes: Any) -> Switch:
        """Replace fields of a part of the running switch, named as it is there: `gate`."""
        switch = self.running_switch()
        switch = replace(switch, **{part: replace(getattr(switch, part), **changes)})
        self.set(switch=switch)
        return switch

    def enter_phase(self, phase: Phase) -> Switch:
        """Move the running switch on, and note how long the phase before took."""
        switch = self.running_switch()
        self.moves.append((switch.phase, phase))
        moved = replace(
            switch,
            phase=phase,
            phase_started_at=self.at,
            phase_seconds=phase_seconds(switch, self.at),
        )
        self.set(switch=moved)
        return moved

    def put_backend(self, backend: Backend) -> None:
        """Replace the backend of the same epoch, or add one behind all others."""
        epoch, backends = backend.epoch, self.snapshot.backends
        if self.snapshot.backend(epoch) is not None:
            self.set(backends=tuple(backend if b.epoch == epoch else b for b in backends))
        else:
            self.set(backends=(*backends, backend))

    def move_backend(self, backend: Backend, state: BackendState) -> Backend:
        """Move a backend on. Raises InvalidTransition for a move that the table forbids."""
        if state not in BACKEND_TRANSITIONS[backend.state]:
            raise InvalidTransition(f"backend {backend.epoch}: {backend.state} → {state}")
        if backend.state is BackendState.READY:
            scheduling, backend = end_stay(self.snapshot, backend, self.at)
            self.set(scheduling=scheduling)
        is_leaving = state in {BackendState.STOPPING, BackendState.PARKING}
        if is_leaving and backend.state in {BackendState.READY, BackendState.DRAINING}:
            self.set(scheduling=note_left(self.snapshot, backend, self.at))
        moved = replace(backend, state=state)
        self.put_backend(moved)
        return moved

    def remove_backend(self, epoch: int) -> None:
        """Forget a reaped backend and the leases on it, whose requests break by themselves."""
        backend = self.snapshot.backend(epoch)
        if backend is not None and backend.state is BackendState.READY:
            scheduling, backend = end_stay(self.snapshot, backend, self.at)
            self.set(scheduling=scheduling)
        if backend is not None and backend.state in {BackendState.READY, BackendState.DRAINING}:
            self.set(scheduling=note_left(self.snapshot, backend, self.at))
        if backend is not None:
            self._note_work(backend)
        self.drop_leases(epoch)
        self.set(backends=without(self.snapshot.backends, epoch))

    def _note_work(self, backend: Backend) -> None:
        """A backend is gone: keep until when it had work, which nothing else will tell."""
        endings = self.snapshot.endings
        work_at = self.at if backend.in_flight else backend.work.empty_since
        if work_at is not None:
            work_at = max(work_at, endings.work_at or work_at)
            self.set(endings=replace(endings, work_at=work_at))

    def put_last(self, backend: Backend) -> None:
        """Put a backend that takes other memory than before behind all others.

        They stand in the order in which they took what they hold, which baselines go by.
        """
        others = without(self.snapshot.backends, backend.epoch, has_ended=False)
        self.set(backends=(*others, backend))

    def drop_leases(self, epoch: int) -> None:
        """Forget the leases on a backend, whose requests break by themselves."""
        requests = self.snapshot.requests
        self.set_requests(
            leases=_without_holder(requests.leases, epoch),
            batch=_without_holder(requests.batch, epoch),
        )


def _without_holder(leases: Map[str, int], epoch: int) -> Map[str, int]:
    lost = [request_id for request_id, holder in leases.items() if holder == epoch]
    left = leases.mutate()
    for request_id in lost:
        del left[request_id]
    return left.finish()


def phase_seconds(switch: Switch, at: float) -> tuple[tuple[Phase, float], ...]:
    """Seconds per phase so far, as it is shown, the running one until `at`; READY takes none."""
    if switch.phase is Phase.READY:
        return switch.phase_seconds
    *before, last = switch.phase_seconds or ((None, 0.0),)
    phase, took_s = switch.phase.shown, at - switch.phase_started_at
    if last[0] is phase:  # both phases of a rollback, and each model that it brings back
        return (*switch.phase_seconds[: len(before)], (phase, last[1] + took_s))
    return (*switch.phase_seconds, (phase, took_s))
