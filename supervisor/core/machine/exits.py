"""What the end of a backend means, by the part that it had, and what is done then."""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from msgspec.structs import replace

from supervisor.core.machine.commands import CompleteShutdown
from supervisor.core.machine.draft import Draft
from supervisor.core.machine.events import BackendExited
from supervisor.core.machine.footprint import Baseline
from supervisor.core.machine.last_words import reason_in
from supervisor.core.machine.leaving import advance_retiring
from supervisor.core.machine.phases import progress_phase
from supervisor.core.machine.recovery import note_death
from supervisor.core.machine.residency import baselines_after
from supervisor.core.machine.snapshot import BackendExit, Snapshot
from supervisor.core.machine.switching import ask_anew, fail_start
from supervisor.core.machine.values import Backend, BackendState, Refusal
from supervisor.core.machine.waiting import settle_waiters


class Part(Enum):
    """What a backend is to the controller; each has exactly one, the first that applies."""

    CLOSING = auto()
    """The controller shuts down, and waits for the end of all."""
    STARTED = auto()
    """The running switch waits for it to become ready."""
    LEAVING = auto()
    """The running switch waits for its end."""
    PARKED = auto()
    """It was parked, and is missed by nobody."""
    ORDERED_OUT = auto()
    """It retired, or a switch that is over stopped it: nobody waits for its end."""
    SERVING = auto()
    """It serves, or is stopped to be replaced because it stalled: it is to come back."""


class Exit(NamedTuple):
    """A backend that is gone, and how; `baselines` are its devices' use without it."""

    backend: Backend
    event: BackendExited
    record: BackendExit
    baselines: tuple[Baseline, ...]


def part_of(snapshot: Snapshot, backend: Backend) -> Part:
    """Return what a backend is to the controller now."""
    switch = snapshot.switch
    if snapshot.is_closing:
        return Part.CLOSING
    if switch is not None and backend.epoch == switch.start.epoch:
        return Part.STARTED
    if switch is not None and backend.epoch in switch.leaving.epochs:
        return Part.LEAVING
    if backend.state is BackendState.PARKED:
        return Part.PARKED
    return Part.ORDERED_OUT if _is_wanted(backend) else Part.SERVING


def note_exit(draft: Draft, backend: Backend, event: BackendExited) -> None:
    """Forget the backend, and do what its end means."""
    part = part_of(draft.snapshot, backend)
    gone = Exit(
        backend=backend,
        event=event,
        record=_record(backend, event),
        # What others held then is left out: of a server that died it says nothing.
        baselines=tuple(
            replace(b, foreign_bytes=None)
            for b in baselines_after(draft.snapshot.backends, (backend,))
        ),
    )
    draft.remove_backend(backend.epoch)
    draft.set(endings=replace(draft.snapshot.endings, exit=gone.record))
    _MEANINGS[part](draft, gone)


def complete_shutdown(draft: Draft) -> None:
    """Report the shutdown as complete once every backend is gone."""
    if not draft.snapshot.backends:
        draft.commands.append(CompleteShutdown())


def _fail_the_start(draft: Draft, gone: Exit) -> None:
    record, reason = gone.record, reason_in(gone.record.last_lines)
    refusal = Refusal(
        code="backend_died",
        message=f"the server of '{record.model}' ended ({record.describe()}) before it was ready"
        + (f": {reason}" if reason else ""),
        details=(
            ("exit_code", record.exit_code),
            ("signal", record.signal),
            ("last_lines", record.last_lines[-30:]),
        ),
    )
    fail_start(draft, refusal)


def _go_on_without_it(draft: Draft, gone: Exit) -> None:
    if gone.event.prompts is not None:
        saved = draft.running_switch().notes.prompts_saved
        draft.set_switch("notes", prompts_saved=(*saved, gone.event.prompts))
    if gone.record.stalled_s is not None:  # it did not leave for the switch
        note_death(draft, gone.backend.target, gone.record)
    if gone.backend.state is BackendState.PARKED:
        ask_anew(draft)
    advance_retiring(draft)
    progress_phase(draft)


def _ask_for_what_it_kept(draft: Draft, gone: Exit) -> None:
    """Where it was to be started from there, its target takes more than was asked for."""
    switch = draft.snapshot.switch
    placement = None if switch is None else switch.start.placement
    if placement is not None and placement.target.is_same(gone.backend.target):
        ask_anew(draft)


def _bring_it_back(draft: Draft, gone: Exit) -> None:
    """See to its restart; if there is none, nobody waits for it."""
    target = gone.backend.target
    note_death(draft, target, gone.record, gone.baselines)
    noted = draft.snapshot.recovery(target.model)
    if noted is not None and noted.is_open and draft.snapshot.switch is None:
        settle_waiters(draft)


_MEANINGS: dict[Part, Callable[[Draft, Exit], None]] = {
    Part.CLOSING: lambda draft, _: complete_shutdown(draft),
    Part.STARTED: _fail_the_start,
    Part.LEAVING: _go_on_without_it,
    Part.PARKED: _ask_for_what_it_kept,
    Part.ORDERED_OUT: lambda *_: None,
    Part.SERVING: _bring_it_back,
}


def _is_wanted(backend: Backend) -> bool:
    is_stopping = backend.state is BackendState.STOPPING
    return backend.departure.is_retiring or (is_stopping and not backend.departure.is_replaced)


def _record(backend: Backend, event: BackendExited) -> BackendExit:
    return BackendExit(
        epoch=event.epoch,
        model=backend.target.model,
        exit_code=event.exit_code,
        signal=event.signal,
        at=event.at,
        was_wanted=_is_wanted(backend),
        stalled_s=backend.stalled_s if backend.departure.is_replaced else None,
        last_lines=event.last_lines,
    )
