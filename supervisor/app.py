"""The composition root: builds the real adapters and wires them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.configuration import Configuration
from supervisor.config.holder import ConfigurationHolder
from supervisor.engine.targets import Targets
from supervisor.gateway.door import Door
from supervisor.wiring.door import make_door
from supervisor.wiring.ground import Options, prepare_ground
from supervisor.wiring.machine import note_device, push_rules, start_machine
from supervisor.wiring.services import Services, make_services


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The running parts: the arbiter, the door, and what they were built with."""

    arbiter: Arbiter
    targets: Targets
    door: Door
    services: Services
    configuration: ConfigurationHolder

    async def shut_down(self, drain_timeout_s: float) -> None:
        """End the work that nobody waits for, drain what somebody waits for, stop all children."""
        await self.services.close()
        await self.arbiter.shut_down(drain_timeout_s)


@asynccontextmanager
async def build(configuration: Configuration, options: Options) -> AsyncIterator[Controller]:
    """Wire the parts. When the context ends, no child is left and every device is given back.

    Raises SupervisorError when another controller uses the data folder, no engine is here, or a
    required device cannot be used.
    """
    async with AsyncExitStack() as owned:
        ground = await prepare_ground(configuration, options, owned)
        machine = await start_machine(ground, owned)
        arbiter, holder = machine.arbiter, ground.configuration
        targets = Targets(holder, ground.telemetry, lambda device: note_device(arbiter, device))
        push_rules(arbiter, targets, ground.stores, holder)
        services = make_services(ground, machine, targets)
        controller = Controller(
            arbiter=arbiter,
            targets=targets,
            door=make_door(ground, machine, targets, services),
            services=services,
            configuration=holder,
        )
        try:
            await services.jobs.resume()
            yield controller
        finally:
            await asyncio.shield(controller.shut_down(0))
