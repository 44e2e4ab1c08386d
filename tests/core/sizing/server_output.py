"""What a llama-server prints while it starts, up to where it has told its sizes."""

import os
import subprocess
from collections.abc import Sequence
from threading import Timer

PATIENCE_S = 60


def lines_until(words: str, argv: Sequence[str]) -> list[str]:
    """Start a server on the CPU, and end it once it prints these words; return its lines so far."""
    lines: list[str] = []
    with subprocess.Popen(
        argv,
        stderr=subprocess.PIPE,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": os.environ["PATH"]},
    ) as server:
        watchdog = Timer(PATIENCE_S, server.kill)
        watchdog.start()
        assert server.stderr is not None
        for line in server.stderr:
            lines.append(line)
            if words in line:
                break
        watchdog.cancel()
        server.kill()
    return lines
