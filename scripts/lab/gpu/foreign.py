"""Another program holds the device's memory: it is seen, named, and a start refused for it."""

import time
from collections.abc import Mapping
from typing import Any

from lab.gpu.check import Check, Mark, PartResult
from lab.gpu.configuration import GENERATION, estimate, log_of, look_at, setting_for, variants
from lab.gpu.cuda_process import tenant
from lab.gpu.log_reading import marks
from lab.harness.command import LabError
from lab.harness.servers import Controller
from supervisor.core.byte_size import MIB, format_bytes
from supervisor.core.machine.memory import MemorySample
from supervisor.telemetry.port import DeviceReading

NAME = "foreign"
LIMIT_S = 90.0

NEED_SHARE = 0.5
"""Of the target's need: what the tenant leaves free."""

RELEASE_TIMEOUT_S = 10.0
NEAR_BYTES = 64 * MIB


def measure(check: Check) -> PartResult:
    """Start where a tenant leaves too little, then again when it has left."""
    idle = check.watch.sample()
    setting = setting_for(check, variants("plain", {}))
    need_bytes = estimate(check, look_at(check, setting, GENERATION)).total_bytes
    size_bytes = idle.free_bytes - round(need_bytes * NEED_SHARE)
    visible = dict(check.watch.info.visible_as)
    order = {"model_name": GENERATION}
    with Controller(setting) as controller:
        controller.wait_until_settled()
        with tenant(size_bytes, check.libcuda, visible) as pid:
            came_at = time.monotonic()
            reading = check.watch.read()
            _, devices = controller.ask("GET", "/gpu")
            status, answer = controller.ask("POST", "/switch-backend", order)
        left_at = time.monotonic()
        if not check.watch.wait_until_used(idle.used_bytes + NEAR_BYTES, RELEASE_TIMEOUT_S):
            raise LabError(f"the tenant's memory was not back after {RELEASE_TIMEOUT_S:g} s")
        released_s = time.monotonic() - left_at
        later_status, _ = controller.ask("POST", "/switch-backend", order)
    message = answer.get("error", {}).get("message", "")
    figures = {
        **_tell(pid, size_bytes, reading, idle),
        "gpu_route": devices,
        "switch_status": status,
        "switch_message": message,
        "is_named_in_refusal": f"pid {pid}" in message,
        "released_s": released_s,
        "switch_status_after_it_left": later_status,
    }
    return PartResult(
        figures=figures,
        sentences=_sentences(figures),
        marks=[
            *marks(log_of(setting)),
            Mark(at=came_at, label="tenant holds"),
            Mark(at=left_at, label="tenant gone"),
        ],
    )


def _tell(pid: int, size_bytes: int, reading: DeviceReading, idle: MemorySample) -> dict[str, Any]:
    """Return what the driver tells of the tenant; in a container it may list other ids."""
    listed = {process.pid: process for process in reading.processes or ()}
    return {
        "pid": pid,
        "held_bytes": size_bytes,
        "grown_bytes": reading.sample.used_bytes - idle.used_bytes,
        "is_listed_by_driver": pid in listed,
        "listed_bytes": listed[pid].used_bytes if pid in listed else None,
        "listed_pids": sorted(listed),
    }


def _sentences(figures: Mapping[str, Any]) -> list[str]:
    held, grown = (format_bytes(figures[key]) for key in ("held_bytes", "grown_bytes"))
    named = "names it" if figures["is_named_in_refusal"] else "does not name it"
    seen = "lists it" if figures["is_listed_by_driver"] else "lists it under no id of ours"
    later = figures["switch_status_after_it_left"]
    return [
        f"A tenant took {held}; the device's use grew by {grown}, and the driver {seen}.",
        (
            f"The start was answered {figures['switch_status']}, and the answer {named}: "
            f"{figures['switch_message']}"
        ),
        f"Its memory was back after {figures['released_s']:.3f} s; the start was answered {later}.",
    ]
