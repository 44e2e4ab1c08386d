"""The whole state of the decision core; `step()` alone makes the next one out of the last."""

import math

from immutables import Map
from msgspec import Struct, field

from supervisor.core.machine.agenda import Agenda
from supervisor.core.machine.events import RestartRequested, SwitchRequested
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.queues import Requests
from supervisor.core.machine.rules import Limits, SwitchRules
from supervisor.core.machine.switch import Switch
from supervisor.core.machine.values import Backend, BackendState, Device, Recovery, Refusal, Target
from supervisor.core.scheduling.estimates import Estimates
from supervisor.core.scheduling.values import Decision


class Setback(Struct, frozen=True, kw_only=True):
    """A model to which the scheduler's last switches failed: it is not tried before `until`.

    `faults` of the `failures` were the target's own, and do not pass by themselves. `is_drain`: the
    last one was that those at work were not done in time. `refusal` is for its requests meanwhile;
    None: they wait on.
    """

    failures: int
    faults: int
    is_drain: bool
    until: float
    refusal: Refusal | None

    @property
    def is_final(self) -> bool:
        """Whether only a hand tries again."""
        return self.until == math.inf


class Away(Struct, frozen=True, kw_only=True):
    """When the last stay of a model ended, its last request answered.

    It left so many behind who were `waiting`, with that sum of their arrivals.
    """

    left_at: float
    waiting: int = 0
    arrived_at_sum: float = 0.0


class LastParking(Struct, frozen=True, kw_only=True):
    """How the last parking of a target went: what its server kept (None: not known).

    `unproved_until`: its release was not proved, and it is stopped instead until then.
    """

    kept: Footprint | None = None
    unproved_until: float = -math.inf


class Scheduling(Struct, frozen=True, kw_only=True):
    """What the scheduler knows and has decided: written by `scheduler` and the modules it names.

    `run` and `begun` name the next switch that the controller begins by itself. `needs` are the
    last that were accepted, by the target's identity and its device, and `parkings` how it was
    parked last, by its identity. `capacities` are what all our servers together could take of a
    device when it was last read. `comparable` are the targets, by identity, with which their twins
    can be compared. `pending` is a switch by hand that waits for the end of the running one,
    `held_until` how long devices stay as a hand has set them. `is_unloaded`: a hand has unloaded,
    and nothing was switched to since. `decision` is the last one, `wake_at` when it is to be
    thought over, and `linger_s` how long after the only live model has no work (0: at once).
    """

    run: str = "s0"
    begun: int = 0
    needs: Map[tuple[tuple[str, str, str], str], Footprint] = field(default_factory=Map)
    capacities: Map[str, int] = field(default_factory=Map)
    parkings: Map[tuple[str, str, str], LastParking] = field(default_factory=Map)
    pending: SwitchRequested | RestartRequested | None = None
    held_until: Map[str, float] = field(default_factory=Map)
    setbacks: Map[str, Setback] = field(default_factory=Map)
    away: Map[str, Away] = field(default_factory=Map)
    comparable: frozenset[tuple[str, str, str]] = frozenset()
    estimates: Estimates = Estimates()
    is_unloaded: bool = False
    decision: Decision | None = None
    wake_at: float | None = None
    linger_s: float = 0.0

    def need_of(self, target: Target) -> Footprint | None:
        """Return what a target was found to need on its device, where it was looked at before."""
        return self.needs.get((target.identity, target.device))

    def last_parking(self, target: Target) -> LastParking:
        """Return how a target was parked last; as if nothing was known where it never was."""
        return self.parkings.get(target.identity) or LastParking()

    def devices_of(self, target: Target) -> tuple[str, ...]:
        """Return the devices that a target takes of, wherever it is put, as far as is known."""
        if not target.candidates:
            return self.devices_on(target)
        places = (target, *target.places)
        return tuple(dict.fromkeys(d for place in places for d in self.devices_on(place)))

    def devices_on(self, place: Target) -> tuple[str, ...]:
        """Return the devices that a target takes of where it is put now, as far as is known."""
        need = self.need_of(place)
        return place.devices if need is None else (*place.devices, *need.devices)


class BackendExit(Struct, frozen=True, kw_only=True):
    """How a backend's process ended. `signal` is the number that killed it, if one did."""

    epoch: int
    model: str
    exit_code: int | None
    signal: int | None
    at: float
    was_wanted: bool
    stalled_s: float | None = None
    last_lines: tuple[str, ...] = ()

    def describe(self) -> str:
        """Say in words how the process ended: `signal 9`, `exit code 1` or `not spawned`."""
        if self.stalled_s is not None:
            return f"ended by us, because nothing had moved in it for {self.stalled_s:.0f} s"
        if self.signal is not None:
            return f"signal {self.signal}"
        return "not spawned" if self.exit_code is None else f"exit code {self.exit_code}"


class Endings(Struct, frozen=True, kw_only=True):
    """What ended last: a backend, a switch that failed, and the work of those that are gone.

    `orphans_at`: when the servers that a killed controller had left were found gone, None where
    there were none. A driver may give their memory back some time after it.
    """

    exit: BackendExit | None = None
    failure: Refusal | None = None
    work_at: float | None = None
    orphans_at: float | None = None

    @property
    def server_at(self) -> float | None:
        """When a server ended last, whoever had started it."""
        ends = (self.orphans_at, None if self.exit is None else self.exit.at)
        return max((at for at in ends if at is not None), default=None)


class Snapshot(Struct, frozen=True, kw_only=True):
    """The whole state. Only the arbiter replaces it, and only by what `step()` returns.

    `backends` stand in the order in which they took the memory that they hold: of their starts,
    or, where they were parked or unparked since, of that.
    """

    devices: Map[str, Device]
    limits: Limits = Limits()
    rules: SwitchRules = SwitchRules()
    backends: tuple[Backend, ...] = ()
    requests: Requests = Requests()
    scheduling: Scheduling = Scheduling()
    agenda: Agenda = Agenda()
    switch: Switch | None = None
    recoveries: tuple[Recovery, ...] = ()
    recent_deaths: Map[str, tuple[float, ...]] = field(default_factory=Map)
    switch_durations_s: tuple[float, ...] = ()
    next_epoch: int = 1
    endings: Endings = Endings()
    close_deadline: float | None = None

    @property
    def is_closing(self) -> bool:
        """Whether the controller shuts down: from then on there is a deadline for that."""
        return self.close_deadline is not None

    def backend(self, epoch: int | None) -> Backend | None:
        """Return the backend of an epoch, or None once it is gone."""
        for backend in self.backends:  # on the way of every request
            if backend.epoch == epoch:
                return backend
        return None

    def sharing(self, *devices: str) -> tuple[Backend, ...]:
        """Return the tenants of these devices, and of those that share their memory.

        Parked ones are none, though they may keep something there: they make way for all others.
        """
        pools = {name for device in devices for name in self.pool(device)}
        return tuple(b for b in self.tenants() if not pools.isdisjoint(b.footprint.devices))

    def tenants(self) -> tuple[Backend, ...]:
        """All but the parked ones."""
        return tuple(b for b in self.backends if b.state is not BackendState.PARKED)

    def parked(self) -> tuple[Backend, ...]:
        """Backends that are parked, the one that has been so for longest first."""
        return tuple(b for b in self.backends if b.state is BackendState.PARKED)

    def parked_of(self, target: Target) -> Backend | None:
        """Return the parked server that a start of a target would wake, which is where it is."""
        same = (b for b in self.parked() if b.target.is_same(target))
        return next((b for b in same if b.target.devices == target.devices), None)

    def pool(self, device: str) -> tuple[str, ...]:
        """Return the devices that have one memory with this one, and itself."""
        known = self.devices.get(device)
        pool = (known.pool if known else "") or device
        return tuple(d.name for d in self.devices.values() if (d.pool or d.name) == pool)

    def recovery(self, model: str | None) -> Recovery | None:
        """Return the recovery of a model that should be live and is not."""
        return next((r for r in self.recoveries if r.target.model == model), None)

    def admitting(self) -> tuple[Backend, ...]:
        """Backends that admit requests, the one switched to last first."""
        return tuple(b for b in reversed(self.backends) if b.state is BackendState.READY)

    def ready_backends(self) -> tuple[Backend, ...]:
        """Those of them that serve all that their model is asked for: no twins."""
        return tuple(b for b in self.admitting() if not b.target.is_twin)

    @property
    def only(self) -> Backend | None:
        """The only tenant but for twins; None where there is none, or there are several."""
        mains = [
            b
            for b in self.backends
            if b.target.twin_of is None and b.state is not BackendState.PARKED
        ]
        return mains[0] if len(mains) == 1 else None

    def live_models(self) -> tuple[str, ...]:
        """Names of the models that admit requests now."""
        return tuple(b.target.model for b in self.ready_backends())

    def server_mode(self) -> str:
        """Return `generation`, `embedding`, `mixed` (both are live) or `none`."""
        modes = {b.target.mode for b in self.ready_backends()}
        if len(modes) > 1:
            return "mixed"
        return modes.pop().value if modes else "none"
