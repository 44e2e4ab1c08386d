"""What everything else stands on: configuration, data folder, devices and engines."""

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog

from supervisor.config.all_warnings import all_warnings
from supervisor.config.configuration import Configuration
from supervisor.config.exposure import describe_exposure
from supervisor.config.holder import ConfigurationHolder
from supervisor.config.settings import SupervisorSettings
from supervisor.core.scheduling.estimates import Estimates
from supervisor.data_folder import DataFolder, remove_run_dir
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.servers.children import Children
from supervisor.errors import TelemetryError
from supervisor.observability.impairments import Impairments
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendors import hiding_variables
from supervisor.vector_store.opening import FOLDER as VECTORS_FOLDER
from supervisor.vector_store.opening import StoreOpener
from supervisor.wiring.stores import Stores, open_stores

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
class Ground:
    """What the machine stands on: the configuration, the data folder, devices and engines.

    `estimates` are those of the last run, `hosts` the addresses to listen on, `warnings` what
    `/status` shows of the start.
    """

    configuration: ConfigurationHolder
    data: DataFolder
    children: Children
    run_dir: Path
    uploads_dir: Path
    stores: Stores
    estimates: Estimates
    vectors: StoreOpener
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
    vectors = StoreOpener(configuration.settings.vectors, lambda: data.subfolder(VECTORS_FOLDER))
    owned.push_async_callback(vectors.close)
    stores = open_stores(configuration.settings.switch, data, owned, impairments)
    engines = build_engines(configuration, options.engine)
    engines.announce()
    estimates = stores.estimates.read()
    hosts = options.hosts or configuration.settings.server.hosts
    return Ground(
        configuration=ConfigurationHolder(configuration),
        data=data,
        children=children,
        run_dir=run_dir,
        uploads_dir=data.subfolder("uploads"),
        stores=stores,
        estimates=estimates,
        vectors=vectors,
        telemetry=telemetry,
        engines=engines,
        impairments=impairments,
        hosts=hosts,
        warnings=warn_of(configuration, estimates, telemetry, hosts),
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


def warn_of(
    configuration: Configuration,
    estimates: Estimates,
    telemetry: Telemetry,
    hosts: tuple[str, ...],
) -> tuple[str, ...]:
    """Log what an operator should know from the start; return what `/status` shows of it."""
    for left_out in configuration.left_out:
        log.warning("scan.left_out", path=left_out.path, reason=left_out.reason)
    for problem in telemetry.problems:
        log.warning("telemetry.problem", problem=problem)
    warnings = list(all_warnings(configuration, os.environ, hiding_variables(), estimates))
    for warning in warnings:
        log.warning("configuration.warning", problem=warning)
    exposure = describe_exposure(hosts)
    if exposure is not None:
        log.warning("controller.exposed", problem=exposure)
        warnings.append(exposure)
    return tuple(warnings)
