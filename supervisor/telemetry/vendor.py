"""What a GPU vendor means, in one value: adding a vendor is writing one, with its reader."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.telemetry.port import DeviceReader


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibilityRules:
    """The variables that decide which of the vendor's devices a program sees.

    `variables` are all of them, as a person wants to see them, and `hiding` those that can hide
    every device. `hidden_as` hides all from a child. `asked_by` is where a container's runtime
    finds which devices are wanted, if the vendor has one.
    """

    variables: tuple[str, ...]
    hiding: tuple[str, ...]
    hidden_as: tuple[tuple[str, str], ...]
    asked_by: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbering:
    """The vendor's `api` counts as the driver does only where `order_variable` is `order`.

    So indices in `variable` may mean other devices than expected.
    """

    api: str
    variable: str
    order_variable: str
    order: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePlaces:
    """Where a vendor shows without anything of its own being loaded, relative to the root.

    `pci_vendor` is its number in the PCI ID list. `library_folders` are searched after the usual
    ones, and `nodes` are patterns under /dev. `package` is the Python package that asks its
    library. `mounts` is an expression for what a container's runtime mounts. `plugin_folder`
    names the granted devices in a container, as does `plugin_variable` where its value begins
    with one of `plugin_prefixes`.
    """

    pci_vendor: str
    version_files: tuple[str, ...]
    modules: tuple[str, ...]
    libraries: tuple[str, ...]
    library_folders: tuple[str, ...]
    nodes: tuple[str, ...]
    package: str
    mounts: str
    plugin_folder: str | None = None
    plugin_variable: str | None = None
    plugin_prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeNode:
    """The node without which programs see a device and cannot compute on it.

    It is missed where a node beginning with `beside` is here, and with `is_for_all` wherever a
    device is. `remedy` comes before the vendor's grants, if there is one.
    """

    path: str
    beside: str
    is_for_all: bool = False
    remedy: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeLibrary:
    """A library without which a device can be watched and maybe not computed on."""

    name: str
    missing: str
    remedy_in_container: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineBuild:
    """The backends of ggml that compute on the vendor's devices, and how to come by one."""

    backends: frozenset[str]
    flag: str
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """A vendor of GPUs. `name` stands in DeviceInfo and in what people read.

    `open_reader` makes its reader, in the sampler process only: it may import what nothing else
    does. `may_be_here` decides by what costs nothing to look at whether a sampler process is worth
    its start. `grants` says how to give a container of each kind (the empty string: none) the
    devices; `tool` shows them to a person, and `kernel_words` are what to look for in the log.
    `is_known_by_place`: a card's place in the machine tells it better than its UUID, of which there
    are several.
    """

    name: str
    open_reader: Callable[[], DeviceReader]
    may_be_here: Callable[[Path], bool]
    visibility: VisibilityRules
    traces: TracePlaces
    grants: Mapping[str, str] = field(hash=False)
    compute_node: ComputeNode
    build: EngineBuild
    tool: str
    kernel_words: str
    compute_library: ComputeLibrary | None = None
    numbering: Numbering | None = None
    is_known_by_place: bool = False
