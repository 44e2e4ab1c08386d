"""What a warm start spares: the target's file is read while the live model still drains."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from lab.bench.report import Figure, compare
from lab.harness.command import LabError, say
from lab.harness.large_model import large_model
from lab.harness.servers import Controller
from lab.harness.setting import CHAT_MODEL, Setting, with_changes
from supervisor.engine.models.page_cache import look_at_chunks

NAME = "warm_start"

LARGE_MODEL = "bench-large"
DRAIN_S = 3.0
"""When the client of the stream that the switch waits for has read enough, and leaves."""

STREAM_TOKENS = 3500
"""More than it reads, and still within the context."""

COLD_SHARE = 0.01
"""Part of the file that may be in the page cache when a switch begins: its header is read."""

SERVING_PHASES = ("preflight", "warming", "draining")
GB = 1_000_000_000


def measure(setting: Setting) -> Figure:
    """Switch to a large model out of a cold page cache while a stream goes on, both ways in turn.

    The direct column is without the warm start. Judged is what comes after the stream's end,
    which takes its own time.
    """
    path = large_model()
    settings = {is_warm: _changed(setting, path, is_warm=is_warm) for is_warm in (False, True)}
    reports: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for _ in range(setting.rounds):
        for is_warm, done in reports.items():
            done.append(_switch(settings[is_warm], path))
    say(f"  {NAME}: {setting.rounds} switches of each side")
    size_gb = path.stat().st_size / GB
    return Figure(
        name=NAME,
        rows=(
            compare(
                f"from the stream's end to ready, {size_gb:.1f} GB from disk",
                "s",
                direct=[after_the_drain_s(each) for each in reports[False]],
                controller=[after_the_drain_s(each) for each in reports[True]],
                judged_as="ratio",
                at_most=1.0,
            ),
        ),
        notes=(_note("without", reports[False]), _note("with", reports[True])),
        samples={"without_s": reports[False], "with_s": reports[True]},
    )


def after_the_drain_s(phases: dict[str, float]) -> float:
    """Return how long nothing was served, in seconds: the switch less what went before the stop."""
    return phases["total"] - sum(phases.get(phase, 0.0) for phase in SERVING_PHASES)


def _changed(setting: Setting, path: Path, *, is_warm: bool) -> Setting:
    return with_changes(
        setting,
        f"{NAME}-{'with' if is_warm else 'without'}",
        {
            "supervisor.yaml": {"switch": {"warm_start": is_warm}},
            "models.yaml": {
                "models": {
                    LARGE_MODEL: {
                        "path": str(path),
                        "type": "generation",
                        "overrides": {"ctx_size": 512, "parallel": 1},
                    }
                }
            },
        },
    )


def _switch(setting: Setting, path: Path) -> dict[str, float]:
    """Return the seconds of the switch's phases."""
    with Controller(setting) as controller:
        controller.load(CHAT_MODEL)
        drop_from_page_cache(path)
        with _stream(controller):
            report = controller.switch_to(LARGE_MODEL)
    seconds: dict[str, float] = report["seconds"]
    return seconds


def drop_from_page_cache(path: Path) -> None:
    """Leave the file on the disk alone. Raises LabError when the kernel does not let go."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # pages that wait to be written are not dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        chunks = tuple(look_at_chunks(path, file.fileno()))
    resident_bytes = sum(chunk.resident_bytes for chunk in chunks)
    if resident_bytes > COLD_SHARE * path.stat().st_size:
        raise LabError(
            f"{path}: {resident_bytes} bytes of it stay in the page cache; does another process "
            "have it mapped?"
        )


@contextmanager
def _stream(controller: Controller) -> Iterator[None]:
    """Have a stream in flight for a time that does not depend on the model's speed."""
    with ThreadPoolExecutor(1, "stream") as thread:
        reading = thread.submit(_read_for_a_while, controller)
        while not controller.status()["requests"]["in_flight"] and not reading.done():
            time.sleep(0.005)
        yield
        reading.result()


def _read_for_a_while(controller: Controller) -> None:
    content = {
        "model": CHAT_MODEL,
        "messages": [{"role": "user", "content": "Go on"}],
        "max_tokens": STREAM_TOKENS,
        "stream": True,
    }
    ends_at = time.monotonic() + DRAIN_S
    for _ in controller.stream("/v1/chat/completions", content):
        if time.monotonic() > ends_at:
            return
    raise LabError("the stream that the switch waits for ended too soon")


def _note(side: str, reports: Sequence[dict[str, Any]]) -> str:
    phases = ", ".join(
        f"{phase} {median(each[phase] for each in reports):.2f}" for phase in reports[0]
    )
    return f"{side}, s: {phases}"
