"""Twenty-four hours of the shipped example in less than a minute, with real servers."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import aiohttp
import yaml

from supervisor.calendar.wall_clock import WallClock
from supervisor.core.machine.values import Mode
from supervisor.running import load_first_model
from tests.conftest import ROOT, RunningController, StartController
from tests.gateway.conftest import shipped, until

SEOUL = ZoneInfo("Asia/Seoul")
LAST_HOUR = 25.0
FASTER = 1800.0
"""Seconds of the fast clock in one of ours: an hour takes 2 s."""

LEAD_S = 2.0
"""Of our seconds: the clock alone is fast."""

LINES = 60
EMBED, CHAT = "minilm", "demo-chat"


class FastClock(WallClock):
    """A wall clock that goes through a day in 48 seconds once it has `begun`; before, it is one."""

    def __init__(self, start: datetime) -> None:
        self.start = start.timestamp()
        self.begun_at = time.monotonic()
        self.faster = 1.0

    def begin(self) -> None:
        self.begun_at = time.monotonic()
        self.faster = FASTER

    def now(self) -> float:
        return self.start + (time.monotonic() - self.begun_at) * self.faster

    def moment_of(self, unix_s: float) -> float:
        return self.begun_at + (unix_s - self.start) / self.faster


@dataclass
class Log:
    """What clients were answered, and what was live, by the fast clock."""

    clock: FastClock
    answers: list[tuple[float, str, int, str]] = field(default_factory=list)
    live: list[tuple[float, str, tuple[str, ...]]] = field(default_factory=list)

    def hour(self, hour: float) -> float:
        """When it was so late, in Unix seconds."""
        return self.clock.start + hour * 3600.0

    def served(self, since: float, to: float, model: str) -> list[int]:
        """What requests for a model that were begun between two hours were answered."""
        return [
            status
            for at, asked, status, _ in self.answers
            if asked == model and self.hour(since) <= at < self.hour(to)
        ]


async def test_a_day_and_night_by_the_shipped_example(start_controller: StartController) -> None:
    clock = FastClock(datetime(2026, 11, 26, tzinfo=SEOUL))
    example = yaml.safe_load((ROOT / "docs/examples/supervisor.yaml").read_text())
    example["schedule"]["lead_s"] = LEAD_S
    settings = shipped("supervisor.yaml") | example | {"queue": {"hold_timeout_s": 5.0}}
    controller = await start_controller(
        files={"supervisor.yaml": settings}, default_model=CHAT, auto_switch=True, wall_clock=clock
    )
    await load_first_model(controller.parts)
    await until(lambda: serves(controller, CHAT))
    batch = await begin_batch(controller)
    clock.begin()
    controller.parts.arbiter.post(await controller.parts.schedule.read(None))

    log = Log(clock)
    ends_at = clock.moment_of(log.hour(LAST_HOUR))
    async with asyncio.TaskGroup() as group:
        group.create_task(watch(controller, log, ends_at))
        for model in (CHAT, EMBED):
            for _ in range(2):
                group.create_task(ask_all_day(controller, log, model, ends_at))

    done = await controller.json("GET", f"/v1/batches/{batch}")
    assert done["status"] == "completed", done
    assert done["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    second = FASTER / 3600.0  # hours of the fast clock in one of our seconds
    assert log.hour(2.0 - LEAD_S * second) < done_at(log) < log.hour(8.0)
    for since, to, modes in (
        (0.0, 2.0 - LEAD_S * second, {"generation"}),
        (8.0, 18.0, {"generation"}),
        (18.0 + second, 24.0 - LEAD_S * second, {"mixed"}),
        (24.0 + second, 25.0, {"generation"}),
    ):
        seen = {serves for at, serves, _ in log.live if log.hour(since) < at < log.hour(to)}
        assert seen == modes, (since, to, log.live)
    early = 2.0 - LEAD_S * second  # a quick machine has done the work before the period begins
    for since, boundary, mode in (
        (early, 2.0, "embedding"),
        (8.0, 8.0, "generation"),
        (18.0, 18.0, "mixed"),
    ):
        within = [at for at, serves, _ in log.live if serves == mode and at >= log.hour(since)]
        assert min(within) <= log.hour(boundary + second), (boundary, mode)
    ready = [live for at, _, live in log.live if log.hour(8.0) <= at < log.hour(17.9)]
    assert ready
    assert all(live == (CHAT,) for live in ready), ready

    codes = Counter((model, status, code) for _, model, status, code in log.answers)
    told = {"outside_window", "hold_timeout"}
    lost = [key for key in codes if key[1] != 200 and key[2] not in told]
    assert not lost, codes
    assert set(log.served(8.0, 17.0, CHAT)) == {200}
    assert set(log.served(8.0, 15.0, EMBED)) == {503}
    assert 200 in log.served(18.5, 23.0, EMBED)
    assert 200 in log.served(18.5, 23.0, CHAT)
    switches = (await controller.json("GET", "/switches"))["switches"]
    assert all(each["outcome"] == "switched" for each in switches), switches
    by_clock = [each for each in reversed(switches) if each["requested_by"] == "clock"]
    assert [each["model"] for each in by_clock][:3] == [CHAT, EMBED, CHAT]
    assert by_clock[1]["reason"] == (
        "by the schedule: embedding from 2026-11-26 02:00 KST (Asia/Seoul) on"
    )


async def test_period_that_is_over_stays_so_over_a_restart_though_work_has_come_since(
    start_controller: StartController, tmp_path: Path
) -> None:
    example = yaml.safe_load((ROOT / "docs/examples/supervisor.yaml").read_text())
    settings = shipped("supervisor.yaml") | example
    started = partial(
        start_controller,
        files={"supervisor.yaml": settings},
        data_dir=tmp_path / "data",
        wall_clock=FastClock(datetime(2026, 11, 26, 3, tzinfo=SEOUL)),
    )
    controller = await started()
    await load_first_model(controller.parts)
    assert await serves_period(controller, "generation")  # there is no work for the night
    await begin_batch(controller, lines=5000)
    await controller.stop()

    controller = await started()
    assert await controller.parts.services.jobs.modes_left() == {Mode.EMBEDDING}
    await load_first_model(controller.parts)
    assert await serves_period(controller, "generation")
    await controller.stop()


async def serves_period(controller: RunningController, serves: str) -> bool:
    """Wait until the schedule is read; return whether that is served."""
    agenda = controller.parts.arbiter.snapshot.agenda
    while agenda.period is None:
        await asyncio.sleep(0.01)
        agenda = controller.parts.arbiter.snapshot.agenda
    return agenda.period.serves == serves


def done_at(log: Log) -> float:
    """When the first night's work was done."""
    return max(at for at, serves, _ in log.live if serves == "embedding" and at < log.hour(8.0))


async def serves(controller: RunningController, model: str) -> bool:
    return model in controller.parts.arbiter.snapshot.live_models()


async def begin_batch(controller: RunningController, lines: int = LINES) -> str:
    """Upload the night's work."""
    asked_for = [
        {
            "custom_id": f"line {number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": EMBED, "input": f"a text of the night, number {number}"},
        }
        for number in range(lines)
    ]
    form = aiohttp.FormData()
    form.add_field("purpose", "batch")
    form.add_field("file", "\n".join(map(json.dumps, asked_for)), filename="night.jsonl")
    async with controller.client.post(f"{controller.url}/v1/files", data=form) as answer:
        assert answer.status == 200, await answer.text()
        file_id = (await answer.json())["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    begun = await controller.json("POST", "/v1/batches", asked)
    return str(begun["id"])


async def watch(controller: RunningController, log: Log, ends_at: float) -> None:
    """Note what the schedule has, and what is live."""
    while time.monotonic() < ends_at:
        snapshot = controller.parts.arbiter.snapshot
        period = snapshot.agenda.period
        assert period is not None
        log.live.append((log.clock.now(), period.serves, snapshot.live_models()))
        await asyncio.sleep(0.02)


async def ask_all_day(controller: RunningController, log: Log, model: str, ends_at: float) -> None:
    """Ask again and again, as somebody who looks on."""
    path, body = "/v1/embeddings", dict[str, Any](model=model, input="what is there")
    if model == CHAT:
        path, body = "/v1/completions", {"model": model, "prompt": "and so", "max_tokens": 4}
    while time.monotonic() < ends_at:
        began = log.clock.now()
        async with controller.client.post(controller.url + path, json=body) as answer:
            content = await answer.json()
        code = "" if answer.status == 200 else content["error"]["code"]
        log.answers.append((began, model, answer.status, code))
        await asyncio.sleep(0.2)
