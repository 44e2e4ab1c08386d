"""What chats notice of a batch in the background, and how far the batch comes beside them.

Chats come at random moments, for part of what their model can answer: first alone, then the same
ones in front of a batch of texts to embed, which needs the device, too. A chat may find the batch
at work: then it waits for the end of its turn, the drain and the switch, Q + D + s.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import Any

from lab.bench.mixed import SEED, turn_of
from lab.bench.mixed_load import LEAD_S, load_of
from lab.bench.report import Figure, Row, compare
from lab.harness.command import LabError, say
from lab.harness.lean import LeanTally, drive, drive_until_answered
from lab.harness.replay import poisson_moments, replay
from lab.harness.servers import Controller
from lab.harness.setting import CHAT_MODEL, EMBEDDING_MODEL, Setting
from lab.harness.texts import short_texts

NAME = "background"

LOAD = 0.3
"""Part of what the chat model answers one client alone that chats come for."""

OF_ALONE = 1.3
"""So much longer than alone the waits of chats may be, beside Q + D + s."""

LINES = 50_000
"""As many as a batch may have: it should be at work all the time."""

BEGIN_WITHIN_S = 60.0
LOOK_PAUSE_S = 0.05
MS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Chats in front of a batch, once.

    `lines`: of the batch that were done meanwhile; `is_done`: whether none was left in the end.
    `switches_s` and `drains_s`: the seconds that each switch took without its drain, and its drain.
    """

    chats: LeanTally
    lines: int
    is_done: bool
    took_s: float
    switches_s: Sequence[float]
    drains_s: Sequence[float]


def measure(setting: Setting, lines: int = LINES) -> Figure:
    """Ask chats alone, and then in front of a batch of so many lines."""
    content = batch_of(lines)
    alone, courses = list[LeanTally](), list[Course]()
    with Controller(setting) as controller, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        controller.wait_until_settled()
        load = load_of(CHAT_MODEL, "")
        rate = LOAD * _answers_per_s(controller, setting.seconds)

        def chats(number: int) -> LeanTally:
            moments = poisson_moments(rate, setting.seconds, f"{SEED}:{number}") or (0.0,)
            begins_at = time.monotonic() + LEAD_S
            return pool.submit(replay, load, controller.endpoint, moments, begins_at).result()

        for number in range(setting.rounds):
            say(f"  chats alone, {setting.seconds:g} s …")
            alone.append(chats(number))
            say(f"  the same in front of a batch, {setting.seconds:g} s …")
            with _batch(controller, content) as batch:
                courses.append(_course(controller, batch, partial(chats, number)))
    return figure(alone, courses, rate)


def figure(alone: Sequence[LeanTally], courses: Sequence[Course], rate: float) -> Figure:
    """Judge how long chats waited, and whether the batch came on."""
    switch_s = median([each for course in courses for each in course.switches_s] or [0.0])
    drain_s = max((each for course in courses for each in course.drains_s), default=0.0)
    notice_s = turn_of(switch_s) + drain_s + switch_s
    direct_ms = [p95_s(tally) * MS for tally in alone]
    bound_ms = OF_ALONE * median(direct_ms) + notice_s * MS
    chats = [course.chats for course in courses]
    is_done = any(course.is_done for course in courses)
    note = (
        f"{OF_ALONE:g} × alone + Q + D + s = {OF_ALONE:g} × {median(direct_ms):.0f} + "
        f"{turn_of(switch_s) * MS:.0f} + {drain_s * MS:.0f} + {switch_s * MS:.0f} "
        f"= {bound_ms:.0f} ms; {rate:.1f} chats/s, seed {SEED}"
    )
    return Figure(
        name=NAME,
        rows=(
            compare(
                "chats, p95",
                "ms",
                direct=direct_ms,
                controller=[p95_s(tally) * MS for tally in chats],
                at_most=bound_ms,
            ),
            compare(
                "chats, errors",
                "",
                direct=[sum(tally.failures.values()) for tally in alone],
                controller=[sum(tally.failures.values()) for tally in chats],
                at_most=0,
            ),
            _batch_row(courses),
        ),
        notes=(note, *(["DONE TOO EARLY: the batch had no line left"] if is_done else [])),
        samples={
            "alone_s": [tally.latencies_s for tally in alone],
            "in_front_s": [tally.latencies_s for tally in chats],
            "lines": [course.lines for course in courses],
            "switches_s": [list(course.switches_s) for course in courses],
            "drains_s": [list(course.drains_s) for course in courses],
        },
    )


def _batch_row(courses: Sequence[Course]) -> Row:
    """Whoever waits for a batch gets something all the time, however many chat."""
    lines_per_s = [course.lines / course.took_s for course in courses]
    nothing = [0.0] * len(courses)
    return compare("batch", "lines/s", direct=nothing, controller=lines_per_s, at_least=1)


def p95_s(tally: LeanTally) -> float:
    """Return the 95th percentile of the waits. Raises LabError where nothing was answered."""
    if not tally.latencies_s:
        raise LabError(f"no chat was answered: {dict(tally.failures)}")
    ordered = sorted(tally.latencies_s)
    return ordered[math.ceil(len(ordered) * 0.95) - 1]


def batch_of(lines: int, **fields: str) -> bytes:
    """Write a batch of texts to embed, with further fields of their requests."""
    texts = short_texts(lines, min_words=3, max_words=40)
    return "\n".join(
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": "/v1/embeddings",
                "body": {"model": EMBEDDING_MODEL, "input": text, **fields},
            }
        )
        for number, text in enumerate(texts)
    ).encode()


def _answers_per_s(controller: Controller, seconds: float) -> float:
    """Return what one client of the chat model gets alone."""
    load = load_of(CHAT_MODEL, "")
    drive(load, controller.endpoint, 1, seconds=0.0)  # which makes it live
    tally, took_s = drive_until_answered(load, controller.endpoint, 1, seconds)
    return tally.units / took_s


@contextmanager
def _batch(controller: Controller, content: bytes) -> Iterator[str]:
    """Send a batch, wait until it is worked on, and cancel it in the end; gives its id."""
    file = controller.upload("/v1/files?purpose=batch", content)
    asked = {
        "input_file_id": file["id"],
        "endpoint": "/v1/embeddings",
        "completion_window": "24h",
    }
    batch: str = controller.call("POST", "/v1/batches", asked)["id"]
    _wait(controller, batch, lambda job: job["lines"]["succeeded"] > 0)
    yield batch
    controller.ask("POST", f"/jobs/{batch}/cancel")  # refused where it is done
    _wait(controller, batch, lambda job: job["state"] in {"cancelled", "completed"})


def _course(controller: Controller, batch: str, chats: Callable[[], LeanTally]) -> Course:
    lines_before = controller.call("GET", f"/jobs/{batch}")["lines"]["succeeded"]
    began_at, began_on_the_clock = time.monotonic(), time.time()
    tally = chats()
    took_s = time.monotonic() - began_at
    records = [
        each["seconds"]
        for each in controller.call("GET", "/switches")["switches"]
        if each["outcome"] == "switched" and each["ended_at"] >= began_on_the_clock
    ]
    lines = controller.call("GET", f"/jobs/{batch}")["lines"]
    return Course(
        chats=tally,
        lines=lines["succeeded"] - lines_before,
        is_done=not lines["left"],
        took_s=took_s,
        switches_s=[each["total"] - each.get("draining", 0.0) for each in records],
        drains_s=[each.get("draining", 0.0) for each in records],
    )


def _wait(controller: Controller, batch: str, is_so: Callable[[Any], bool]) -> None:
    deadline_at = time.monotonic() + BEGIN_WITHIN_S
    while not is_so(controller.call("GET", f"/jobs/{batch}")):
        if time.monotonic() > deadline_at:
            raise LabError(f"{batch} did not come on within {BEGIN_WITHIN_S:g} s")
        time.sleep(LOOK_PAUSE_S)
