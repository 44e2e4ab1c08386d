"""Gathers the facts: asks telemetry, the engines, the kernel, and files under a root folder.

No vendor's library is loaded here: telemetry asks them in its own process, and engines tell of
their devices as the child processes that they are.
"""

import asyncio
import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.config.load import load
from supervisor.doctor.facts import (
    ConfigurationFacts,
    DataFolder,
    DeviceFacts,
    EngineFacts,
    Facts,
    HostFacts,
    ProcessFacts,
)
from supervisor.doctor.services import named_services, reach
from supervisor.doctor.vendor_traces import find_container, find_traces
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.models.model_scan import scan_models
from supervisor.engine.servers.process import ends_with_us
from supervisor.errors import ConfigError, EngineError, TelemetryError
from supervisor.telemetry.cgroup import MemoryCgroup
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.port import HOST
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendors import visibility_variables

_AMX_SYMBOL = b"ggml_backend_amx_mul_mat"
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is looked at: the folders of the command line, and where /proc, /sys and /dev are.

    `engine` replaces what `auto` means, `hosts` the addresses of the configuration.
    """

    profiles: Path
    models: Path
    data: Path
    engine: str = "auto"
    hosts: tuple[str, ...] = ()
    environ: Mapping[str, str]
    root: Path = Path("/")


async def gather(surroundings: Surroundings, telemetry: Telemetry) -> Facts:
    """Gather everything. `telemetry` is entered here, and left again.

    A driver that hangs takes as long as telemetry's policy gives it, an engine a minute at most, a
    server of others three seconds.
    Raises nothing: what cannot be found out is a fact, too.
    """
    devices = await ask_telemetry(telemetry)
    configuration = read_configuration(surroundings)
    services = await asyncio.gather(*map(reach, configuration.services))
    return Facts(
        process=look_at_process(),
        container=find_container(surroundings.root, surroundings.environ),
        vendors=find_traces(surroundings.root, surroundings.environ),
        visibility={
            name: surroundings.environ[name]
            for name in visibility_variables()
            if name in surroundings.environ
        },
        devices=devices,
        engines=ask_engines(surroundings, configuration.llama_server_bin),
        host=look_at_host(surroundings),
        data=look_at_data_folder(surroundings.data),
        configuration=replace(configuration, services=tuple(services)),
    )


async def ask_telemetry(telemetry: Telemetry) -> DeviceFacts:
    """Ask which devices there are, and whether they can be read."""
    async with telemetry:
        devices = telemetry.devices()
        return DeviceFacts(
            devices=devices,
            health=tuple(telemetry.health(info.device) for info in devices),
            problems=telemetry.problems,
        )


def ask_engines(surroundings: Surroundings, configured: Path | None) -> EngineFacts:
    """Find the engines and let each tell of itself. Blocks: the programs are run."""
    try:
        engines = Engines(surroundings.environ, configured, surroundings.engine)
        found = tuple(engines.identities())
    except EngineError as error:
        return EngineFacts(problem=str(error))
    try:
        chosen = engines.choose("auto").identity.name
    except EngineError as error:  # it is there and does not run
        return EngineFacts(found=found, problem=str(error))
    with_amx = frozenset(each.location for each in found if uses_amx(Path(each.location)))
    return EngineFacts(found=found, chosen=chosen, with_amx=with_amx)


def uses_amx(binary: Path) -> bool:
    """Whether a llama-server, or the library of ggml beside it, has code for AMX."""
    parts = (binary, *binary.parent.glob("libggml-cpu*.so"))
    try:
        return binary.is_file() and any(_AMX_SYMBOL in part.read_bytes() for part in parts)
    except OSError:
        return False


def look_at_host(surroundings: Surroundings) -> HostFacts:
    """Read the host's memory and what bounds it."""
    meminfo = _read_meminfo(surroundings.root / "proc/meminfo")
    machine_bytes = meminfo.get("MemTotal")
    try:
        memory = HostMemory(surroundings.root).sample(HOST)
        limits = tuple(MemoryCgroup(surroundings.root).limits(below_bytes=machine_bytes or 0))
    except TelemetryError:  # telemetry says it of the host, too
        memory, limits = None, ()
    return HostFacts(
        memory=memory,
        machine_bytes=machine_bytes,
        page_cache_bytes=meminfo.get("Cached"),
        limits=limits,
        largest_model=find_largest_model(surroundings.models),
        has_amx=has_amx(surroundings.root / "proc/cpuinfo"),
    )


def has_amx(cpuinfo: Path) -> bool:
    """Whether the processor has Intel's matrix extensions, and programs may use them."""
    try:
        return " amx_int8" in cpuinfo.read_text()
    except OSError:
        return False


def find_largest_model(folder: Path) -> tuple[str, int] | None:
    """Return the model whose files are the largest together, and their size."""
    sizes = Counter[str]()
    for path in folder.rglob("*.gguf"):
        with suppress(OSError):  # `check` says which files cannot be read
            if path.is_file():
                sizes[_SHARD.sub("", path.stem)] += path.stat().st_size
    return next(iter(sizes.most_common(1)), None)


def look_at_data_folder(folder: Path) -> DataFolder:
    """Find out whether the folder can be written, or made where it is not there; leave no trace."""
    exists, problem, free_bytes = False, None, None
    try:
        exists = folder.exists()
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if exists:
            tempfile.TemporaryFile(dir=folder).close()
        elif not (there.is_dir() and os.access(there, os.W_OK | os.X_OK, effective_ids=True)):
            problem = f"it is not there, and cannot be made in {there}"
        free_bytes = shutil.disk_usage(there).free
    except OSError as error:
        problem = error.strerror
    return DataFolder(path=str(folder), exists=exists, problem=problem, free_bytes=free_bytes)


def look_at_process() -> ProcessFacts:
    """Find out what the kernel lets this process do."""
    return ProcessFacts(
        uid=os.geteuid(),
        gid=os.getegid(),
        groups=tuple(sorted({os.getegid(), *os.getgroups()})),
        kernel=platform.release(),
        python=platform.python_version(),
        open_files_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        pidfd_problem=_try_pidfd(),
        setpriv_problem=_try_setpriv(),
    )


def _try_pidfd() -> str | None:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        return error.strerror
    return None


def _try_setpriv() -> str | None:
    try:
        tried = subprocess.run(
            ends_with_us(("true",)), capture_output=True, text=True, timeout=5, check=False
        )
    except (EngineError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return tried.stderr.strip() or f"it ends with {tried.returncode}" if tried.returncode else None


def read_configuration(surroundings: Surroundings) -> ConfigurationFacts:
    """Read what of the configuration concerns the machine, or why it cannot be read."""
    try:
        configuration = load(
            surroundings.profiles, surroundings.models.resolve(), surroundings.environ, scan_models
        )
    except ConfigError as error:
        return ConfigurationFacts(problem="; ".join(error.problems))
    settings = configuration.settings
    named = settings.engines.llama_server_bin
    return ConfigurationFacts(
        llama_server_bin=Path(named) if named else None,
        configured_devices=tuple(settings.devices),
        required_devices=tuple(name for name, given in settings.devices.items() if given.required),
        hosts=surroundings.hosts or settings.server.hosts,
        services=tuple(named_services(settings)),
        profiles={
            configuration.located_field(name, "device", f"'{name}'"): configuration.resolve(
                name
            ).profile
            for name in configuration.catalogue.models
        },
    )


def _read_meminfo(file: Path) -> dict[str, int]:
    """Read /proc/meminfo (proc(5)) into bytes."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    pairs = (re.match(r"(\w+):\s+(\d+) kB", line) for line in lines)
    return {pair[1]: 1024 * int(pair[2]) for pair in pairs if pair}
