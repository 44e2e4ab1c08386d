"""The composition root: builds the real adapters and wires them."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from immutables import Map

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.configuration import Configuration
from supervisor.config.exposure import describe_exposure
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.settings import SupervisorSettings, SwitchSettings
from supervisor.core.machine.events import DeviceFound, RulesChanged
from supervisor.core.machine.snapshot import Scheduling, Snapshot
from supervisor.core.machine.values import Device
from supervisor.core.scheduling.estimates import Estimates
from supervisor.data_folder import HISTORY, DataFolder, remove_run_dir
from supervisor.embedding.batching.batcher import Batcher
from supervisor.embedding.preparing import Preparer
from supervisor.embedding.reranking import Reranker
from supervisor.embedding.servers import Servers
from supervisor.embedding.service import EmbeddingService
from supervisor.embedding.telling_tokens import TokenTeller
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.launcher import Launcher
from supervisor.engine.needs.learned_store import FILE_NAME as LEARNED_NEEDS_FILE
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.engine.needs.learning import Learner, keep_learning
from supervisor.engine.prompts.prompt_cache import PromptCache
from supervisor.engine.servers.children import Children
from supervisor.engine.targets import Targets, configured_device
from supervisor.errors import ConfigError, TelemetryError
from supervisor.gateway.call_reader import CallReader
from supervisor.gateway.control import Control
from supervisor.gateway.devices import Devices
from supervisor.gateway.door import Door
from supervisor.gateway.forms.older import OlderForm
from supervisor.gateway.forms.ollama import OllamaForm
from supervisor.gateway.forms.openai import OpenAIForm
from supervisor.gateway.forms.tei import TeiForm
from supervisor.gateway.forms.tei_info import TeiInfo
from supervisor.gateway.origins import Origins
from supervisor.gateway.relay import Relay
from supervisor.gateway.status import Status
from supervisor.observability.estimates_store import FILE_NAME as ESTIMATES_FILE
from supervisor.observability.estimates_store import EstimatesStore
from supervisor.observability.history import SwitchHistory
from supervisor.observability.impairments import Impairments
from supervisor.observability.readiness import Readiness
from supervisor.observability.recorder import Recorder
from supervisor.telemetry.port import DeviceInfo
from supervisor.telemetry.ring import Ring, record_devices
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendors import child_environment

log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line decides; None, or no host, leaves it to `supervisor.yaml`."""

    data_dir: Path
    data_wait_s: float = 0.0
    """Seconds that another controller gets to leave the data folder."""
    hosts: tuple[str, ...] = ()
    port: int | None = None
    engine: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The running parts: the arbiter, the door, and what they were built with."""

    arbiter: Arbiter
    targets: Targets
    door: Door
    configuration: ConfigurationHolder


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
        door = make_door(ground, machine, targets)
        try:
            yield Controller(arbiter=arbiter, targets=targets, door=door, configuration=holder)
        finally:
            await asyncio.shield(arbiter.shut_down(0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the machine stands on: the configuration, the data folder, devices and engines.

    `hosts` are the addresses to listen on, `warnings` what `/status` shows of the start.
    """

    configuration: ConfigurationHolder
    children: Children
    run_dir: Path
    stores: "Stores"
    telemetry: Telemetry
    engines: Engines
    impairments: Impairments
    hosts: tuple[str, ...]
    warnings: tuple[str, ...]


async def prepare_ground(
    configuration: Configuration, options: Options, owned: AsyncExitStack
) -> Ground:
    """Claim the data folder, find devices and engines. Raises as `build`; `owned` gives back."""
    impairments = Impairments()
    data = await DataFolder.claim(options.data_dir, options.data_wait_s)
    owned.callback(data.release)
    children = Children(data, impairments)
    owned.callback(children.release)
    run_dir = data.make_run_dir()
    owned.callback(remove_run_dir, run_dir)
    telemetry = await owned.enter_async_context(Telemetry())
    require_devices(configuration.settings, telemetry)
    stores = open_stores(configuration.settings.switch, data, owned, impairments)
    engines = build_engines(configuration, options.engine)
    engines.announce()
    hosts = options.hosts or configuration.settings.server.hosts
    return Ground(
        configuration=ConfigurationHolder(configuration),
        children=children,
        run_dir=run_dir,
        stores=stores,
        telemetry=telemetry,
        engines=engines,
        impairments=impairments,
        hosts=hosts,
        warnings=warn_of(configuration, telemetry, hosts),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The arbiter, and what is known by watching: readiness, and the last hour of each device."""

    arbiter: Arbiter
    readiness: Readiness
    rings: Mapping[str, Ring]


async def start_machine(ground: Ground, owned: AsyncExitStack) -> Machine:
    """Start the arbiter with its observers, and all that watches; `owned` ends the watching."""
    configuration, telemetry = ground.configuration.current, ground.telemetry
    launcher = Launcher(
        configuration=ground.configuration,
        engines=ground.engines,
        run_dir=ground.run_dir,
        device_env=lambda shown: child_environment(shown, telemetry.devices()),
        prompt_cache=ground.stores.prompt_cache,
        learned_store=ground.stores.learned_store,
    )
    learner = Learner(
        store=ground.stores.learned_store, devices=telemetry, assessed=launcher.assessed
    )
    readiness = Readiness(has_default_model=configuration.catalogue.default_model is not None)
    stores = ground.stores
    observers = (Recorder(stores.history), ground.children, learner, readiness, stores.estimates)
    arbiter = Arbiter(
        snapshot=first_snapshot(configuration, telemetry.devices(), stores.estimates.read()),
        launcher=launcher,
        memory=telemetry,
        impairments=ground.impairments,
        observers=tuple(each.observe for each in observers),
    )
    rings = await owned.enter_async_context(
        record_devices(telemetry, child_pids=lambda: child_pids(arbiter.snapshot))
    )
    await owned.enter_async_context(keep_learning(learner, lambda: arbiter.snapshot.backends))
    await owned.enter_async_context(ground.impairments.retried())
    return Machine(arbiter=arbiter, readiness=readiness, rings=rings)


def make_door(ground: Ground, machine: Machine, targets: Targets) -> Door:
    """Make what lets requests in, and those who answer our own routes."""
    arbiter, holder, telemetry = machine.arbiter, ground.configuration, ground.telemetry
    batcher = Batcher(arbiter=arbiter, configuration=holder, targets=targets)
    status = Status(
        arbiter=arbiter,
        configuration=holder,
        telemetry=telemetry,
        engines=ground.engines,
        warnings=ground.warnings,
        impairments=ground.impairments,
        readiness=machine.readiness,
        batcher=batcher,
    )
    control = Control(
        arbiter=arbiter, configuration=holder, targets=targets, history=ground.stores.history
    )
    devices = Devices(arbiter=arbiter, telemetry=telemetry, rings=machine.rings)
    return Door(
        configuration=holder,
        reader=CallReader(holder, targets),
        origins=Origins(holder, ground.hosts),
        relay=Relay(arbiter=arbiter, configuration=holder, targets=targets),
        owners=(control, status, devices, *make_forms(ground, arbiter, targets, batcher)),
    )


def make_forms(
    ground: Ground, arbiter: Arbiter, targets: Targets, batcher: Batcher
) -> tuple[object, ...]:
    """Make the embedding service, and those who speak for it in each caller's form."""
    servers = Servers(arbiter=arbiter, configuration=ground.configuration, targets=targets)
    preparer = Preparer(targets=targets, engines=ground.engines, servers=servers)
    service = EmbeddingService(targets, preparer, batcher)
    reranker = Reranker(targets=targets, preparer=preparer, servers=servers)
    teller = TokenTeller(preparer=preparer, servers=servers)
    return (
        OpenAIForm(service),
        TeiForm(service, reranker, teller),
        OllamaForm(service),
        OlderForm(service),
        TeiInfo(ground.configuration, targets, preparer),
    )


def warn_of(
    configuration: Configuration, telemetry: Telemetry, hosts: tuple[str, ...]
) -> tuple[str, ...]:
    """Log what an operator should know from the start; return what `/status` shows of it."""
    for left_out in configuration.left_out:
        log.warning("scan.left_out", path=left_out.path, reason=left_out.reason)
    for problem in telemetry.problems:
        log.warning("telemetry.problem", problem=problem)
    exposure = describe_exposure(hosts)
    if exposure is None:
        return ()
    log.warning("controller.exposed", problem=exposure)
    return (exposure,)


def note_device(arbiter: Arbiter, device: Device) -> None:
    """Tell the core of a device where it differs from what the core knows of it."""
    if device.budget_bytes and arbiter.snapshot.devices.get(device.name) != device:
        arbiter.post(DeviceFound(at=time.monotonic(), device=device))


def push_rules(
    arbiter: Arbiter, targets: Targets, stores: "Stores", holder: ConfigurationHolder
) -> None:
    """Pass limits, rules, budgets and bounds on whenever another configuration is applied."""

    def push(configuration: Configuration) -> None:
        settings = configuration.settings
        arbiter.post(
            RulesChanged(at=time.monotonic(), limits=settings.limits(), rules=settings.rules())
        )
        for name in arbiter.snapshot.devices:
            note_device(arbiter, targets.device(name))
        stores.apply(settings.switch)

    holder.on_apply(push)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What stands in the data folder and outlives a switch."""

    history: SwitchHistory
    prompt_cache: PromptCache
    learned_store: LearnedStore
    estimates: EstimatesStore

    def apply(self, settings: SwitchSettings) -> None:
        """Hold what comes from now on to other bounds."""
        self.history.size = settings.history_size
        self.prompt_cache.max_bytes = settings.prompt_cache_max_bytes
        self.prompt_cache.keeps_at_exit = settings.keep_prompt_cache_at_exit


def open_stores(
    settings: SwitchSettings, data: DataFolder, owned: AsyncExitStack, impairments: Impairments
) -> Stores:
    """Open what stands in the data folder; `owned` closes it."""
    history = SwitchHistory(data.store(HISTORY), settings.history_size, impairments)
    owned.callback(history.close)
    prompt_cache = PromptCache(
        data.subfolder("prompt-cache"),
        max_bytes=settings.prompt_cache_max_bytes,
        keeps_at_exit=settings.keep_prompt_cache_at_exit,
    )
    owned.callback(prompt_cache.close)
    learned_store = LearnedStore(data.store(LEARNED_NEEDS_FILE), impairments)
    owned.callback(learned_store.close)
    return Stores(
        history=history,
        prompt_cache=prompt_cache,
        learned_store=learned_store,
        estimates=EstimatesStore(data.path / ESTIMATES_FILE, impairments),
    )


def build_engines(configuration: Configuration, preferred: str) -> Engines:
    """Find the engines of this machine. Raises EngineError when there is none."""
    named = configuration.settings.engines.llama_server_bin
    return Engines(os.environ, Path(named) if named else None, preferred)


def require_devices(settings: SupervisorSettings, telemetry: Telemetry) -> None:
    """Raise TelemetryError, with the reason, where a required device cannot be used."""
    usable = {info.device for info in telemetry.devices() if info.fault is None}
    missing = [
        name for name, given in settings.devices.items() if given.required and name not in usable
    ]
    if missing:
        reason = "; ".join(telemetry.problems) or (
            f"no such device was found here; found: {', '.join(sorted(usable))}"
        )
        raise TelemetryError(
            f"{', '.join(missing)} is required (devices.{missing[0]}.required) and cannot be used: "
            f"{reason}. `llama-supervisor doctor` says what is here and what to do"
        )


def first_snapshot(
    configuration: Configuration, devices: tuple[DeviceInfo, ...], estimates: Estimates
) -> Snapshot:
    """Build the state at start: the devices with their budgets, and nothing loaded.

    Raises ConfigError when the settings name a device that is not there.
    """
    settings = configuration.settings
    known = {info.device: info for info in devices}
    budgets = {name: configured_device(info, settings) for name, info in known.items()}
    for name in settings.devices.keys() - known.keys():
        if not name.startswith("gpu"):
            raise ConfigError(
                (f"supervisor.yaml: devices.{name}: no such device; found: {', '.join(known)}",)
            )
        log.info("device.absent", device=name)
    return Snapshot(
        devices=Map(budgets),
        limits=settings.limits(),
        rules=settings.rules(),
        scheduling=Scheduling(run=f"s{int(time.time())}", estimates=estimates),
    )


def child_pids(snapshot: Snapshot) -> tuple[int, ...]:
    """Give the process ids of the children that run."""
    return tuple(backend.pid for backend in snapshot.backends if backend.pid is not None)
