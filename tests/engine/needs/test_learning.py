"""Learning while servers serve: whose memory counts, when, and what is written of it."""

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from immutables import Map
from lab.drivers.nvidia import GIB, SimulatedGpu
from structlog.testing import capture_logs

from supervisor.config.configuration import ResolvedModel
from supervisor.config.profile import Profile
from supervisor.core.machine.events import BackendExited, BackendSpawned
from supervisor.core.machine.footprint import Baseline, Footprint
from supervisor.core.machine.memory import MemorySample
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Backend, BackendState, Mode, Target
from supervisor.core.sizing.estimate import MemoryEstimate
from supervisor.core.sizing.learned import SETTLING_READINGS, LearnedPeak
from supervisor.engine.models.page_cache import mapped_file_bytes
from supervisor.engine.needs.assessment import Assessment, Candidate, DeviceEstimate
from supervisor.engine.needs.learned_store import FILE_NAME, LearnedStore
from supervisor.engine.needs.learning import Learner
from supervisor.errors import TelemetryError
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.port import HOST, DeviceInfo, DeviceReading, ProcessUse
from supervisor.telemetry.telemetry import Telemetry

GPU = "gpu0"
TODAY = "2026-11-21"
IDENTITY = "chat on gpu0"

CANDIDATE = Candidate(
    resolved=ResolvedModel(
        name="chat",
        path=Path("/models/chat.gguf"),
        reference="chat.gguf",
        mode=Mode.GENERATION,
        profile_name="p",
        profile=Profile(mode=Mode.GENERATION),
    ),
    build=None,
    file=None,
    settings=None,
)


def assessed(*, estimated_bytes: int = 1000, weights_bytes: int = 400) -> Assessment:
    memory = MemoryEstimate(
        weights_bytes=weights_bytes,
        kv_bytes=0,
        compute_bytes=estimated_bytes - weights_bytes,
        total_bytes=estimated_bytes,
        host_output_bytes=0,
        explanation="",
    )
    return Assessment(
        candidate=CANDIDATE,
        device=GPU,
        need_bytes=estimated_bytes,
        identity=IDENTITY,
        estimate=DeviceEstimate(memory=memory, output_bytes=0, context_bytes=0),
    )


@dataclass
class FakeDevices:
    """A GPU that answers what the test says."""

    used_bytes: int = 0
    own_bytes: int | None = None
    processes: tuple[ProcessUse, ...] | None = None
    fault: str | None = None
    shares_host_memory: bool = False
    asked: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def devices(self) -> tuple[DeviceInfo, ...]:
        return (
            DeviceInfo(
                device=GPU,
                name="GPU",
                vendor="NVIDIA",
                total_bytes=10_000,
                shares_host_memory=self.shares_host_memory,
            ),
        )

    async def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        self.asked.append((device, tuple(child_pids)))
        if self.fault:
            raise TelemetryError(self.fault)
        sample = MemorySample(
            device=device,
            taken_at=0.0,
            total_bytes=10_000,
            used_bytes=self.used_bytes,
            free_bytes=10_000 - self.used_bytes,
            source="fake",
            children_bytes=self.own_bytes,
        )
        return DeviceReading(sample=sample, processes=self.processes)


class RealHost:
    """This machine's memory."""

    def devices(self) -> tuple[DeviceInfo, ...]:
        return HostMemory().devices()

    async def read(self, device: str, child_pids: Collection[int] = ()) -> DeviceReading:
        return HostMemory().read(device, child_pids)


def target_on(device: str, model: str = "chat") -> Target:
    return Target(model=model, mode=Mode.GENERATION, profile="p", device=device)


def backend_of(
    epoch: int = 1, device: str = GPU, state: BackendState = BackendState.READY
) -> Backend:
    return Backend(
        epoch=epoch,
        target=target_on(device),
        state=state,
        footprint=Footprint.of({device: 1000}),
        started_at=0.0,
        baselines=(Baseline(device=device, used_bytes=500),),
        pid=os.getpid(),
    )


class Learning:
    """The learner under test, and what it stands on."""

    def __init__(self, needs: LearnedStore) -> None:
        self.needs = needs
        self.gpu = FakeDevices()
        self.learner = Learner(
            store=needs, devices=self.gpu, assessed=lambda _: assessed(), today=lambda: TODAY
        )

    async def look(self, *backends: Backend, times: int = 1) -> None:
        for _ in range(times):
            await self.learner.look(backends or (backend_of(),))

    def spawn(self, epoch: int, *beside: Backend) -> None:
        backends = (*beside, backend_of(epoch))
        event = BackendSpawned(at=0.0, epoch=epoch, pid=epoch, address="")
        self.learner.observe(event, Snapshot(devices=Map()), snapshot_of(*backends))

    def learned(self) -> int | None:
        found = self.needs.get(IDENTITY)
        return found.peak_bytes if found else None


def snapshot_of(*backends: Backend) -> Snapshot:
    return Snapshot(devices=Map(), backends=backends)


@pytest.fixture
def needs(tmp_path: Path) -> Iterator[LearnedStore]:
    store = LearnedStore(tmp_path / FILE_NAME)
    yield store
    store.close()


@pytest.fixture
def learning(needs: LearnedStore) -> Learning:
    return Learning(needs)


async def test_peak_of_its_own_share_is_learned_with_its_day(learning: Learning) -> None:
    for own in (700, 900, 800):
        learning.gpu.own_bytes, learning.gpu.used_bytes = own, 9000
        await learning.look()

    assert learning.needs.get(IDENTITY) == LearnedPeak(peak_bytes=900, seen_on=TODAY)
    assert learning.gpu.asked == [(GPU, (os.getpid(),))] * 3


async def test_without_shares_the_growth_of_the_device_is_learned_once_it_has_settled(
    learning: Learning,
) -> None:
    learning.gpu.used_bytes = 1400
    await learning.look(times=SETTLING_READINGS - 1)
    assert learning.learned() is None

    await learning.look()
    assert learning.learned() == 900


@pytest.mark.parametrize("beside_starts_first", [True, False])
async def test_growth_beside_another_server_of_ours_is_never_learned(
    learning: Learning, beside_starts_first: bool
) -> None:
    other = backend_of(epoch=2)
    first, second = (other, backend_of(1)) if beside_starts_first else (backend_of(1), other)
    learning.spawn(second.epoch, first)
    learning.learner.observe(
        BackendExited(at=0.0, epoch=2, exit_code=0), snapshot_of(), snapshot_of()
    )

    learning.gpu.used_bytes = 1400
    await learning.look(times=2 * SETTLING_READINGS)

    assert learning.learned() is None


async def test_growth_is_learned_beside_a_server_on_another_device(learning: Learning) -> None:
    learning.spawn(1, backend_of(2, device=HOST))

    learning.gpu.used_bytes = 1400
    await learning.look(times=SETTLING_READINGS)

    assert learning.learned() == 900


@pytest.mark.parametrize(
    "change",
    [
        lambda gpu: setattr(gpu, "fault", "the driver hangs"),
        lambda gpu: setattr(gpu, "shares_host_memory", True),
        lambda gpu: setattr(
            gpu,
            "processes",
            tuple(ProcessUse(pid=pid, used_bytes=None, name=None) for pid in (7, 8)),
        ),
    ],
    ids=["unreadable", "the host's memory", "another tenant"],
)
async def test_what_may_be_others_is_not_learned(
    learning: Learning, change: Callable[[FakeDevices], None]
) -> None:
    learning.gpu.used_bytes = 1400
    change(learning.gpu)

    await learning.look(times=2 * SETTLING_READINGS)

    assert learning.learned() is None


async def test_a_server_that_is_not_ready_is_not_looked_at(learning: Learning) -> None:
    await learning.look(
        backend_of(state=BackendState.STARTING), backend_of(2, state=BackendState.STOPPING)
    )

    assert learning.gpu.asked == []


async def test_a_new_server_starts_without_what_was_seen_of_the_old_one(
    learning: Learning,
) -> None:
    learning.gpu.own_bytes = 900
    await learning.look()
    learning.needs.forget(IDENTITY)

    learning.gpu.own_bytes = 700
    await learning.look()
    assert learning.learned() is None  # the same server: it is forgotten, and its peak is behind it

    await learning.look(backend_of(2))
    assert learning.learned() == 700


async def test_a_need_that_is_stated_is_not_learned(needs: LearnedStore) -> None:
    gpu = FakeDevices(own_bytes=900)
    learner = Learner(store=needs, devices=gpu, assessed=lambda _: None)

    await learner.look([backend_of()])

    assert gpu.asked == []


async def test_far_more_than_estimated_is_learned_with_a_warning(learning: Learning) -> None:
    learning.gpu.own_bytes = 2 * 1000 + 1
    with capture_logs() as lines:
        await learning.look(times=2)

    assert learning.learned() == 2001
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("need.far_beyond_estimate", "warning")
    ]


@pytest.mark.parametrize("weights_bytes", [4096, 10**15])
async def test_on_the_host_a_share_counts_what_it_holds_and_its_mapped_weights(
    needs: LearnedStore, weights_bytes: int
) -> None:
    expected = assessed(estimated_bytes=1000, weights_bytes=weights_bytes)
    learner = Learner(store=needs, devices=RealHost(), assessed=lambda _: expected)

    await learner.look([backend_of(device=HOST)])

    found = needs.get(IDENTITY)
    held = HostMemory().sample(HOST, (os.getpid(),)).children_bytes
    assert found is not None
    assert held is not None
    mapped = min(mapped_file_bytes((os.getpid(),)), weights_bytes)
    assert found.peak_bytes == pytest.approx(held + mapped, rel=0.1)


@pytest.mark.parametrize(
    ("own_bytes", "readings", "learned"),
    [
        (8 * GIB, 1, 8 * GIB),
        (None, SETTLING_READINGS - 1, None),  # the driver lists it, and does not tell its share
        (None, SETTLING_READINGS, 11 * GIB - 500),
    ],
)
async def test_what_a_driver_tells_is_learned_through_the_real_bindings(
    needs: LearnedStore,
    tmp_path: Path,
    own_bytes: int | None,
    readings: int,
    learned: int | None,
) -> None:
    gpu = SimulatedGpu(tmp_path)
    gpu.set_used(11 * GIB)
    gpu.add_process(os.getpid(), own_bytes)
    expected = assessed(estimated_bytes=8 * GIB)
    async with Telemetry(environ=gpu.full_environment(), vendors=("NVIDIA",)) as telemetry:
        learner = Learner(store=needs, devices=telemetry, assessed=lambda _: expected)
        for _ in range(readings):
            await learner.look([backend_of()])

    found = needs.get(IDENTITY)
    assert (found.peak_bytes if found else None) == learned
