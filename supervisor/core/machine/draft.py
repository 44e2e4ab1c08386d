"""The working copy that one `step()` edits, so that decisions read as a sequence of sentences.

It lives for one event only: seen from outside, `step()` is a pure function.
"""

from typing import Any

from msgspec.structs import replace

from supervisor.core.machine.commands import Command
from supervisor.core.machine.residency import without
from supervisor.core.machine.values import Backend, BackendState, Phase, Snapshot, Switch
from supervisor.errors import InvalidTransition

BACKEND_TRANSITIONS: dict[BackendState, frozenset[BackendState]] = {
    BackendState.STARTING: frozenset({BackendState.READY, BackendState.STOPPING}),
    BackendState.READY: frozenset({BackendState.DRAINING, BackendState.STOPPING}),
    BackendState.DRAINING: frozenset({BackendState.STOPPING, BackendState.READY}),
    BackendState.STOPPING: frozenset(),
}
"""From each state the states that may follow; every state may also end in the process's exit."""

PHASE_TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.PREFLIGHT: frozenset({Phase.WARMING, Phase.DRAINING, Phase.CONFIRMING}),
    Phase.WARMING: frozenset({Phase.DRAINING, Phase.CONFIRMING}),
    Phase.DRAINING: frozenset({Phase.STOPPING, Phase.CONFIRMING}),
    Phase.STOPPING: frozenset({Phase.CONFIRMING}),
    Phase.CONFIRMING: frozenset({Phase.STARTING, Phase.DRAINING, Phase.ROLLING_BACK}),
    Phase.STARTING: frozenset({Phase.READY, Phase.ROLLING_BACK}),
    Phase.READY: frozenset(),
    Phase.ROLLING_BACK: frozenset(),
}
"""From each phase of a switch the phases that may follow; every phase may also end the switch.

WARMING is passed over by an unload, and where the file is not to be warmed. DRAINING leads to
CONFIRMING without STOPPING when the leaving backend dies while it drains. CONFIRMING leads to
DRAINING where the target was to start beside the one that it replaces, and the memory for both
cannot be confirmed. ROLLING_BACK confirms memory and starts what was stopped, in one phase.
"""


class Draft:
    """A snapshot under edit and the commands ordered so far."""

    def __init__(self, snapshot: Snapshot, at: float) -> None:
        self.snapshot = snapshot
        self.at = at
        self.commands: list[Command] = []

    def order(self, command: Command) -> None:
        """Add a command to what the performer will do."""
        self.commands.append(command)

    def set(self, **changes: Any) -> None:
        """Replace fields of the snapshot."""
        self.snapshot = replace(self.snapshot, **changes)

    def running_switch(self) -> Switch:
        """Return the running switch. Raises InvalidTransition when there is none."""
        if self.snapshot.switch is None:
            raise InvalidTransition("no switch is running")
        return self.snapshot.switch

    def set_switch(self, **changes: Any) -> Switch:
        """Replace fields of the running switch."""
        switch = replace(self.running_switch(), **changes)
        self.set(switch=switch)
        return switch

    def enter_phase(self, phase: Phase) -> Switch:
        """Move the running switch on, and note how long the phase before took."""
        switch = self.running_switch()
        if phase not in PHASE_TRANSITIONS[switch.phase]:
            raise InvalidTransition(f"switch {switch.switch_id}: {switch.phase} → {phase}")
        return self.set_switch(
            phase=phase, phase_started_at=self.at, phase_seconds=phase_seconds(switch, self.at)
        )

    def put_backend(self, backend: Backend) -> None:
        """Replace the backend of the same epoch, or add one, whose epoch is the highest so far."""
        epoch, backends = backend.epoch, self.snapshot.backends
        if backends and epoch <= backends[-1].epoch:
            self.set(backends=tuple([backend if b.epoch == epoch else b for b in backends]))
        else:
            self.set(backends=(*backends, backend))

    def move_backend(self, backend: Backend, state: BackendState) -> Backend:
        """Move a backend on. Raises InvalidTransition for a move that the table forbids."""
        if state not in BACKEND_TRANSITIONS[backend.state]:
            raise InvalidTransition(f"backend {backend.epoch}: {backend.state} → {state}")
        moved = replace(backend, state=state)
        self.put_backend(moved)
        return moved

    def remove_backend(self, epoch: int) -> None:
        """Forget a reaped backend and the leases on it, whose requests break by themselves."""
        lost = [rid for rid, holder in self.snapshot.leases.items() if holder == epoch]
        with self.snapshot.leases.mutate() as leases:
            for request_id in lost:
                del leases[request_id]
            self.set(leases=leases.finish())
        self.set(backends=without(self.snapshot.backends, epoch))


def phase_seconds(switch: Switch, at: float) -> tuple[tuple[Phase, float], ...]:
    """Seconds per phase so far, the running phase counted until `at`; READY takes none."""
    if switch.phase is Phase.READY:
        return switch.phase_seconds
    return (*switch.phase_seconds, (switch.phase, at - switch.phase_started_at))
