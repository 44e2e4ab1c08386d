"""Reads NVIDIA devices as a test says, line by line in JSON, in a process with its own NVML.

The library is chosen by LD_LIBRARY_PATH, which the loader reads when a process starts; so the
tests that need another one talk to this program.
"""

import json
import sys
from pathlib import Path
from typing import Any

import msgspec

from supervisor.errors import TelemetryError
from supervisor.telemetry.nvidia.reader import NvidiaReader


class Probe:
    """The reader under test."""

    def __init__(self) -> None:
        self._reader = NvidiaReader()

    def devices(self) -> Any:
        return [msgspec.to_builtins(info) for info in self._reader.devices()]

    def sample(self, device: str, child_pids: list[int]) -> Any:
        return msgspec.to_builtins(self._reader.sample(device, child_pids))

    def read(self, device: str) -> Any:
        return msgspec.to_builtins(self._reader.read(device))

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
