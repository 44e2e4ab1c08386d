"""The nouns of the decision core: targets, backends, leases, the running switch, the snapshot.

All are frozen; `step()` alone makes the next snapshot out of the last one.
"""

from enum import StrEnum

from immutables import Map
from msgspec import Struct, field

from supervisor.core.byte_size import MIB
from supervisor.core.machine.memory import MemoryPolicy, MemorySample, ReleaseQuestion
from supervisor.core.sizing.fitting import Alternative


class Mode(StrEnum):
    """What a model is run for; it decides the profile and the routes its server has."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


class BackendState(StrEnum):
    """Where one spawned server stands. After it is reaped it leaves the snapshot."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"


class Phase(StrEnum):
    """Where the running switch stands; `docs/architecture.md` has the table."""

    PREFLIGHT = "preflight"
    WARMING = "warming"
    DRAINING = "draining"
    STOPPING = "stopping"
    CONFIRMING = "confirming"
    STARTING = "starting"
    READY = "ready"
    ROLLING_BACK = "rolling_back"


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

    `fallback` is tried instead where there is no room for it: the same model with another profile.
    """

    model: str
    mode: Mode
    profile: str
    device: str
    start_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    stop_grace_s: float = 5.0
    stall_timeout_s: float = 0.0
    restart_on_stall: bool = False
    memory: MemoryPolicy = field(default_factory=MemoryPolicy)
    fallback: "Target | None" = None

    def is_same(self, other: "Target") -> bool:
        """Whether both name the same model with the same profile."""
        return (self.model, self.profile) == (other.model, other.profile)


class Placement(Struct, frozen=True, kw_only=True):
    """A target and the bytes that it is accounted for."""

    target: Target
    need_bytes: int


class TargetNeed(Struct, frozen=True, kw_only=True):
    """What a target will take on its device, in bytes, why, and what would make it smaller.

    Of the alternatives for one field the mildest comes first.
    """

    need_bytes: int
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

    `attempt` counts from 1, and the pauses grow with it. `is_open`: the breaker has opened, and
    only a manual restart tries again. `may_hold`: its requests wait for the restart that is due.
    `baseline_used_bytes` is the use of its device without it, true as long as the servers of the
    epochs in `beside` are all that run.
    """

    target: Target
    attempt: int
    reason: str
    is_open: bool = False
    may_hold: bool = True
    baseline_used_bytes: int | None = None
    beside: tuple[int, ...] = ()


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


class Backend(Struct, frozen=True, kw_only=True):
    """One spawned server. `epoch` is unique: an event of an older epoch changes nothing.

    `is_retiring`: its successor serves already; it ends its requests and stops, at
    `retire_deadline` at the latest (None: it waits for them). `stalled_s`: how long nothing has
    moved in it though requests are in flight, None while something does. `is_replaced`: it is
    stopped because of that, and the same target starts again.
    """

    epoch: int
    target: Target
    state: BackendState
    need_bytes: int
    started_at: float
    baseline_used_bytes: int | None
    baseline_foreign_bytes: int | None = None
    in_flight: int = 0
    pid: int | None = None
    address: str | None = None
    is_retiring: bool = False
    retire_deadline: float | None = None
    stalled_s: float | None = None
    is_replaced: bool = False


class Waiter(Struct, frozen=True, kw_only=True):
    """A request that waits for the running switch. `target` None takes whatever is live then."""

    request_id: str
    target: Target | None
    mode_hint: Mode | None
    arrived_at: float
    body_bytes: int = 0

    @property
    def model(self) -> str | None:
        """The name of the model that it waits for; None where it named none."""
        return None if self.target is None else self.target.model


class Refusal(Struct, frozen=True, kw_only=True):
    """Why somebody gets an error: a stable `code`, a sentence, and facts for the answer's body."""

    code: str
    message: str
    details: tuple[tuple[str, str | int | float | tuple[str, ...] | None], ...] = ()


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


class Switch(Struct, frozen=True, kw_only=True):
    """The one switch that runs. `target` None is an unload. Times monotonic, in seconds.

    `must_leave` stop before the target starts, and do so once they are `leaving`; `retiring` serve
    until it is ready. `to_restore` is
    what a rollback brings back. `fell_back`: why the target is not the one that was asked for.
    """

    switch_id: str
    target: Target | None
    requested_by: str
    phase: Phase
    started_at: float
    phase_started_at: float
    is_recovery: bool = False
    phase_seconds: tuple[tuple[Phase, float], ...] = ()
    drain_policy: DrainPolicy = DrainPolicy.CANCEL
    leaving: tuple[int, ...] = ()
    must_leave: tuple[int, ...] = ()
    retiring: tuple[int, ...] = ()
    drain_deadline: float | None = None
    placing: Placement | None = None
    to_restore: tuple[Placement, ...] = ()
    epoch: int | None = None
    devices_to_confirm: tuple[str, ...] = ()
    question: ReleaseQuestion | None = None
    samples: tuple[MemorySample, ...] = ()
    samples_taken: int = 0
    next_sample_at: float | None = None
    gate_reason: str | None = None
    memory_before: MemorySample | None = None
    memory_confirmed: MemorySample | None = None
    baselines: tuple[tuple[str, int], ...] = ()
    foreign_baselines: tuple[tuple[str, int], ...] = ()
    prompts_saved: tuple[KeptPrompts, ...] = ()
    prompts_restored: KeptPrompts | None = None
    fell_back: str | None = None
    given_up: Refusal | None = None
    failure: Refusal | None = None


class SwitchReport(Struct, frozen=True, kw_only=True):
    """What callers and the history learn of a switch that ended. Seconds and bytes."""

    switch_id: str
    requested_by: str
    outcome: Outcome
    last_phase: Phase
    model: str | None
    mode: Mode | None
    profile: str | None
    epoch: int | None
    total_s: float
    phase_seconds: tuple[tuple[Phase, float], ...]
    gate_reason: str | None = None
    samples_taken: int = 0
    memory_before: MemorySample | None = None
    memory_confirmed: MemorySample | None = None
    memory_after: MemorySample | None = None
    prompts_saved: tuple[KeptPrompts, ...] = ()
    prompts_restored: KeptPrompts | None = None
    fell_back: str | None = None
    refusal: Refusal | None = None


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on requests that wait for a switch, and on restarts of a model that dies."""

    hold_max_requests: int = 10_000
    hold_max_bytes: int = 1024 * MIB
    hold_timeout_s: float = 300.0
    breaker_deaths: int = 5
    breaker_window_s: float = 120.0


class SwitchRules(Struct, frozen=True, kw_only=True):
    """How switches go about their work, as the operator chose.

    `replaces`: a switch leaves only its target live, also where more would fit. `warms`: the
    target's file is read into the page cache meanwhile. `keeps_prompts_at_exit`: prompt caches are
    saved when the controller ends, too.
    """

    replaces: bool = False
    warms: bool = True
    keeps_prompts_at_exit: bool = False


class Snapshot(Struct, frozen=True, kw_only=True):
    """The whole state. Only the arbiter replaces it, and only by what `step()` returns.

    `backends` stand in the order of their starts, which is that of their epochs.
    Waiters are keyed by arrival number, so that the oldest is found without searching:
    `oldest_waiter` is its number, or `next_waiter` when nobody waits. It only moves up.
    """

    devices: Map[str, Device]
    limits: Limits = field(default_factory=Limits)
    rules: SwitchRules = field(default_factory=SwitchRules)
    backends: tuple[Backend, ...] = ()
    leases: Map[str, int] = field(default_factory=Map)
    waiters: Map[int, Waiter] = field(default_factory=Map)
    waiter_numbers: Map[str, int] = field(default_factory=Map)
    held_bytes: int = 0
    next_waiter: int = 0
    oldest_waiter: int = 0
    switch: Switch | None = None
    recoveries: tuple[Recovery, ...] = ()
    recent_deaths: Map[str, tuple[float, ...]] = field(default_factory=Map)
    switch_durations_s: tuple[float, ...] = ()
    next_epoch: int = 1
    last_exit: BackendExit | None = None
    last_failure: Refusal | None = None
    is_closing: bool = False
    close_deadline: float | None = None

    def backend(self, epoch: int | None) -> Backend | None:
        """Return the backend of an epoch, or None once it is gone."""
        return next((b for b in self.backends if b.epoch == epoch), None)

    def sharing(self, device: str) -> tuple[Backend, ...]:
        """Return the backends on a device, and on those that share its memory."""
        pool = self._pool(device)
        return tuple(b for b in self.backends if self._pool(b.target.device) == pool)

    def _pool(self, device: str) -> str:
        return self.devices[device].pool or device

    def recovery(self, model: str | None) -> Recovery | None:
        """Return the recovery of a model that should be live and is not."""
        return next((r for r in self.recoveries if r.target.model == model), None)

    def ready_backends(self) -> tuple[Backend, ...]:
        """Backends that admit requests, the one switched to last first."""
        return tuple(b for b in reversed(self.backends) if b.state is BackendState.READY)

    def live_models(self) -> tuple[str, ...]:
        """Names of the models that admit requests now."""
        return tuple(b.target.model for b in self.ready_backends())

    def server_mode(self) -> str:
        """Return `generation`, `embedding`, `mixed` (both are live) or `none`."""
        modes = {b.target.mode for b in self.ready_backends()}
        if len(modes) > 1:
            return "mixed"
        return modes.pop().value if modes else "none"
