"""What the controller's log tells of a run: when each phase began, and what servers allocated."""

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lab.gpu.check import Mark
from lab.harness.servers import events_in

_BUFFER = re.compile(r"(\S+) +(model|KV|compute|output) buffer size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBegin:
    """A phase of a switch, and when it began, on the monotonic clock."""

    switch_id: str
    phase: str
    at: float


def phase_begins(log: Path) -> list[PhaseBegin]:
    """Return every phase of every switch, in order."""
    return [
        PhaseBegin(
            switch_id=line["switch_id"],
            phase=line["phase"],
            at=_monotonic(line),
        )
        for line in events_in(log, "switch.phase")
    ]


def marks(log: Path) -> list[Mark]:
    """Return what to mark on the timeline: each phase, and each server that is ready."""
    phases = [Mark(at=begin.at, label=begin.phase) for begin in phase_begins(log)]
    ready = [Mark(at=_monotonic(line), label="ready") for line in events_in(log, "backend.ready")]
    return phases + ready


def _monotonic(line: Mapping[str, Any]) -> float:
    """Return when a line was written, on the monotonic clock.

    The log tells wall-clock time, which is taken for monotonic as both clocks stand now: that
    holds as long as nobody sets the clock.
    """
    offset = time.time() - time.monotonic()
    return datetime.fromisoformat(line["timestamp"]).timestamp() - offset


def device_buffers(log: Path, model: str) -> dict[str, float]:
    """Return the MiB of each kind of buffer that a model's last talkative server told.

    Kinds: model (weights), KV, compute and output. What stands on the CPU is left out, unless
    nothing stands elsewhere: then the server ran without a GPU.
    """
    found = [
        (line["epoch"], buffer)
        for line in events_in(log, "backend.output")
        if line.get("model") == model and (buffer := _BUFFER.search(line["line"]))
    ]
    last_epoch = max((epoch for epoch, _ in found), default=0)
    by_place: dict[bool, dict[str, float]] = {False: defaultdict(float), True: defaultdict(float)}
    for epoch, buffer in found:
        if epoch == last_epoch:
            is_device = not buffer[1].startswith(("CPU", "CUDA_Host"))
            by_place[is_device][buffer[2]] += float(buffer[3])
    return dict(by_place[True] or by_place[False])


def learned_peaks(log: Path) -> Mapping[str, int]:
    """Return the largest use that the controller learned of each model, in bytes."""
    peaks: dict[str, int] = {}
    for line in events_in(log, "need.learned"):
        peaks[line["model"]] = max(peaks.get(line["model"], 0), line["peak_bytes"])
    return peaks
