"""How the doctor's answer looks: facts and remedies for people, JSON for machines."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

from supervisor.core.byte_size import format_bytes
from supervisor.doctor.facts import DeviceNode, Facts, VendorTraces
from supervisor.doctor.findings import Finding, Severity
from supervisor.doctor.judging import is_well
from supervisor.telemetry.port import DeviceHealth, DeviceInfo

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow"}
_NOTHING = "–"


def describe_report(facts: Facts, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything as values of JSON; `well` is what the exit code says, too."""
    return {
        "well": is_well(tuple(findings)),
        "findings": [asdict(finding) for finding in findings],
        "facts": msgspec.to_builtins(facts, enc_hook=str),
    }


def print_report(facts: Facts, findings: Sequence[Finding]) -> None:
    """Print the facts by section, and then what is wrong, with its remedy."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for title, rows in _sections(facts):
        console.print(Text(title, style="bold"))
        width = max((len(name) for name, _ in rows), default=0)
        for name, value in rows:  # no table: it would break paths, which are there to be copied
            console.print(Text(f"  {name:{width}}  {value}"))
    console.print()
    for finding in findings:
        console.print(
            Text(finding.severity.value, style=_STYLES[finding.severity]), Text(finding.what)
        )
        console.print(Text(f"  → {finding.remedy}"))
    if not findings:
        console.print("nothing is wrong")


def _sections(facts: Facts) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    yield "Devices", list(_device_rows(facts))
    yield "Drivers", [row for traces in facts.vendors for row in _vendor_rows(traces)]
    yield "Container", list(_container_rows(facts))
    yield "Engines", list(_engine_rows(facts))
    yield "Machine", list(_machine_rows(facts))


def _device_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    for info, health in zip(facts.devices.devices, facts.devices.health, strict=True):
        yield info.device, _device_words(info, health)


def _device_words(info: DeviceInfo, health: DeviceHealth) -> str:
    words = [
        info.name,
        format_bytes(info.total_bytes),
        info.uuid or "",
        info.pci_id or "",
        f"MIG {info.mig_profile}" if info.mig_profile else "",
        f"driver {info.driver_version}" if info.driver_version else "",
        "shares the host's memory" if info.shares_host_memory else "",
        *(f"children get {name}={value}" for name, value in info.visible_as),
        health.state.value,
    ]
    return ", ".join(filter(None, words))


def _vendor_rows(traces: VendorTraces) -> Iterator[tuple[str, str]]:
    driver = traces.kernel_driver
    loaded = "not loaded" if driver is None else driver or "loaded"
    bindings = f", Python bindings {traces.bindings}" if traces.bindings else ""
    yield traces.vendor, f"kernel driver {loaded}{bindings}"
    yield "  on PCI", ", ".join(traces.pci_ids) or _NOTHING
    yield "  libraries", ", ".join(path for _, path in traces.libraries) or _NOTHING
    yield "  nodes", ", ".join(map(_node_words, traces.nodes)) or _NOTHING


def _node_words(node: DeviceNode) -> str:
    denied = "" if node.is_usable else ", not ours"
    return f"{node.path} ({node.mode:04o}, group {node.group or node.gid}{denied})"


def _container_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    container = facts.container
    yield "runtime", container.runtime or "none: this is not a container"
    if container.runtime is not None:
        yield "mounted", ", ".join(container.mounts) or "nothing of a GPU"
        yield "device plugin", container.device_plugin or "no sign of one"
    for name, value in facts.visibility.items():
        yield name, value or "(empty)"
    gpus = [info for info in facts.devices.devices if info.index is not None]
    seen = (
        f"{info.device} = {info.vendor} {info.index} {info.uuid or ''}".strip() for info in gpus
    )
    yield "visible GPUs", ", ".join(seen) or "none"


def _engine_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    for engine in facts.engines.found:
        chosen = " (auto)" if engine.name == facts.engines.chosen else ""
        devices = ", ".join(engine.devices) or "none listed: the CPU"
        yield f"{engine.name}{chosen}", f"{engine.version}, {engine.location}"
        yield "  build", engine.build or _NOTHING
        yield "  devices", devices


def _machine_rows(facts: Facts) -> Iterator[tuple[str, str]]:
    host, process, data = facts.host, facts.process, facts.data
    if host.memory is not None:
        free, total = map(format_bytes, (host.memory.free_bytes, host.memory.total_bytes))
        yield "host memory", f"{free} free of {total} ({host.memory.source})"
    for limit in host.limits:
        used, most = map(format_bytes, (limit.used_bytes, limit.limit_bytes))
        yield limit.source, f"{used} used of {most}"
    if host.page_cache_bytes is not None:
        yield "page cache", format_bytes(host.page_cache_bytes)
    if host.largest_model is not None:
        name, size_bytes = host.largest_model
        yield "largest model", f"{name}, {format_bytes(size_bytes)}"
    room = "" if data.free_bytes is None else f", {format_bytes(data.free_bytes)} free"
    state = "can be written" if data.problem is None else "cannot be written"
    yield "data folder", f"{data.path}: {state}{room}"
    for service in facts.configuration.services:
        reached = "can be reached" if service.problem is None else "cannot be reached"
        yield service.setting, f"{service.place}: {reached}"
    yield "open files", str(process.open_files_limit)
    yield "pidfd_open", process.pidfd_problem or "works"
    yield "setpriv", process.setpriv_problem or "works"
    yield "user", f"{process.uid}, groups {', '.join(map(str, process.groups))}"
    yield "kernel", f"{process.kernel}, Python {process.python}"
