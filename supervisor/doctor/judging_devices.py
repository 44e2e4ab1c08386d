"""Findings about GPUs: those that cannot be reached, used, or told apart."""

from collections.abc import Iterator

from supervisor.doctor.facts import DeviceNode, Facts, VendorTraces
from supervisor.doctor.findings import Finding, error, warning
from supervisor.engine.devices import devices_of as devices_of_profile
from supervisor.engine.devices import unusable_together
from supervisor.telemetry.port import HOST, DeviceInfo
from supervisor.telemetry.vendor import Vendor
from supervisor.telemetry.vendors import VENDORS
from supervisor.telemetry.visible_devices import find_repeated


def judge_devices(facts: Facts) -> Iterator[Finding]:
    """Judge each vendor's devices, and the variables that choose among them."""
    for traces in facts.vendors:
        vendor = VENDORS[traces.vendor]
        devices = devices_of(facts, vendor.name)
        if not devices:
            yield from _judge_absence(facts, vendor, traces)
        yield from _judge_nodes(facts, vendor, traces)
        if devices:
            yield from _judge_libraries(facts, vendor, traces)
            yield from _judge_numbering(facts, vendor)
        yield from _judge_repeats(facts, vendor)
    yield from _judge_required(facts)
    yield from _judge_configured(facts)
    yield from _judge_profiles(facts)


def _judge_required(facts: Facts) -> Iterator[Finding]:
    """The controller does not start without them."""
    usable = {info.device for info in facts.devices.devices if info.fault is None}
    grants = (v.grants[facts.container.runtime or ""] for v in VENDORS.values())
    for name in facts.configuration.required_devices:
        if name not in usable:
            yield error(
                f"{name} is required (devices.{name}.required) and cannot be used: the controller "
                "does not start",
                "see the other findings; or " + "; or ".join(grants) + "; or set it to false, and "
                "models run on what is here",
            )


def _judge_configured(facts: Facts) -> Iterator[Finding]:
    """Settings of a device that is not here change nothing.

    Those of `gpu0` are shipped, and in place where no GPU is. Where telemetry has a fault, or the
    device is required, another finding says so.
    """
    if facts.devices.problems:
        return
    here = [info.device for info in facts.devices.devices]
    shipped = "gpu0" if here == [HOST] else None
    for name in facts.configuration.configured_devices:
        if name not in (*here, *facts.configuration.required_devices, shipped):
            yield warning(
                f"devices.{name} in supervisor.yaml is for a device that is not here: it changes "
                "nothing",
                f"here are {', '.join(here)}: name one of these, or remove the settings",
            )


def _judge_profiles(facts: Facts) -> Iterator[Finding]:
    """A model whose profile names devices that no server can have here is refused."""
    here = facts.devices.devices
    if facts.devices.problems:
        return
    gpus = [info.device for info in here if info.device != HOST and info.fault is None]
    for where, profile in facts.configuration.profiles.items():
        fault = unusable_together(devices_of_profile(profile, gpus, lambda: here), here)
        if fault is not None:
            yield warning(
                f"{where} cannot run here: {fault}",
                "name devices that are here, each once; or gpu, for any of them",
            )


def devices_of(facts: Facts, vendor: str) -> tuple[DeviceInfo, ...]:
    """Return the vendor's devices that telemetry found; with `*`, every GPU."""
    return tuple(
        info
        for info in facts.devices.devices
        if info.device != HOST and vendor in {info.vendor, "*"}
    )


def _judge_absence(facts: Facts, vendor: Vendor, traces: VendorTraces) -> Iterator[Finding]:
    """A GPU is on the bus, or was asked for, and telemetry finds none of the vendor's."""
    if facts.devices.problems:
        return  # telemetry knows better
    rules = vendor.visibility
    hiding = [name for name in rules.hiding if _hides_all(facts.visibility.get(name))]
    is_reached = traces.kernel_driver is not None and traces.nodes
    if hiding and is_reached:
        name = hiding[0]
        yield warning(
            f"{name}={facts.visibility[name]} hides every {vendor.name} GPU",
            f"unset {name}, or name the devices to be used in it",
        )
        return
    remedy = vendor.grants[facts.container.runtime or ""]
    wish = facts.visibility.get(rules.asked_by or "", "")
    if facts.container.runtime and wish not in {"", "none", "void"}:
        yield warning(
            f"{rules.asked_by}={wish} asks for GPUs, but the {vendor.name} runtime has put no "
            "driver into this container",
            remedy,
        )
    elif traces.pci_ids:
        yield warning(
            f"{vendor.name} GPUs are on the PCI bus ({', '.join(traces.pci_ids)}) and cannot be "
            "reached from here; everything runs on the CPU",
            remedy,
        )


def _hides_all(value: str | None) -> bool:
    first = None if value is None else value.split(",")[0].strip()
    return first is not None and (first in {"", "NoDevFiles"} or first.startswith("-"))


def _judge_nodes(facts: Facts, vendor: Vendor, traces: VendorTraces) -> Iterator[Finding]:
    """The files through which programs reach the device: each must be there and open to us."""
    for node in traces.nodes:
        if not node.is_usable:
            yield error(
                f"user {facts.process.uid} may not read and write {node.path} "
                f"(mode {node.mode:04o}, group {node.group or node.gid})",
                _node_remedy(facts, node),
            )
    needed = vendor.compute_node
    paths = [node.path for node in traces.nodes]
    is_used = needed.is_for_all and devices_of(facts, vendor.name)
    if needed.path not in paths and (is_used or any(p.startswith(needed.beside) for p in paths)):
        grant = vendor.grants[facts.container.runtime or ""]
        yield warning(
            f"{needed.path} is not here: programs see the {vendor.name} GPU and cannot compute on "
            "it",
            "; or ".join(filter(None, (needed.remedy, grant))),
        )


def _node_remedy(facts: Facts, node: DeviceNode) -> str:
    if not node.mode & 0o060:
        return f"give a group access to {node.path} (`chmod g+rw`, better by a udev rule)"
    match facts.container.runtime:
        case "kubernetes":
            return f"add group {node.gid} to securityContext.supplementalGroups"
        case "docker" | "podman" | "unknown":
            return f"start the container with --group-add {node.gid}"
        case None:
            group = node.group or str(node.gid)
            return f"add this user to its group (`usermod -aG {group} USER`), and log in again"


def _judge_libraries(facts: Facts, vendor: Vendor, traces: VendorTraces) -> Iterator[Finding]:
    library = vendor.compute_library
    if library is None or library.name in dict(traces.libraries):
        return
    in_container = facts.container.runtime is not None
    yield warning(
        f"{library.name} is not in the usual folders: {library.missing}",
        library.remedy_in_container if in_container else library.remedy,
    )


def _judge_numbering(facts: Facts, vendor: Vendor) -> Iterator[Finding]:
    """CUDA counts the fastest device first unless its order is set (CUDA_DEVICE_ORDER)."""
    rule = vendor.numbering
    if rule is None:
        return
    wish = facts.visibility.get(rule.variable, "")
    kinds = {info.name for info in devices_of(facts, vendor.name)}
    in_bus_order = facts.visibility.get(rule.order_variable) == rule.order
    if len(kinds) > 1 and wish[:1].isdecimal() and not in_bus_order:
        yield warning(
            f"{rule.variable}={wish} counts devices of several kinds, and {rule.api} counts them "
            "in another order than the driver",
            rule.remedy,
        )


def _judge_repeats(facts: Facts, vendor: Vendor) -> Iterator[Finding]:
    """A device that is named twice counts once here; elsewhere the whole list may be void."""
    devices = devices_of(facts, vendor.name)
    for variable in vendor.visibility.hiding:
        repeated = find_repeated(facts.visibility.get(variable, ""), devices)
        if devices and repeated is not None:
            yield warning(
                f"{variable}={facts.visibility[variable]} names a device twice ({repeated}), which "
                "counts once here; other programs may see none of them",
                f"name each device once in {variable}",
            )
