"""What the doctor knows of a machine before it judges: facts only, sizes in bytes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from supervisor.config.profile import Profile
from supervisor.core.machine.memory import MemorySample
from supervisor.engine.port import EngineIdentity
from supervisor.telemetry.cgroup import CgroupLimit
from supervisor.telemetry.port import DeviceHealth, DeviceInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNode:
    """A file under /dev. `mode` is its permission bits, `is_usable`: we may read and write it.

    `group` is the group's name here, None where it has none, as those of the host's in a container.
    """

    path: str
    mode: int
    uid: int
    gid: int
    group: str | None
    is_usable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorTraces:
    """What of a vendor can be seen without loading anything of its own.

    `pci_ids` are its GPUs on the bus, which a container shows also where it has no access to them.
    `kernel_driver` is the version of the loaded module (empty where it does not tell), None where
    there is none. `libraries` are those found in the usual folders, by name. `bindings` is the
    version of the Python package that asks them.
    """

    vendor: str
    pci_ids: tuple[str, ...] = ()
    kernel_driver: str | None = None
    libraries: tuple[tuple[str, str], ...] = ()
    nodes: tuple[DeviceNode, ...] = ()
    bindings: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The container around us. `runtime` is its kind, None outside of one.

    `mounts` are the places where GPU libraries, devices or drivers were mounted into it, as a
    runtime class of a GPU's vendor does. `device_plugin` is the sign that a device plugin has
    granted a device, None without one.
    """

    runtime: Literal["kubernetes", "docker", "podman", "unknown"] | None = None
    mounts: tuple[str, ...] = ()
    device_plugin: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What telemetry found. `problems` are its sentences, each with reason and remedy."""

    devices: tuple[DeviceInfo, ...] = ()
    health: tuple[DeviceHealth, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """The engines found. `chosen` is what `auto` means; `problem`: why it means nothing.

    `with_amx`: the locations of those that have code for Intel's matrix extensions.
    """

    found: tuple[EngineIdentity, ...] = ()
    chosen: str | None = None
    problem: str | None = None
    with_amx: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Memory of the host and what bounds it; `limits` are the cgroup's, the innermost first.

    `has_amx`: whether the processor has Intel's matrix extensions.
    `page_cache_bytes` is what files take of it now. `largest_model` is the largest model under the
    models folder with the size of all its files, which the page cache holds while it is loaded.
    """

    memory: MemorySample | None = None
    machine_bytes: int | None = None
    page_cache_bytes: int | None = None
    limits: tuple[CgroupLimit, ...] = ()
    largest_model: tuple[str, int] | None = None
    has_amx: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFolder:
    """The folder for what the product writes. `problem` says why it cannot be written."""

    path: str
    exists: bool
    problem: str | None
    free_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What this process may do. `…_problem` is why the kernel refuses a call, None: it works."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    kernel: str
    python: str
    open_files_limit: int
    pidfd_problem: str | None = None
    setpriv_problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFacts:
    """A server that a setting names; `problem` says why it cannot be reached.

    `port` is None where `host` is the path of a socket.
    """

    setting: str
    host: str
    port: int | None
    problem: str | None = None

    @property
    def place(self) -> str:
        """Where it is, as it is written."""
        return self.host if self.port is None else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationFacts:
    """What of the configuration concerns the machine. `problem` says why it cannot be used.

    `configured_devices` are those that have settings, and `required_devices` the ones among them
    without which the controller does not start; `hosts` are the addresses that it listens on.
    `services` are the servers of others that it names, and
    `profiles` those that the models run with, by where their device is written and the model.
    """

    llama_server_bin: Path | None = None
    configured_devices: tuple[str, ...] = ()
    required_devices: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ("127.0.0.1",)
    services: tuple[ServiceFacts, ...] = ()
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it. `visibility` holds the variables that decide which devices are seen, as set."""

    process: ProcessFacts
    container: Container
    vendors: tuple[VendorTraces, ...]
    visibility: Mapping[str, str]
    devices: DeviceFacts
    engines: EngineFacts
    host: HostFacts
    data: DataFolder
    configuration: ConfigurationFacts = ConfigurationFacts()
