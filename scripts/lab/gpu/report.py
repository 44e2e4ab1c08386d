"""The report of a machine: JSON with every figure, and a summary in Markdown.

It stands in a folder named after the device and its driver. Parts that were measured before stay
there until they are measured again, so that a run can be split.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.gpu.check import Mark
from lab.gpu.watch import Point
from supervisor.core.byte_size import MIB
from supervisor.telemetry.port import DeviceInfo

REPORT, PICTURE, SUMMARY = "report.json", "timeline.svg", "README.md"

MIN_CHANGE_BYTES = 16 * MIB
LONGEST_GAP_S = 1.0
"""Points of the timeline: one for each change of use, and at least one in so long."""

TITLES: Mapping[str, str] = {
    "switches": "Switches",
    "offload": "Parts of a model on the host",
    "fit": "A target that does not fit",
    "foreign": "Another program on the device",
    "embedding": "Embedding",
    "parking": "Parking",
    "parked_switches": "Switches with parking",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Where a report stands."""

    path: Path

    def read(self) -> dict[str, Any]:
        """Return what stands there; empty where nothing does."""
        file = self.path / REPORT
        if not file.exists():
            return {}
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content

    def write(self, report: Mapping[str, Any]) -> None:
        """Write the report and its summary."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(report, indent=1, ensure_ascii=False)
        # A point of the timeline is a line.
        text = re.sub(
            r"\[\s+([-\d.]+|null),\s+([-\d.]+|null),\s+([-\d.]+|null)\s+\]", r"[\1, \2, \3]", text
        )
        (self.path / REPORT).write_text(text + "\n", encoding="utf-8")
        has_picture = (self.path / PICTURE).exists()
        (self.path / SUMMARY).write_text(summary(report, has_picture), encoding="utf-8")


def folder_for(parent: Path, info: DeviceInfo) -> Folder:
    """Name the folder of a device and its driver: `nvidia-h200-580.65.06`."""
    name = f"{info.name} {info.driver_version or 'unknown driver'}".lower()
    return Folder(path=parent / re.sub(r"[^a-z0-9.]+", "-", name).strip("-"))


def thinned(points: Sequence[Point], began_at: float) -> list[list[float | None]]:
    """Return `[seconds, MiB in use, load in percent or null]` where something changes."""
    kept: list[list[float | None]] = []
    last: Point | None = None
    for point in points:
        is_news = (
            last is None
            or abs(point.used_bytes - last.used_bytes) >= MIN_CHANGE_BYTES
            or point.at - last.at >= LONGEST_GAP_S
            or (point.utilisation_percent or 0) > 0
        )
        if is_news:
            last = point
            seconds, used_mib = round(point.at - began_at, 3), round(point.used_bytes / MIB)
            kept.append([seconds, used_mib, point.utilisation_percent])
    return kept


def placed(marks: Sequence[Mark], began_at: float) -> list[dict[str, Any]]:
    """Return the marks by the seconds since the part began, in order."""
    ordered = sorted(marks, key=lambda mark: mark.at)
    return [{"at_s": round(m.at - began_at, 3), "label": m.label} for m in ordered]


def summary(report: Mapping[str, Any], has_picture: bool) -> str:
    """Write the report for people."""
    device, server = report["device"], report["llama_server"]
    lines = [
        f"# {device['name']}, driver {device['driver_version']}",
        "",
        "Written by `scripts/gpu_check`; every figure stands in [report.json](report.json).",
        "",
        f"- Measured: {report['measured_at']}, version {report['version']}",
        f"- Device: {device['total_bytes'] / MIB:.0f} MiB, {device['uuid']}",
        (
            f"- Host: {report['machine']['processor']}, {report['machine']['cores']} cores, "
            f"{report['machine']['system']}"
        ),
        f"- llama-server: {server['version']}; devices: {', '.join(server['devices']) or 'none'}",
        *(f"- Model {name}: {told}" for name, told in report["models"].items()),
    ]
    if has_picture:
        lines += ["", f"![Memory in use over time]({PICTURE})"]
    for name, part in report["parts"].items():
        lines += ["", f"## {TITLES[name]}", ""]
        if part["outcome"] == "measured":
            lines += [f"- {sentence}" for sentence in part["sentences"]]
        else:
            lines.append(f"{part['outcome'].capitalize()}: {part['reason']}")
    return "\n".join(lines) + "\n"
