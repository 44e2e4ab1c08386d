"""Reads NVIDIA devices as a test says, line by line in JSON, in a process with its own NVML.

The library is chosen by LD_LIBRARY_PATH, which the loader reads when a process starts; so the
tests that need another one talk to this program.
"""

import asyncio
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from supervisor.errors import TelemetryError
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.nvidia import NvidiaMemory
from supervisor.telemetry.telemetry import Telemetry


class Probe:
    """The reader under test, and the facade over it once a test asks for that."""

    def __init__(self) -> None:
        self._reader = NvidiaMemory(root=Path(sys.argv[1]))
        self._telemetry: Telemetry | None = None

    def devices(self) -> Any:
        return [dataclasses.asdict(info) for info in self._reader.devices()]

    def read(self, device: str, child_pids: list[int]) -> Any:
        sample = self._reader.read(device, taken_at=0.0, child_pids=child_pids)
        return dataclasses.asdict(sample)

    def sample(self, device: str, deadline_s: float) -> Any:
        if self._telemetry is None:
            self._telemetry = Telemetry([self._reader, HostMemory()], deadline_s=deadline_s)
        return dataclasses.asdict(asyncio.run(self._telemetry.sample(device)))

    def close(self) -> Any:
        self._reader.close()

    def libraries(self) -> Any:
        maps = Path("/proc/self/maps").read_text()
        return sorted({Path(line.split()[-1]).name for line in maps.splitlines() if "/" in line})


if __name__ == "__main__":
    probe = Probe()
    for request in map(json.loads, sys.stdin):
        try:
            answer = {"ok": getattr(probe, request.pop("do"))(**request)}
        except TelemetryError as exc:
            answer = {"error": str(exc), "type": type(exc).__name__}
        print(json.dumps(answer), flush=True)  # noqa: T201 - it is how the test is answered
