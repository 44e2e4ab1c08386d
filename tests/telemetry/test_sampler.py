"""The sampler process: what a driver that hangs, fails or dies costs, and how it recovers."""

import asyncio
import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import uvloop
from lab.drivers.nvidia import GIB, SimulatedGpu

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.port import HOST, DeviceHealth, DeviceInfo, TelemetryState
from supervisor.telemetry.telemetry import Telemetry
from supervisor.telemetry.vendor_sampler import Backoff, SamplerPolicy, VendorSampler, _is_same
from tests.patience import PATIENCE_S
from tests.telemetry.sampling import (
    FAST,
    MEMORY_CALL,
    OpenTelemetry,
    error_of,
    samplers,
    until,
    until_sampled,
    vendor_libraries,
)


async def test_vendors_library_is_loaded_by_the_sampler_alone(telemetry: Telemetry) -> None:
    await telemetry.read("gpu0")
    (sampler,) = samplers()

    assert vendor_libraries(sampler.pid) == ["libnvidia-ml"]
    assert vendor_libraries(os.getpid()) == []


async def test_sampler_is_small_and_in_a_session_of_its_own(telemetry: Telemetry) -> None:
    await telemetry.read("gpu0")
    (sampler,) = samplers()

    assert sampler.memory_info().rss <= 40 * 1000 * 1000
    assert os.getsid(sampler.pid) == os.getpgid(sampler.pid) == sampler.pid


async def test_sampler_does_not_inherit_our_settings(open_telemetry: OpenTelemetry) -> None:
    await open_telemetry(LLAMA_API_KEY="secret", AIP_HTTP_PORT="1", LANG="C")
    (sampler,) = samplers()

    inherited = sampler.environ()

    assert inherited["LANG"] == "C"
    assert not [name for name in inherited if name.startswith(("LLAMA_", "AIP_"))]


async def test_hung_driver_costs_the_sampler_and_is_said_with_its_reason(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    (sampler,) = samplers()
    gpu.hang(MEMORY_CALL)

    message = await error_of(telemetry)

    assert "the NVIDIA driver did not answer within 0.5 s" in message
    assert "kernel log" in message
    assert telemetry.health("gpu0").state is TelemetryState.LOST
    assert telemetry.health("gpu1").reason == message
    assert telemetry.problems == (message,)
    assert telemetry.health(HOST) == DeviceHealth(device=HOST, state=TelemetryState.OK)
    await until(lambda: not sampler.is_running())


async def test_hung_driver_holds_neither_the_host_nor_later_questions_up(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.hang(MEMORY_CALL)
    hung = asyncio.create_task(error_of(telemetry))
    await asyncio.sleep(0)

    assert (await telemetry.sample(HOST)).free_bytes > 0
    assert not hung.done()

    await hung
    later = asyncio.create_task(error_of(telemetry))
    await asyncio.sleep(0)
    assert later.done()  # without asking the driver
    assert await later


async def test_everybody_who_waits_for_a_hung_driver_is_told_at_once(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.hang(MEMORY_CALL, device=0)
    asked = [asyncio.create_task(error_of(telemetry, f"gpu{i % 2}")) for i in range(6)]

    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)

    assert all(each.done() for each in asked)
    assert len({each.result() for each in asked}) == 1


async def test_sampling_recovers_by_itself_when_the_driver_answers_again(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    gpu.hang(MEMORY_CALL)
    await error_of(telemetry)
    gpu.heal()
    gpu.set_used(7 * GIB)

    sample = await until_sampled(telemetry)

    assert sample.used_bytes == 7 * GIB
    assert telemetry.problems == ()
    assert telemetry.health("gpu0").state is TelemetryState.OK
    assert len(samplers()) == 1


async def test_sampler_killed_from_outside_is_replaced(telemetry: Telemetry) -> None:
    (sampler,) = samplers()
    sampler.kill()
    await until(lambda: telemetry.health("gpu0").state is TelemetryState.LOST)

    assert "ended unexpectedly (signal 9)" in str(telemetry.health("gpu0").reason)
    await until_sampled(telemetry)
    (replaced,) = samplers()
    assert replaced.pid != sampler.pid


async def test_sampling_recovers_after_we_ran_out_of_descriptors(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[str] = []
    pairs, socketpair = 3, socket.socketpair

    def none_left(*_: object) -> tuple[socket.socket, socket.socket]:
        refused.append("a pair")
        if len(refused) <= pairs:
            raise OSError(errno.EMFILE, "Too many open files")
        return socketpair()

    monkeypatch.setattr(socket, "socketpair", none_left)
    (sampler,) = samplers()
    sampler.kill()
    await until(lambda: len(refused) > pairs)

    assert (await until_sampled(telemetry)).device == "gpu0"


async def test_whoever_waits_for_a_killed_sampler_is_told_though_its_end_cannot_be_watched(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", none_left)
    (sampler,) = samplers()
    sampler.send_signal(signal.SIGSTOP)
    asking = asyncio.create_task(error_of(telemetry))
    await asyncio.sleep(0)
    sampler.kill()
    error = await asking

    assert "did not answer" in error or "ended unexpectedly" in error


async def test_end_of_a_sampler_that_was_replaced_is_nothing_to_its_successor() -> None:
    vendor, old, new = VendorSampler("nvidia", {}, FAST), object(), object()
    vendor._process = new  # type: ignore[assignment]
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    lost.set_result("the driver did not answer")

    vendor._lose(old, lost)  # type: ignore[arg-type]

    assert (vendor._process, vendor.lost_reason) == (new, None)


def test_card_is_known_by_its_place_whatever_uuid_library_and_kernel_give_it() -> None:
    card = DeviceInfo(device="a", name="card", vendor="AMD", total_bytes=1, pci_id="0000:03:00.0")
    by_library, by_kernel = replace(card, uuid="00ff740f-0000"), replace(card, uuid="5e9f1a")
    another = replace(by_kernel, pci_id="0000:43:00.0")
    part = replace(card, vendor="NVIDIA", uuid="MIG-1")

    assert _is_same(by_library, by_kernel)
    assert not _is_same(by_library, another)
    assert not _is_same(part, replace(part, uuid="MIG-2"))


def test_whoever_asks_while_a_killed_sampler_is_cleared_away_is_told_why(gpu: SimulatedGpu) -> None:
    """Between the end of the connection and that of the process, too."""

    async def ask_all_the_time() -> set[type[BaseException]]:
        environ, asked = gpu.full_environment(), []
        async with Telemetry(environ=environ, vendors=("NVIDIA",), policy=FAST) as telemetry:
            (sampler,) = samplers()
            sampler.kill()
            async with asyncio.timeout(PATIENCE_S):
                while not telemetry.problems:
                    asked.append(asyncio.create_task(telemetry.sample("gpu0")))
                    await asyncio.sleep(0)
            answers = await asyncio.gather(*asked, return_exceptions=True)
        return {type(each) for each in answers if isinstance(each, BaseException)}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask_all_the_time()) == {TelemetryError}


async def test_sampler_that_cannot_be_reaped_is_left_behind_and_replaced(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    # No time to see it die: what the controller sees of a process in an uninterruptible call.
    patience = SamplerPolicy(deadline_s=0.3, reap_s=0.0, first_pause_s=0.02, longest_pause_s=0.2)
    telemetry = await open_telemetry(patience)
    gpu.hang(MEMORY_CALL)
    await error_of(telemetry)
    gpu.heal()

    assert (await until_sampled(telemetry)).device == "gpu0"


async def test_no_more_samplers_are_started_than_may_hang(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    policy = SamplerPolicy(
        deadline_s=0.3, first_pause_s=0.02, longest_pause_s=0.05, max_abandoned=0
    )
    telemetry = await open_telemetry(policy)

    assert "cannot be ended" in telemetry.problems[0]
    assert samplers() == []


def test_pauses_between_attempts_grow_up_to_a_limit_and_begin_anew_after_a_calm() -> None:
    now = 0.0
    policy = SamplerPolicy(first_pause_s=0.25, longest_pause_s=1.5, calm_s=60)
    backoff = Backoff(policy, clock=lambda: now)

    growing = [backoff.next_pause_s() for _ in range(5)]
    now += 60
    still_uneasy = backoff.next_pause_s()
    now += 61

    assert growing == [0.25, 0.5, 1.0, 1.5, 1.5]
    assert still_uneasy == 1.5
    assert backoff.next_pause_s() == 0.25


async def test_driver_that_hangs_while_it_is_opened_is_a_problem(
    open_telemetry: OpenTelemetry, gpu: SimulatedGpu
) -> None:
    gpu.hang("nvmlInitWithFlags")

    telemetry = await open_telemetry(SamplerPolicy(discovery_s=0.5, first_pause_s=60.0))

    assert "the NVIDIA driver did not answer within 0.5 s" in telemetry.problems[0]
    assert telemetry.gpus() == ()


async def test_closing_gives_the_library_back_and_leaves_no_process(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    (sampler,) = samplers()

    await telemetry.close()
    await telemetry.close()

    assert gpu.state.shutdown_count == 1
    assert not sampler.is_running()
    with pytest.raises(TelemetryError, match="found: none"):
        await telemetry.sample(HOST)


async def test_closing_does_not_wait_for_a_hung_driver(
    telemetry: Telemetry, gpu: SimulatedGpu
) -> None:
    (sampler,) = samplers()
    gpu.hang(MEMORY_CALL)
    asked = asyncio.create_task(error_of(telemetry))
    await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE_S):
        await telemetry.close()

    assert not sampler.is_running()
    assert "stopped" in await asked


PARENT = """
import asyncio, os, sys
from supervisor.telemetry.telemetry import Telemetry

async def main():
    async with Telemetry(vendors=("NVIDIA",)) as telemetry:
        print("open", flush=True)
        await telemetry.sample("gpu0") if sys.argv[1] == "hung" else None
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("driver", ["idle", "hung"])
def test_sampler_does_not_outlive_a_killed_controller(gpu: SimulatedGpu, driver: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, driver], env=gpu.full_environment(), stdout=subprocess.PIPE
    ) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline() == b"open\n"
        (sampler,) = psutil.Process(controller.pid).children()
        if driver == "hung":
            gpu.hang("*")
        controller.send_signal(signal.SIGKILL)

    async def is_gone() -> None:
        await until(lambda: not sampler.is_running() or sampler.status() == psutil.STATUS_ZOMBIE)

    asyncio.run(is_gone())


def test_it_works_on_the_event_loop_that_the_server_runs_on(gpu: SimulatedGpu) -> None:
    async def hang_and_recover() -> MemorySample:
        environ = gpu.full_environment()
        async with Telemetry(environ=environ, vendors=("NVIDIA",), policy=FAST) as telemetry:
            gpu.hang(MEMORY_CALL)
            assert "did not answer" in await error_of(telemetry)
            gpu.heal()
            return await until_sampled(telemetry)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(hang_and_recover()).device == "gpu0"


def test_answer_that_came_while_the_event_loop_was_held_up_counts(gpu: SimulatedGpu) -> None:
    async def hold_up() -> MemorySample:
        environ = gpu.full_environment()
        async with Telemetry(environ=environ, vendors=("NVIDIA",), policy=FAST) as telemetry:
            asked = asyncio.create_task(telemetry.sample("gpu0"))
            await asyncio.sleep(0)
            time.sleep(2 * FAST.deadline_s)  # noqa: ASYNC251 - it is what is tested
            return await asked

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(hold_up()).device == "gpu0"


@pytest.mark.parametrize("steps", range(8))
async def test_opening_that_is_cancelled_at_any_step_leaves_no_process(
    gpu: SimulatedGpu, steps: int
) -> None:
    before = psutil.Process().children()
    telemetry = Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",), policy=FAST)
    opening = asyncio.create_task(telemetry.__aenter__())
    for _ in range(steps):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    await telemetry.close()
    assert psutil.Process().children() == before
