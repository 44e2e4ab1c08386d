"""Whether clients should be sent here, and how well the controller serves."""

from supervisor.core.machine.commands import Command
from supervisor.core.machine.events import BackendReady, Event
from supervisor.core.machine.snapshot import Snapshot


class Readiness:
    """Observer of the arbiter: remembers whether a server has been ready since the start."""

    def __init__(self, *, has_default_model: bool) -> None:
        """Begin unready where a model is to be loaded at start, else ready."""
        self._has_default_model = has_default_model
        self._has_served = not has_default_model

    def observe(self, event: Event, *_: Snapshot | tuple[Command, ...]) -> None:
        """Note that something serves: called after each event of the arbiter."""
        if isinstance(event, BackendReady):
            self._has_served = True

    def state(self, snapshot: Snapshot) -> str:
        """Return `ready`, `starting` or `shutting_down`; once ready, only the end changes it.

        A switch, an unload or a server that died does not: requests are held meanwhile, and with
        one Pod there is nobody else to send them to.
        """
        if snapshot.is_closing:
            return "shutting_down"
        return "ready" if self._has_served else "starting"

    def health(self, snapshot: Snapshot, *, is_impaired: bool) -> str:
        """Return `healthy`, `degraded`, or `unhealthy`: the last switch failed, nothing serves.

        Without a default model, an empty controller is what was asked for. Degraded is what is
        impaired, or has a model that is being brought back.
        """
        is_idle = not snapshot.ready_backends() and snapshot.switch is None
        if self._has_default_model and is_idle and snapshot.endings.failure is not None:
            return "unhealthy"
        return "degraded" if is_impaired or snapshot.recoveries else "healthy"
