"""The composition root: builds the real adapters and wires them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from supervisor.arbiter.arbiter import Arbiter
from supervisor.calendar.reading import ScheduleReader
from supervisor.calendar.wall_clock import WallClock
from supervisor.config.configuration import Configuration
from supervisor.config.holder import ConfigurationHolder
from supervisor.engine.targets import Targets
from supervisor.gateway.door import Door
from supervisor.observability.impairments import Impairments
from supervisor.wiring.door import make_door
from supervisor.wiring.ground import Options, prepare_ground
from supervisor.wiring.machine import note_device, push_rules, start_machine
from supervisor.wiring.scheduled_work import ScheduledWork
from supervisor.wiring.services import Services, make_services


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The running parts: the arbiter, the door, and what they were built with."""

    arbiter: Arbiter
    targets: Targets
    door: Door
    services: Services
    configuration: ConfigurationHolder
    schedule: ScheduleReader
    impairments: Impairments

    async def shut_down(self, drain_timeout_s: float) -> None:
        """End the work that nobody waits for, drain what somebody waits for, stop all children."""
        # At once: a queue that does not answer may take long to be closed.
        ending = (self.services.close(), self.arbiter.shut_down(drain_timeout_s))
        for outcome in await asyncio.gather(*ending, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


@asynccontextmanager
async def build(
    configuration: Configuration, options: Options, wall_clock: WallClock | None = None
) -> AsyncIterator[Controller]:
    """Wire the parts. When the context ends, no child is left and every device is given back.

    The schedule goes by `wall_clock`, by default the machine's. Raises SupervisorError when another
    controller uses the data folder, no engine is here, or a required device cannot be used.
    """
    async with AsyncExitStack() as owned:
        ground = await prepare_ground(configuration, options, owned)
        holder = ground.configuration
        targets = Targets(
            holder, ground.telemetry, lambda device: note_device(machine.arbiter, device)
        )
        schedule = ScheduleReader(
            configuration=holder,
            targets=targets,
            work=lambda: ScheduledWork(services.jobs, ground.vectors),
            clock=wall_clock or WallClock(),
            impairments=ground.impairments,
        )
        machine = await start_machine(ground, targets, schedule, owned)
        arbiter = machine.arbiter
        push_rules(machine, targets, ground.stores, holder)
        services = make_services(ground, machine, targets)
        owned.push_async_callback(services.embedding.preparer.close)
        controller = Controller(
            arbiter=arbiter,
            targets=targets,
            door=make_door(ground, machine, targets, services),
            services=services,
            configuration=holder,
            schedule=schedule,
            impairments=ground.impairments,
        )
        try:
            await services.jobs.resume()
            yield controller
        finally:
            await asyncio.shield(controller.shut_down(0))
