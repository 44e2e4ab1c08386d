"""The composition root: builds the real adapters, wires them, and runs them until a signal."""

import asyncio
import contextlib
import gc
import hashlib
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog
from aiohttp import web
from immutables import Map

from supervisor import __version__
from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.configuration import Configuration
from supervisor.config.exposure import describe_exposure
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.settings import SupervisorSettings, SwitchSettings
from supervisor.core.machine.events import DeviceFound, RulesChanged
from supervisor.core.machine.values import Device, Snapshot
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.launcher import Launcher
from supervisor.engine.needs.learned_store import FILE_NAME as LEARNED_NEEDS_FILE
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.engine.needs.learning import Learner, keep_learning
from supervisor.engine.prompts.prompt_cache import PromptCache
from supervisor.engine.servers.instance import Instance
from supervisor.engine.targets import Targets, configured_device
from supervisor.errors import ConfigError, SupervisorError, TelemetryError
from supervisor.gateway.call_reader import CallReader
from supervisor.gateway.control import Control
from supervisor.gateway.devices import Devices
from supervisor.gateway.door import Door
from supervisor.gateway.relay import Relay
from supervisor.gateway.status import Status
from supervisor.observability.history import SwitchHistory
from supervisor.observability.impairments import Impairments
from supervisor.observability.readiness import Readiness
from supervisor.observability.recorder import Recorder
from supervisor.telemetry.port import DeviceInfo
from supervisor.telemetry.ring import record_devices
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendors import child_environment

log = structlog.get_logger()

GC_THRESHOLD = (10_000, 10, 100)
"""Objects until a young collection, and its multiples: while thousands of requests wait, each full
collection looks through all of them, and holds every answer up meanwhile."""

_MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 108 bytes (unix(7)); our names take a few of them


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line decides; None leaves it to `supervisor.yaml`."""

    data_dir: Path
    host: str | None = None
    port: int | None = None
    engine: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The running parts: the arbiter, the door, and what they were built with."""

    arbiter: Arbiter
    targets: Targets
    door: Door
    configuration: ConfigurationHolder


async def serve(configuration: Configuration, options: Options) -> None:
    """Run the controller until SIGTERM or SIGINT, then drain, stop the children and return.

    A second signal stops at once. Raises SupervisorError when it cannot start.
    """
    raise_open_files_limit()
    async with build(configuration, options) as controller:
        runner = controller.door.runner()
        await runner.setup()
        try:
            await _listen(runner, configuration, options)
            _load_default_model(controller)
            # What stands now stays until the end: no collection need look through it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLD)
            await _run_until_signalled(controller)
        finally:
            await runner.cleanup()
    log.info("controller.stopped")


@asynccontextmanager
async def build(configuration: Configuration, options: Options) -> AsyncIterator[Controller]:
    """Wire the parts. When the context ends, no child is left and every device is given back.

    Raises SupervisorError when another controller uses the data folder, no engine is here, or a
    required device cannot be used.
    """
    async with AsyncExitStack() as owned:
        make_data_dir(options.data_dir)
        impairments = Impairments()
        instance = Instance(options.data_dir, impairments)
        owned.callback(instance.release)
        run_dir = make_run_dir(options.data_dir)
        owned.callback(shutil.rmtree, run_dir, ignore_errors=True)
        telemetry = await owned.enter_async_context(Telemetry())
        require_devices(configuration.settings, telemetry)
        stores = open_stores(configuration.settings.switch, options.data_dir, owned, impairments)
        engines = build_engines(configuration, options.engine)
        engines.announce()
        for left_out in configuration.left_out:
            log.warning("scan.left_out", path=left_out.path, reason=left_out.reason)
        for problem in telemetry.problems:
            log.warning("telemetry.problem", problem=problem)
        exposure = describe_exposure([options.host or configuration.settings.server.host])
        if exposure is not None:
            log.warning("controller.exposed", problem=exposure)
        holder = ConfigurationHolder(configuration)
        launcher = Launcher(
            configuration=holder,
            engines=engines,
            run_dir=run_dir,
            device_env=lambda device: child_environment(device, telemetry.devices()),
            prompt_cache=stores.prompt_cache,
            learned_store=stores.learned_store,
        )
        learner = Learner(store=stores.learned_store, devices=telemetry, assessed=launcher.assessed)
        default_model = configuration.catalogue.default_model
        readiness = Readiness(has_default_model=default_model is not None)
        recorder = Recorder(stores.history)
        arbiter = Arbiter(
            snapshot=first_snapshot(configuration, telemetry.devices()),
            launcher=launcher,
            memory=telemetry,
            impairments=impairments,
            observers=(
                recorder.observe,
                instance.observe,
                learner.observe,
                readiness.observe,
            ),
        )
        rings = await owned.enter_async_context(
            record_devices(telemetry, child_pids=lambda: child_pids(arbiter.snapshot))
        )
        await owned.enter_async_context(keep_learning(learner, lambda: arbiter.snapshot.backends))
        await owned.enter_async_context(impairments.retried())
        targets = Targets(holder, telemetry, lambda device: note_device(arbiter, device))
        push_rules(arbiter, targets, holder)
        door = Door(
            reader=CallReader(holder),
            relay=Relay(arbiter=arbiter, targets=targets, configuration=holder),
            owners=(
                Control(
                    arbiter=arbiter, configuration=holder, targets=targets, history=stores.history
                ),
                Status(
                    arbiter=arbiter,
                    configuration=holder,
                    telemetry=telemetry,
                    engines=engines,
                    warnings=(exposure,) if exposure is not None else (),
                    impairments=impairments,
                    readiness=readiness,
                ),
                Devices(arbiter=arbiter, telemetry=telemetry, rings=rings),
            ),
        )
        try:
            yield Controller(
                arbiter=arbiter,
                targets=targets,
                door=door,
                configuration=holder,
            )
        finally:
            await asyncio.shield(arbiter.shut_down(0))


def note_device(arbiter: Arbiter, device: Device) -> None:
    """Tell the core of a device where it differs from what the core knows of it."""
    if device.budget_bytes and arbiter.snapshot.devices.get(device.name) != device:
        arbiter.post(DeviceFound(at=time.monotonic(), device=device))


def push_rules(arbiter: Arbiter, targets: Targets, holder: ConfigurationHolder) -> None:
    """Tell the core of its limits, rules and budgets whenever the configuration is exchanged."""

    def push(configuration: Configuration) -> None:
        settings = configuration.settings
        arbiter.post(
            RulesChanged(at=time.monotonic(), limits=settings.limits(), rules=settings.rules())
        )
        for name in arbiter.snapshot.devices:
            note_device(arbiter, targets.device(name))

    holder.on_exchange(push)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stores:
    """What stands in the data folder and outlives a switch."""

    history: SwitchHistory
    prompt_cache: PromptCache
    learned_store: LearnedStore


def open_stores(
    settings: SwitchSettings, data_dir: Path, owned: AsyncExitStack, impairments: Impairments
) -> Stores:
    """Open what stands in the data folder; `owned` closes it."""
    history = SwitchHistory(data_dir / "history.sqlite", settings.history_size, impairments)
    owned.callback(history.close)
    prompt_cache = PromptCache(
        data_dir.resolve() / "prompt-cache",
        max_bytes=settings.prompt_cache_max_bytes,
        keeps_at_exit=settings.keep_prompt_cache_at_exit,
    )
    owned.callback(prompt_cache.close)
    learned_store = LearnedStore(data_dir / LEARNED_NEEDS_FILE, impairments)
    owned.callback(learned_store.close)
    return Stores(history=history, prompt_cache=prompt_cache, learned_store=learned_store)


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
            f"no such device is seen here; found: {', '.join(sorted(usable))}"
        )
        raise TelemetryError(
            f"{', '.join(missing)} is required (devices.{missing[0]}.required) and cannot be used: "
            f"{reason}. `llama-supervisor doctor` says what is here and what to do"
        )


def first_snapshot(configuration: Configuration, devices: tuple[DeviceInfo, ...]) -> Snapshot:
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
    )


def child_pids(snapshot: Snapshot) -> tuple[int, ...]:
    """Give the process ids of the children that run."""
    return tuple(backend.pid for backend in snapshot.backends if backend.pid is not None)


def raise_open_files_limit() -> None:
    """Allow ourselves as many open files as we may: each request takes two, and 1024 is usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def make_data_dir(data_dir: Path) -> None:
    """Make the folder for what the product writes, readable by its owner only.

    Raises ConfigError when it cannot be made or written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(PermissionError):  # a volume's root is not ours to change
            data_dir.chmod(0o700)
        tempfile.TemporaryFile(dir=data_dir).close()
    except OSError as error:
        raise ConfigError((f"--data {data_dir}: cannot be written: {error.strerror}",)) from error


def make_run_dir(data_dir: Path) -> Path:
    """Make our private folder for sockets, under the data folder where its path is short enough.

    What a killed controller left of such folders is removed; call it with the folder claimed.
    """
    home, prefix = data_dir.resolve(), "run-"
    if len(os.fsencode(home)) + 32 > _MAX_SOCKET_PATH_BYTES:
        owner = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
        home, prefix = Path(tempfile.gettempdir()), f"llama-supervisor-{owner}-"
        if len(os.fsencode(home)) + len(prefix) + 16 > _MAX_SOCKET_PATH_BYTES:
            problem = (
                f"--data {data_dir} and the temporary folder {home} are both too long for the path "
                f"of a socket ({_MAX_SOCKET_PATH_BYTES} bytes); set TMPDIR to a shorter one"
            )
            raise ConfigError((problem,))
    for stale in home.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=prefix, dir=home))


async def _listen(runner: web.BaseRunner, configuration: Configuration, options: Options) -> None:
    server = configuration.settings.server
    host = options.host or server.host
    port = server.port if options.port is None else options.port
    site = web.TCPSite(runner, host, port, backlog=4096)
    try:
        await site.start()
    except OSError as error:
        # asyncio puts the address in front of the reason once more.
        reason = str(error.strerror).rpartition(": ")[2]
        raise SupervisorError(
            f"cannot listen on {host}:{port}: {reason}{_listener_of(port)}; choose others with "
            "--host and --port"
        ) from error
    for address in runner.addresses:
        log.info(
            "controller.listening",
            url=f"http://{address[0]}:{address[1]}",
            version=__version__,
            pid=os.getpid(),
        )


def _listener_of(port: int) -> str:
    """Name the process that listens on a port, as far as we may see it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.pid and tuple(connection.laddr)[1:2] == (port,):
                return f" by pid {connection.pid}"
    return ""


def _load_default_model(controller: Controller) -> None:
    default = controller.configuration.current.catalogue.default_model
    if default is not None:
        target = controller.targets.target(default)
        controller.targets.require_device(target)
        controller.arbiter.request_switch(target, "startup")


async def _run_until_signalled(controller: Controller) -> None:
    """Wait for the first signal, drain; the second signal ends the draining."""
    arbiter = controller.arbiter
    signals = asyncio.Queue[signal.Signals]()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    first = await signals.get()
    drain_s = controller.configuration.current.settings.switch.shutdown_drain_timeout_s
    log.info("controller.stopping", signal=first.name, drain_timeout_s=drain_s)
    draining = asyncio.create_task(arbiter.shut_down(drain_s), name="shutdown")
    again = asyncio.create_task(signals.get(), name="second-signal")
    await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.info("controller.stopping_now")
        await arbiter.shut_down(0)
    again.cancel()
    await draining
