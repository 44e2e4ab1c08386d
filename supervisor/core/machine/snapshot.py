"""The whole state of the decision core; `step()` alone makes the next one out of the last."""

from immutables import Map
from msgspec import Struct, field

from supervisor.core.machine.switch import Switch
from supervisor.core.machine.values import (
    Backend,
    BackendExit,
    BackendState,
    Device,
    Limits,
    Recovery,
    Refusal,
    SwitchRules,
    Waiter,
)


class Requests(Struct, frozen=True, kw_only=True):
    """Who uses a backend, and who waits for one: written by `requests`.

    `leases` name the epoch by request id. Waiters are keyed by arrival number, so that the oldest
    is found without searching: `oldest_waiter` is its number, or `next_waiter` when nobody waits.
    It only moves up.
    """

    leases: Map[str, int] = field(default_factory=Map)
    waiters: Map[int, Waiter] = field(default_factory=Map)
    waiter_numbers: Map[str, int] = field(default_factory=Map)
    next_waiter: int = 0
    oldest_waiter: int = 0


class Snapshot(Struct, frozen=True, kw_only=True):
    """The whole state. Only the arbiter replaces it, and only by what `step()` returns.

    `backends` stand in the order of their starts, which is that of their epochs.
    """

    devices: Map[str, Device]
    limits: Limits = Limits()
    rules: SwitchRules = SwitchRules()
    backends: tuple[Backend, ...] = ()
    requests: Requests = Requests()
    switch: Switch | None = None
    recoveries: tuple[Recovery, ...] = ()
    recent_deaths: Map[str, tuple[float, ...]] = field(default_factory=Map)
    switch_durations_s: tuple[float, ...] = ()
    next_epoch: int = 1
    last_exit: BackendExit | None = None
    last_failure: Refusal | None = None
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
        """Return the backends that take of these devices, or of those that share their memory."""
        pools = {name for device in devices for name in self.pool(device)}
        return tuple(b for b in self.backends if not pools.isdisjoint(b.footprint.devices))

    def pool(self, device: str) -> tuple[str, ...]:
        """Return the devices that have one memory with this one, and itself."""
        pool = self.devices[device].pool or device
        return tuple(d.name for d in self.devices.values() if (d.pool or d.name) == pool)

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
