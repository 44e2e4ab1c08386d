"""The facade: what is found, what is read, and a vendor's library that stops answering."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from typing import ClassVar

import pytest

from supervisor.core.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.port import HOST, DeviceInfo, MemoryReader, VendorAbsentError
from supervisor.telemetry.telemetry import Telemetry, find_readers


class Gpus:
    """A vendor whose devices are as many as `uuids`, and which a test can let hang or fail."""

    vendor: ClassVar[str] = "Acme"
    answers_at_once: ClassVar[bool] = False

    def __init__(self, *uuids: str, fault: TelemetryError | None = None) -> None:
        self.uuids = uuids
        self.fault = fault
        self.answers = threading.Event()
        self.answers.set()
        self.is_reading = threading.Event()
        self.reads: list[tuple[str, tuple[int, ...], str]] = []
        self.closings = 0

    def devices(self) -> tuple[DeviceInfo, ...]:
        self.answers.wait()
        if self.fault:
            raise self.fault
        return tuple(
            DeviceInfo(device=f"gpu{i}", name="G", vendor=self.vendor, total_bytes=8, uuid=uuid)
            for i, uuid in enumerate(self.uuids)
        )

    def read(self, device: str, *, taken_at: float, child_pids: Collection[int]) -> MemorySample:
        self.reads.append((device, tuple(child_pids), threading.current_thread().name))
        self.is_reading.set()
        self.answers.wait()
        if self.fault:
            raise self.fault
        return MemorySample(
            device=device,
            taken_at=taken_at,
            total_bytes=8,
            used_bytes=3,
            free_bytes=5,
            source=self.uuids[int(device[-1])],
        )

    def close(self) -> None:
        self.closings += 1


@pytest.fixture
def gpus() -> Iterator[Gpus]:
    gpus = Gpus("a", "b")
    yield gpus
    gpus.answers.set()  # let a thread that a test left hanging end


def open_telemetry(*readers: MemoryReader, deadline_s: float = 5.0) -> Telemetry:
    return Telemetry(readers, clock=lambda: 42.0, deadline_s=deadline_s, discovery_s=deadline_s)


def test_gpus_are_numbered_across_vendors_and_the_host_keeps_its_name(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus, Gpus("c"), HostMemory())

    found = [(info.device, info.uuid) for info in telemetry.devices()]

    assert found == [("gpu0", "a"), ("gpu1", "b"), ("gpu2", "c"), (HOST, None)]
    assert telemetry.problems == ()


async def test_sample_reaches_the_device_of_the_right_vendor(gpus: Gpus) -> None:
    other = Gpus("c")
    telemetry = open_telemetry(gpus, other, HostMemory())

    sample = await telemetry.sample("gpu2", (71,))

    assert (sample.device, sample.source, sample.taken_at) == ("gpu2", "c", 42.0)
    assert [(device, pids) for device, pids, _ in other.reads] == [("gpu0", (71,))]


async def test_vendors_libraries_run_off_the_event_loop(gpus: Gpus) -> None:
    await open_telemetry(gpus).sample("gpu0")

    assert gpus.reads[0][2] == "Acme driver"


def test_device_for_a_gpu_backend_is_the_first_gpu(gpus: Gpus) -> None:
    telemetry = open_telemetry(HostMemory(), gpus)

    assert telemetry.device_for("gpu") == "gpu0"
    assert telemetry.device_for("cpu") == HOST


def test_device_for_a_gpu_backend_without_gpus_is_the_host() -> None:
    assert open_telemetry(Gpus(), HostMemory()).device_for("gpu") == HOST


def test_vendor_that_does_not_work_is_a_problem_and_not_the_end() -> None:
    broken = Gpus(fault=TelemetryError("cannot open: reboot the node"))

    telemetry = open_telemetry(broken, Gpus("c"), HostMemory())

    assert telemetry.problems == ("cannot open: reboot the node",)
    assert [info.device for info in telemetry.devices()] == ["gpu0", HOST]


def test_vendor_that_is_not_here_is_no_problem() -> None:
    telemetry = open_telemetry(Gpus(fault=VendorAbsentError("nothing here")), HostMemory())

    assert telemetry.problems == ()
    assert telemetry.device_for("gpu") == HOST


def test_vendor_that_hangs_while_it_is_opened_is_a_problem(gpus: Gpus) -> None:
    gpus.answers.clear()

    telemetry = open_telemetry(gpus, HostMemory(), deadline_s=0.05)

    assert len(telemetry.problems) == 1
    assert "the Acme driver did not answer within 0.05 s" in telemetry.problems[0]
    assert telemetry.device_for("gpu") == HOST


async def test_failure_of_a_read_reaches_the_caller(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus)
    gpus.fault = TelemetryError("the GPU is lost")

    with pytest.raises(TelemetryError, match="the GPU is lost"):
        await telemetry.sample("gpu0")


async def test_unknown_device_is_refused_with_those_that_are_known(gpus: Gpus) -> None:
    with pytest.raises(TelemetryError, match=r"'gpu7' here; found: gpu0, gpu1, host"):
        await open_telemetry(gpus, HostMemory()).sample("gpu7")


async def test_hung_driver_is_given_up_and_the_host_still_read(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus, HostMemory(), deadline_s=0.05)
    gpus.answers.clear()

    with pytest.raises(TelemetryError, match=r"did not answer within 0\.05 s"):
        await telemetry.sample("gpu0")

    assert (await telemetry.sample(HOST)).free_bytes > 0


async def test_hung_driver_does_not_hold_another_vendor_up(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus, Gpus("c"), deadline_s=5.0)
    gpus.answers.clear()
    hung = asyncio.create_task(telemetry.sample("gpu0"))

    assert (await telemetry.sample("gpu2")).source == "c"

    gpus.answers.set()
    assert (await hung).source == "a"


async def test_hung_driver_gets_no_further_calls_until_it_answers(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus, deadline_s=0.05)
    gpus.answers.clear()
    with pytest.raises(TelemetryError, match="within"):
        await telemetry.sample("gpu0")

    with pytest.raises(TelemetryError, match="still does not answer"):
        await telemetry.sample("gpu0")
    assert len(gpus.reads) == 1

    gpus.answers.set()
    async with asyncio.timeout(10):
        while True:
            try:
                sample = await telemetry.sample("gpu1")
                break
            except TelemetryError:
                await asyncio.sleep(0.01)
    assert sample.source == "b"


async def test_call_that_gave_up_while_it_waited_its_turn_is_never_made(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus, deadline_s=0.05)
    gpus.answers.clear()
    calls = [telemetry.sample("gpu0"), telemetry.sample("gpu1")]

    results = await asyncio.gather(*calls, return_exceptions=True)
    with pytest.raises(TelemetryError, match="still does not answer"):
        await telemetry.sample("gpu0")
    gpus.answers.set()
    telemetry.close()

    assert all(isinstance(result, TelemetryError) for result in results)
    assert [device for device, _, _ in gpus.reads] == ["gpu0"]


async def test_cancelling_a_sample_leaves_the_next_one_working(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus)
    gpus.answers.clear()
    task = asyncio.create_task(telemetry.sample("gpu0"))
    assert await asyncio.to_thread(gpus.is_reading.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    gpus.answers.set()

    assert (await telemetry.sample("gpu1")).source == "b"


async def test_close_gives_every_library_back_once(gpus: Gpus) -> None:
    telemetry = open_telemetry(gpus, HostMemory())

    telemetry.close()
    telemetry.close()

    assert gpus.closings == 1
    with pytest.raises(TelemetryError, match="found: none"):
        await telemetry.sample(HOST)


def test_readers_of_this_machine_end_with_the_host() -> None:
    readers = find_readers()

    assert [reader.vendor for reader in readers] == ["NVIDIA", "AMD", "host"]
    assert [reader.answers_at_once for reader in readers] == [False, False, True]


def test_this_machine_can_be_sampled() -> None:
    telemetry = Telemetry(find_readers())
    try:
        assert telemetry.devices()[-1].device == HOST
        assert asyncio.run(telemetry.sample(HOST)).total_bytes > 0
    finally:
        telemetry.close()


def test_importing_the_facade_loads_no_vendors_bindings() -> None:
    code = (
        "import sys, supervisor.telemetry.telemetry; "
        "sys.exit(', '.join({'pynvml', 'amdsmi', 'psutil'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stderr.strip() == ""
