"""What a figure was measured on: without it, a number means nothing next year."""

import os
import platform
import time
from pathlib import Path
from typing import Any

from bench_runner.servers import Controller
from bench_runner.setting import Setting


def describe(setting: Setting) -> dict[str, Any]:
    """Describe the machine and the versions; starts the controller once to ask it.

    That start also fills the caches of the file system and of Python, so that the measured ones
    are alike.
    """
    load_average = os.getloadavg()[0]
    with Controller(setting) as controller:
        controller.wait_until_settled()
        status = controller.status()
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": status["version"],
        "engine": status["engine"],
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": platform.platform(),
            "python": platform.python_version(),
            "load_average_before": load_average,
        },
    }


def processor() -> str:
    """Return the name of this machine's processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
