"""Whether clients should be sent here, and how well the controller serves."""

from supervisor.core.machine.commands import Command
from supervisor.core.machine.events import BackendReady, Event, ScheduleRead
from supervisor.core.machine.snapshot import Snapshot


class Readiness:
    """Observer of the arbiter: remembers whether a server has been ready since the start."""

    def __init__(self, *, has_default_model: bool, has_schedule: bool) -> None:
        """Begin unready where a model is to be loaded at start, or the schedule may say so."""
        self._has_default_model = has_default_model
        self._has_served = not (has_default_model or has_schedule)
        self._is_schedule_read = False

    def observe(self, event: Event, *_: Snapshot | tuple[Command, ...]) -> None:
        """Note that something serves, or nothing is to: called after each event of the arbiter."""
        if isinstance(event, BackendReady):
            self._has_served = True
        elif isinstance(event, ScheduleRead) and not self._is_schedule_read:
            self._is_schedule_read = True
            loads = bool(event.periods) and event.periods[0].target is not None
            self._has_served |= not (loads or self._has_default_model)

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

        Where neither the schedule nor a default model wants one live, an empty controller is what
        was asked for. Degraded is what is impaired, or has a model that is being brought back.
        """
        is_idle = not snapshot.ready_backends() and snapshot.switch is None
        period = snapshot.agenda.period
        is_wanted = self._has_default_model or (period is not None and period.target is not None)
        if is_wanted and is_idle and snapshot.endings.failure is not None:
            return "unhealthy"
        return "degraded" if is_impaired or snapshot.recoveries else "healthy"
