"""The nouns of the decision core: targets, devices, backends, who waits, and what is refused.

All are frozen. `switch.py` has the running switch, `snapshot.py` the whole state.
"""

from collections.abc import Mapping
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from supervisor.core.machine.footprint import Baseline, Footprint
from supervisor.core.machine.memory import MemoryPolicy
from supervisor.core.scheduling.values import Priority, SchedulingRules
from supervisor.core.sizing.fitting import Alternative


class Mode(StrEnum):
    """What a model is run for; it decides the profile and the routes its server has."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


class BackendState(StrEnum):
    """Where one spawned server stands. After it is reaped it leaves the snapshot.

    PARKED: it lives on without its devices' memory. It admits nobody, and is started from there.
    """

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    PARKING = "parking"
    PARKED = "parked"
    STOPPING = "stopping"


class Phase(StrEnum):
    """Where the running switch stands; `phases.py` has the table.

    A rollback has two: memory is confirmed for what comes back (ROLLING_BACK), and its server
    starts (RESTORING). Who looks on sees both as `rolling_back`: see `shown`.
    """

    PREFLIGHT = "preflight"
    WARMING = "warming"
    DRAINING = "draining"
    STOPPING = "stopping"
    CONFIRMING = "confirming"
    STARTING = "starting"
    READY = "ready"
    ROLLING_BACK = "rolling_back"
    RESTORING = "restoring"

    @property
    def shown(self) -> "Phase":
        """The phase as users, the log and the history know it."""
        return Phase.ROLLING_BACK if self is Phase.RESTORING else self


class DrainPolicy(StrEnum):
    """What happens to requests that are still in flight when the drain deadline passes."""

    WAIT = "wait"
    CANCEL = "cancel"
    REFUSE = "refuse"


class Outcome(StrEnum):
    """How a switch ended."""

    SWITCHED = "switched"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class Target(Struct, frozen=True, kw_only=True):
    """A model in a mode with a profile on a device: what a switch makes live.

    `split_over`: the GPUs that its layers are divided over, `device` being the first of them; empty
    where it is on `device` alone. `candidates`: the GPUs of which any may be its `device`, which
    is the first of them until one was chosen; empty: there is no choice. `revision` changes with
    all that decides how the server is started, whatever its profile is called. `parallel` is how
    many requests it works on at a time. `parks`: its server gives memory up by being parked, not
    stopped, where that can be; it is taken to hold `parked_bytes` of host memory then (None: as it
    did last, or as much as of its GPUs). `fallback` is tried instead where there is no room for it:
    the same model with another profile.
    `spill` is its twin: the same model with a profile that runs beside what is live, for small
    requests while it is not live itself; see `twins`. `twin_of` is set in a twin, whose `model` is
    a name of its own: the model that it is one of.
    """

    model: str
    mode: Mode
    profile: str
    device: str
    split_over: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    revision: str = ""
    start_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    stop_grace_s: float = 5.0
    stall_timeout_s: float = 0.0
    restart_on_stall: bool = False
    parallel: int = 1
    parks: bool = False
    parked_bytes: int | None = None
    memory: MemoryPolicy = field(default_factory=MemoryPolicy)
    fallback: "Target | None" = None
    spill: "Target | None" = None
    twin_of: str | None = None

    @property
    def is_twin(self) -> bool:
        """Whether it only stands in for another: it makes nobody leave, and no turn is its own."""
        return self.twin_of is not None

    @property
    def catalogue_name(self) -> str:
        """The model as the configuration knows it."""
        return self.twin_of or self.model

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices that its server is shown."""
        return self.split_over or (self.device,)

    @property
    def places(self) -> tuple["Target", ...]:
        """It on each device that it may be put on, as if there were no choice any more."""
        if not self.candidates:
            return (self,)
        return tuple(replace(self, device=device) for device in self.candidates)

    def shared_devices(self, other: "Target") -> frozenset[str]:
        """The devices that the servers of both are shown."""
        return frozenset(self.devices) & frozenset(other.devices)

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes it another target than one of the same model."""
        return self.model, self.profile, self.revision

    def is_same(self, other: "Target") -> bool:
        """Whether both mean the same model with the same profile, as both are written now."""
        return self.identity == other.identity


class Placement(Struct, frozen=True, kw_only=True):
    """A target and what it is accounted for."""

    target: Target
    footprint: Footprint


class TargetNeed(Struct, frozen=True, kw_only=True):
    """What a target will take of each device, why, and what would make it smaller on its own.

    Of the alternatives for one field the mildest comes first.
    """

    footprint: Footprint
    explanation: str = ""
    alternatives: tuple[Alternative, ...] = ()


class KeptPrompts(Struct, frozen=True, kw_only=True):
    """What of a model's prompt cache was saved or restored, and why not all, where not."""

    model: str
    slots: int
    tokens: int
    size_bytes: int
    took_s: float
    reason: str | None = None


class Recovery(Struct, frozen=True, kw_only=True):
    """A model that should be live and is not: it died, or could not be brought back.

    `attempt` counts from 1, and the pauses grow with it. `retry_at`: when the next one is due, None
    where none is: nobody has ended the old server yet, or (`is_open`) the breaker has opened, and
    only a manual restart tries again. `may_hold`: its requests wait for the restart that is due.
    `baselines` are the use of its devices without it, true as long as the servers of the epochs in
    `beside` are all that take of them, and take so many bytes.
    """

    target: Target
    attempt: int
    reason: str
    retry_at: float | None = None
    is_open: bool = False
    may_hold: bool = True
    baselines: tuple[Baseline, ...] = ()
    beside: tuple[tuple[int, int], ...] = ()


class Device(Struct, frozen=True, kw_only=True):
    """What a device may carry. `budget_bytes` is the operator's bound, by default its total.

    Devices with one `pool` have one memory between them: a GPU with unified memory, and the host.
    `is_host_memory`: it is the host's, which the kernel frees with the process that took it.
    """

    name: str
    budget_bytes: int
    is_exclusive: bool = False
    pool: str = ""
    is_host_memory: bool = False


class Work(Struct, frozen=True, kw_only=True):
    """What a backend has done since it admits requests (`since`): its stay on the device.

    `queued_before` callers waited for it then, `queued` of them interactive. `granted` leases in
    all, of which `interactive_in_flight` are in use for interactive requests. `idle_s` is the time
    without any, but for the present one, which lasts since `empty_since` (None while it has work).
    """

    since: float = 0.0
    queued: int = 0
    granted: int = 0
    interactive_in_flight: int = 0
    idle_s: float = 0.0
    empty_since: float | None = None
    queued_before: int = 0


class Parked(Struct, frozen=True, kw_only=True):
    """Since when a server is parked, and how much host memory it holds, which is measured."""

    since: float
    host_bytes: int


class Backend(Struct, frozen=True, kw_only=True):
    """One spawned server. `epoch` is unique: an event of an older epoch changes nothing.

    `is_retiring`: its successor serves already; it ends its requests and stops, at
    `retire_deadline` at the latest (None: it waits for them). `stalled_s`: how long nothing has
    moved in it though requests are in flight, None while something does. `is_replaced`: it is
    stopped because of that, and the same target starts again. `is_outdated`: it would be started
    otherwise now, or not at all, so that nothing wakes it. `baselines` are the use of each
    device from before it started, where that was read; of one that is `parked`, the use without
    what it keeps, which is its footprint. `release_deadline`: when one that is being stopped or
    parked must have given its memory up.
    """

    epoch: int
    target: Target
    state: BackendState
    footprint: Footprint
    started_at: float
    baselines: tuple[Baseline, ...] = ()
    in_flight: int = 0
    work: Work = Work()
    pid: int | None = None
    address: str | None = None
    is_retiring: bool = False
    retire_deadline: float | None = None
    release_deadline: float | None = None
    stalled_s: float | None = None
    is_replaced: bool = False
    is_outdated: bool = False
    parked: Parked | None = None

    def baseline(self, device: str) -> Baseline | None:
        """Return the use of a device from before it started, where that was read."""
        return next((b for b in self.baselines if b.device == device), None)


class Stop(Struct, frozen=True, kw_only=True):
    """A way of giving memory up: the server's processes end, and all that they held is free.

    `grace_s`: seconds from the stop signal to SIGKILL. `keeps_prompts`: its prompts are saved
    first, where its launch names a folder for them. `is_replaced`: a successor is to come, which
    may serve its requests as after a death.
    """

    grace_s: float
    keeps_prompts: bool = False
    is_replaced: bool = False


class Park(Struct, frozen=True, kw_only=True):
    """A way of giving memory up: the server lives on without it. It may be stopped later."""

    keeps_prompts: bool = False


class Waiter(Struct, frozen=True, kw_only=True):
    """A request that waits for its model. `target` None takes whatever is live after a switch.

    `number` grows with every arrival. `callers` wait for it, with that sum of their arrivals.
    `may_switch` and `may_spill` are those of the request; `main` is what it asked for where it
    waits for the twin of that.
    """

    request_id: str
    target: Target | None
    arrived_at: float
    number: int
    arrived_at_sum: float
    callers: int = 1
    priority: Priority = Priority.INTERACTIVE
    may_switch: bool = False
    may_spill: bool = False
    main: Target | None = None

    @property
    def model(self) -> str | None:
        """The name of the model that it waits for; None where it named none."""
        return None if self.target is None else self.target.model

    @property
    def is_spilling(self) -> bool:
        """Whether its model's twin could serve it, and it waits for the model itself."""
        return self.may_spill and self.main is None


class Refusal(Struct, frozen=True, kw_only=True):
    """Why somebody gets an error: a stable `code`, a sentence, and facts for the answer's body."""

    code: str
    message: str
    details: tuple[tuple[str, str | int | float | tuple[str, ...] | None], ...] = ()


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on requests that wait for a switch, and on restarts of a model that dies.

    `hold_max_per_model` None: as many as may wait in all.
    """

    hold_max_requests: int = 10_000
    hold_max_per_model: int | None = None
    hold_timeout_s: float = 300.0
    breaker_deaths: int = 5
    breaker_window_s: float = 120.0


class ModelRules(Struct, frozen=True, kw_only=True):
    """What the operator chose for one model.

    `is_pinned`: it never gives way to another. `idle_unload_s`: it is unloaded after so long
    without work. `max_concurrency`: so many requests use it at once.
    """

    is_pinned: bool = False
    idle_unload_s: float | None = None
    max_concurrency: int | None = None


_AS_ALL = ModelRules()


class SwitchRules(Struct, frozen=True, kw_only=True):
    """How switches go about their work, as the operator chose.

    `replaces`: a switch leaves only its target live, even where more would fit. `warms`: the
    target's file is read into the page cache meanwhile. `keeps_prompts_at_exit`: prompt caches are
    also saved when the controller ends. `parked_max_bytes`: host memory that parked servers may
    hold together (None: as the host's budget allows). `scheduling`: what the scheduler's policy is
    held to; `scheduler_drains`: what its switches do to requests in flight; `manual_hold_s`: how
    long it leaves alone what was switched to by hand. `models` has those for which something was
    chosen. `idle_target` is made live again once nothing was asked for during `idle_after_s`.
    """

    replaces: bool = False
    warms: bool = True
    keeps_prompts_at_exit: bool = False
    parked_max_bytes: int | None = None
    scheduling: SchedulingRules = SchedulingRules()
    scheduler_drains: DrainPolicy = DrainPolicy.WAIT
    manual_hold_s: float = 10.0
    models: Mapping[str, ModelRules] = {}
    idle_target: Target | None = None
    idle_after_s: float = 600.0

    def of(self, target: Target) -> ModelRules:
        """Return what was chosen for a target's model."""
        return self.models.get(target.model) or _AS_ALL

    def unloads(self, target: Target, only: str | None) -> bool:
        """Whether an unload stops a target: of one model by name, or of all that are not pinned."""
        return not self.of(target).is_pinned if only is None else target.model == only
