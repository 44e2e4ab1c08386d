"""Starts the arbiter with its observers, and all that watches."""

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import structlog
from immutables import Map
from msgspec.structs import replace

from supervisor.arbiter.arbiter import Arbiter
from supervisor.calendar.reading import ScheduleReader
from supervisor.config.configuration import Configuration
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.agenda import Agenda
from supervisor.core.machine.events import DeviceFound, RulesChanged, VectorsKnown
from supervisor.core.machine.rules import SwitchRules
from supervisor.core.machine.snapshot import Endings, Scheduling, Snapshot
from supervisor.core.machine.values import Device, Target
from supervisor.core.scheduling.estimates import Estimates
from supervisor.embedding.twins import FILE_NAME as TWINS_FILE
from supervisor.embedding.twins import Twins
from supervisor.engine.devices import configured_device
from supervisor.engine.launcher import Launcher
from supervisor.engine.needs.learning import Learner, keep_learning
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.observability.readiness import Readiness
from supervisor.observability.recorder import Recorder
from supervisor.telemetry.port import DeviceInfo
from supervisor.telemetry.ring import Ring, record_devices
from supervisor.telemetry.vendors import child_environment
from supervisor.wiring.ground import Ground
from supervisor.wiring.stores import Stores

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The arbiter, and what is known by watching: readiness, and the last hour of each device."""

    arbiter: Arbiter
    twins: Twins
    readiness: Readiness
    rings: Mapping[str, Ring]


async def start_machine(
    ground: Ground, targets: Targets, schedule: ScheduleReader, owned: AsyncExitStack
) -> Machine:
    """Start the arbiter with its observers, and all that watches; `owned` ends the watching."""
    configuration, telemetry = ground.configuration.current, ground.telemetry
    launcher = Launcher(
        configuration=ground.configuration,
        engines=ground.engines,
        run_dir=ground.run_dir,
        folder=ground.data.identity,
        device_env=lambda shown: child_environment(shown, telemetry.devices()),
        prompt_cache=ground.stores.prompt_cache,
        learned_store=ground.stores.learned_store,
    )
    learner = Learner(
        store=ground.stores.learned_store, devices=telemetry, assessed=launcher.assessed
    )
    readiness = Readiness(
        has_default_model=configuration.catalogue.default_model is not None,
        has_schedule=configuration.settings.schedule is not None,
    )
    stores = ground.stores
    twins = Twins(
        path=ground.data.path / TWINS_FILE,
        targets=targets,
        configuration=ground.configuration,
        impairments=ground.impairments,
    )
    kept = (stores.estimates, stores.schedule)
    observers = (Recorder(stores.history), ground.children, learner, readiness, *kept, twins)
    arbiter = Arbiter(
        snapshot=replace(
            first_snapshot(
                configuration,
                telemetry.devices(),
                ground.estimates,
                Agenda(ended=stores.schedule.read()),
                orphans_at=ground.children.orphans_at,
            ),
            rules=rules_of(configuration, targets),
        ),
        launcher=launcher,
        memory=telemetry,
        schedule=schedule,
        comparison=twins,
        impairments=ground.impairments,
        observers=tuple(each.observe for each in observers),
    )
    rings = await owned.enter_async_context(
        record_devices(telemetry, child_pids=lambda: child_pids(arbiter.snapshot))
    )
    await owned.enter_async_context(keep_learning(learner, lambda: arbiter.snapshot.backends))
    await owned.enter_async_context(ground.impairments.retried())
    return Machine(arbiter=arbiter, twins=twins, readiness=readiness, rings=rings)


def tell_known_vectors(machine: Machine) -> None:
    """Tell the core which twins can be compared with their models, as configured now."""
    for target in machine.twins.comparable():
        machine.arbiter.post(VectorsKnown(at=time.monotonic(), target=target))


def push_rules(
    machine: Machine, targets: Targets, stores: Stores, holder: ConfigurationHolder
) -> None:
    """Pass limits, rules, budgets and bounds on whenever another configuration is applied."""
    arbiter = machine.arbiter

    def push(configuration: Configuration) -> None:
        settings, rules = configuration.settings, rules_of(configuration, targets)
        arbiter.post(
            RulesChanged(
                at=time.monotonic(),
                limits=settings.limits(),
                rules=rules,
                outdated=frozenset(
                    backend.epoch
                    for backend in arbiter.snapshot.backends
                    if not targets.is_current(backend.target)
                ),
                targets=waited_for(arbiter.snapshot, targets),
            )
        )
        for name in arbiter.snapshot.devices:
            note_device(arbiter, targets.device(name))
        stores.apply(settings.switch)
        tell_known_vectors(machine)

    tell_known_vectors(machine)
    holder.on_apply(push)


def waited_for(snapshot: Snapshot, targets: Targets) -> dict[str, Target]:
    """Return the models that requests wait for as they are configured now, but for unknown ones."""
    asked = (head.main or head.target for head in snapshot.requests.heads())
    found = {}
    for model in {target.model for target in asked if target is not None}:
        with suppress(RequestRefused):
            found[model] = targets.target(model)
    return found


def rules_of(configuration: Configuration, targets: Targets) -> SwitchRules:
    """Return the rules with the model that is made live again when nothing is asked for."""
    idle = configuration.catalogue.idle_model
    return replace(configuration.rules(), idle_target=targets.target(idle) if idle else None)


def note_device(arbiter: Arbiter, device: Device) -> None:
    """Tell the core of a device where it differs from what the core knows of it."""
    if device.budget_bytes and arbiter.snapshot.devices.get(device.name) != device:
        arbiter.post(DeviceFound(at=time.monotonic(), device=device))


def first_snapshot(
    configuration: Configuration,
    devices: tuple[DeviceInfo, ...],
    estimates: Estimates,
    agenda: Agenda,
    *,
    orphans_at: float | None = None,
) -> Snapshot:
    """Build the state at start: the devices with their budgets, and nothing loaded.

    `estimates` and `agenda`: what outlived a restart. `orphans_at`: when what a killed controller
    left was found gone.
    """
    settings = configuration.settings
    known = {info.device: info for info in devices}
    budgets = {name: configured_device(info, settings) for name, info in known.items()}
    for name in settings.devices.keys() - known.keys():
        log.info("device.absent", device=name)
    return Snapshot(
        devices=Map(budgets),
        limits=settings.limits(),
        scheduling=Scheduling(run=f"s{int(time.time())}", estimates=estimates),
        agenda=agenda,
        endings=Endings(orphans_at=orphans_at),
    )


def child_pids(snapshot: Snapshot) -> tuple[int, ...]:
    """Give the process ids of the children that run."""
    return tuple(backend.pid for backend in snapshot.backends if backend.pid is not None)
