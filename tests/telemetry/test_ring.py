"""The last hour of every device: bounded, honest about what was not told, and cheap."""

import asyncio
import os
from pathlib import Path

import pytest
from lab.drivers.nvidia import GIB, SimulatedGpu
from structlog.testing import capture_logs

from supervisor.telemetry.port import HOST
from supervisor.telemetry.ring import Ring, RingPoint, record_devices
from supervisor.telemetry.telemetry import Telemetry
from tests.patience import PATIENCE_S
from tests.telemetry.sampling import until


def point(taken_at: float, **told: float) -> RingPoint:
    unknown = dict.fromkeys(("children_bytes", "utilisation_percent", "temperature_c", "power_w"))
    return RingPoint(taken_at=taken_at, used_bytes=1, free_bytes=2, **{**unknown, **told})


def test_points_come_back_as_they_went_in_and_unknown_stays_unknown() -> None:
    ring = Ring()
    told = [point(1.0, power_w=0.0), point(2.5, children_bytes=200 * GIB + 1)]
    for each in told:
        ring.add(each)

    assert list(ring.points()) == told


def test_full_ring_forgets_the_oldest() -> None:
    ring = Ring(capacity=3)
    for second in range(8):
        ring.add(point(second))

    assert len(ring) == 3
    assert [each.taken_at for each in ring.points()] == [5, 6, 7]


def test_points_since_a_time() -> None:
    ring = Ring(capacity=5)
    for second in range(9):
        ring.add(point(second))

    assert [each.taken_at for each in ring.points(since=7)] == [7, 8]


async def until_recorded(rings: dict[str, Ring], device: str, count: int) -> list[RingPoint]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if device in rings and len(rings[device]) >= count:
                return list(rings[device].points())
            await asyncio.sleep(0.005)


async def test_devices_and_host_are_recorded_with_our_share(gpu: SimulatedGpu) -> None:
    gpu.devices[0].utilisation_percent = 55
    gpu.allocate(os.getpid(), 2 * GIB)
    async with (
        Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",)) as telemetry,
        record_devices(telemetry, period_s=0.01, child_pids=lambda: (os.getpid(),)) as rings,
    ):
        first, *_, last = await until_recorded(rings, "gpu0", 3)
        hosts = await until_recorded(rings, HOST, 3)

    assert first.taken_at < last.taken_at
    told = (last.used_bytes, last.children_bytes, last.utilisation_percent)
    assert told == (2 * GIB, 2 * GIB, 55)
    assert hosts[0].free_bytes > 0
    assert hosts[0].power_w is None


async def test_share_that_nobody_asked_for_is_unknown(tmp_path: Path) -> None:
    async with (
        Telemetry(vendors=()) as telemetry,
        record_devices(telemetry, period_s=0.01) as rings,
    ):
        points = await until_recorded(rings, HOST, 1)

    assert points[0].children_bytes is None


async def test_lost_device_leaves_a_gap_and_the_others_go_on(gpu: SimulatedGpu) -> None:
    async with (
        Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",)) as telemetry,
        record_devices(telemetry, period_s=0.01) as rings,
    ):
        await until_recorded(rings, "gpu0", 1)
        gpu.lose(0)
        await asyncio.sleep(0)
        others = len(await until_recorded(rings, "gpu1", 1))
        await until_recorded(rings, "gpu1", others + 3)
        during = len(rings["gpu0"])
        await until_recorded(rings, "gpu1", others + 6)

        assert len(rings["gpu0"]) == during
        gpu.heal()
        await until_recorded(rings, "gpu0", during + 1)


@pytest.mark.parametrize("period_s", [0.01, 60.0])
async def test_recording_ends_with_its_context(period_s: float) -> None:
    async with Telemetry(vendors=()) as telemetry:
        async with record_devices(telemetry, period_s=period_s):
            assert "record-devices" in {task.get_name() for task in asyncio.all_tasks()}

        assert "record-devices" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_recording_goes_on_after_a_bug_and_says_so() -> None:
    calls = 0

    def child_pids() -> tuple[int, ...]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug of ours")
        return ()

    with capture_logs() as lines:
        async with (
            Telemetry(vendors=()) as telemetry,
            record_devices(telemetry, period_s=0.01, child_pids=child_pids) as rings,
            asyncio.timeout(PATIENCE_S),
        ):
            await until(lambda: HOST in rings)
    [ended] = [line for line in lines if line["event"] == "task.ended"]
    assert (ended["task"], ended["log_level"]) == ("record-devices", "error")
