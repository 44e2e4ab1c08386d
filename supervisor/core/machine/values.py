"""The nouns of the decision core: targets, devices, backends, who waits, and what is refused.

All are frozen. `switch.py` has the running switch, `snapshot.py` the whole state.
"""

from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from supervisor.core.machine.footprint import Baseline, Footprint, baseline_on
from supervisor.core.machine.memory import MemoryPolicy
from supervisor.core.scheduling.values import Priority
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


class Outcome(StrEnum):
    """How a switch ended."""

    SWITCHED = "switched"
    UNCHANGED = "unchanged"
    FAILED = "failed"


class Patience(Struct, frozen=True, kw_only=True):
    """How long a target's server is waited for, in seconds, as its profile says.

    `stall_timeout_s` 0: it may stand still for ever. `restart_on_stall`: one that did not move for
    so long is replaced; else that is only told.
    """

    start_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    stop_grace_s: float = 5.0
    stall_timeout_s: float = 0.0
    restart_on_stall: bool = False


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
    patience: Patience = Patience()
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
    """A target and what it is accounted for.

    `baselines`: of what ran before, the use of its devices from before that, where it is known.
    """

    target: Target
    footprint: Footprint
    baselines: tuple[Baseline, ...] = ()


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


class Departure(Struct, frozen=True, kw_only=True):
    """How a server leaves, which begins as its requests are ended.

    `is_retiring`: its successor serves already; it ends its requests and stops. `is_replaced`: it
    is stopped because nothing moves in it, and the same target starts again. `deadline`: when one
    that retires must have ended its requests (None: it is waited for), and one that is being
    stopped or parked must have given its memory up.
    """

    is_retiring: bool = False
    is_replaced: bool = False
    deadline: float | None = None


class Backend(Struct, frozen=True, kw_only=True):
    """One spawned server. `epoch` is unique: an event of an older epoch changes nothing.

    `stalled_s`: how long nothing has moved in it though requests are in flight, None while
    something does. `is_outdated`: it would be started otherwise now, or not at all, so that nothing
    wakes it. `baselines` are the use of each device from before it started, where that was read; of
    one that is `parked`, the use without what it keeps, which is its footprint.
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
    departure: Departure = Departure()
    stalled_s: float | None = None
    is_outdated: bool = False
    parked: Parked | None = None

    def baseline(self, device: str) -> Baseline | None:
        """Return the use of a device from before it started, where that was read."""
        return baseline_on(self.baselines, device)


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
