"""The simulated driver gives memory back as tests for the release gate need it."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from lab.drivers.nvidia import GIB, NEVER_S, SimulatedGpu

from supervisor.telemetry.telemetry import Telemetry
from tests.patience import PATIENCE_S


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()


def end(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()


async def used_until(telemetry: Telemetry, wanted: int) -> list[int]:
    """Sample until the wanted use is seen; give the different amounts on the way."""
    seen: list[int] = []
    async with asyncio.timeout(PATIENCE_S):
        while wanted not in seen:
            used = (await telemetry.sample("gpu0")).used_bytes
            if used not in seen:
                seen.append(used)
            await asyncio.sleep(0.005)
    return seen


@pytest.mark.parametrize(
    ("release_after_s", "release_steps", "amounts"),
    [(0.0, 1, [1]), (0.2, 1, [9, 1]), (0.4, 4, [9, 7, 5, 3, 1])],
    ids=["at once", "late", "in steps"],
)
async def test_memory_of_a_dead_process_is_given_back(
    gpu: SimulatedGpu,
    child: subprocess.Popen[bytes],
    release_after_s: float,
    release_steps: int,
    amounts: list[int],
) -> None:
    gpu.set_used(GIB)
    gpu.allocate(child.pid, 8 * GIB, release_after_s=release_after_s, release_steps=release_steps)
    async with Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",)) as telemetry:
        assert (await telemetry.sample("gpu0")).used_bytes == 9 * GIB
        end(child)
        dead_at = time.monotonic()

        seen = await used_until(telemetry, GIB)

    assert time.monotonic() - dead_at >= release_after_s
    assert seen[0] == amounts[0] * GIB
    passed = [amount for amount in amounts if amount * GIB in seen]  # a busy machine misses some
    assert [amount * GIB for amount in passed] == seen


async def test_memory_can_stay_for_good(gpu: SimulatedGpu, child: subprocess.Popen[bytes]) -> None:
    gpu.allocate(child.pid, 8 * GIB, release_after_s=NEVER_S)
    async with Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",)) as telemetry:
        end(child)
        reading = await telemetry.read("gpu0")
        reading = await telemetry.read("gpu0")

    assert reading.sample.used_bytes == 8 * GIB
    assert reading.processes == ()


async def test_child_allocates_on_the_machine_it_was_started_with(gpu: SimulatedGpu) -> None:
    code = (
        "import os; from lab.drivers.nvidia import SimulatedGpu; "
        "SimulatedGpu.attached().allocate(os.getpid(), 5, device=1, release_after_s=60)"
    )
    environ = gpu.full_environment(PYTHONPATH=":".join(filter(None, sys.path)))
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=environ)
    assert await child.wait() == 0

    async with Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",)) as telemetry:
        assert (await telemetry.sample("gpu1")).used_bytes == 5
