"""Host memory against a real child, and against cgroups laid out in a temporary folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.core.machine.memory import MemorySample
from supervisor.errors import TelemetryError
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.port import HOST

MIB = 1024**2

# Allocates on `grow <MiB>`, maps a file's pages on `map <path>`, and says so when it is done.
CHILD = """
import mmap, sys
kept = []
print("ready", flush=True)
for line in sys.stdin:
    word, argument = line.split()
    if word == "grow":
        kept.append(bytearray(b"x") * (int(argument) * 1024 * 1024))
    else:
        with open(argument, "rb") as file:
            kept.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        sum(kept[-1][::4096])
    print("done", flush=True)
"""


class Child:
    """A small process that takes memory when told."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._wait()

    def do(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        self._wait()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _wait(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline()


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.end()


def read(reader: HostMemory, *pids: int) -> MemorySample:
    return reader.sample(HOST, pids)


def read_children_bytes(*pids: int) -> int:
    share = read(HostMemory(), *pids).children_bytes
    assert share is not None
    return share


def test_allocation_of_a_child_shows_in_the_childrens_share(child: Child) -> None:
    before = read_children_bytes(child.process.pid)

    child.do("grow 64")

    assert 64 * MIB <= read_children_bytes(child.process.pid) - before < 72 * MIB


def test_allocation_of_a_child_leaves_less_free(child: Child) -> None:
    before = read(HostMemory()).free_bytes

    child.do("grow 512")  # much more than what other programs take or give back meanwhile

    assert before - read(HostMemory()).free_bytes > 128 * MIB


def test_mapped_file_pages_are_not_held_by_the_child(child: Child, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"w" * 64 * MIB)
    before = read_children_bytes(child.process.pid)

    child.do(f"map {weights}")

    assert psutil.Process(child.process.pid).memory_info().rss > 64 * MIB
    assert read_children_bytes(child.process.pid) - before < 8 * MIB


def test_share_of_several_children_is_summed(child: Child) -> None:
    other = Child()
    try:
        child.do("grow 16")
        other.do("grow 16")
        assert read_children_bytes(child.process.pid, other.process.pid) > 32 * MIB
    finally:
        other.end()


def test_child_that_is_gone_holds_nothing(child: Child) -> None:
    child.do("grow 16")
    child.end()

    assert read_children_bytes(child.process.pid) == 0


def test_child_that_is_dead_and_not_reaped_holds_nothing(child: Child) -> None:
    child.do("grow 16")
    child.process.kill()
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)

    assert psutil.Process(child.process.pid).status() == psutil.STATUS_ZOMBIE
    assert read_children_bytes(child.process.pid) == 0


def test_kernel_that_does_not_split_resident_memory_leaves_the_share_unknown(
    tmp_path: Path,
) -> None:
    status = tmp_path / "proc/5/status"
    status.parent.mkdir(parents=True)
    status.write_text("Name:\tserver\nVmRSS:\t  2048 kB\n")

    assert read(HostMemory(tmp_path), 5).children_bytes is None


def test_share_of_a_child_is_read_from_counters_and_not_by_walking_its_pages(
    child: Child, tmp_path: Path
) -> None:
    """`status` holds counters; `smaps` and `smaps_rollup` take longer the more is resident."""
    child.do("grow 64")
    only_status = tmp_path / "proc" / str(child.process.pid) / "status"
    only_status.parent.mkdir(parents=True)
    only_status.symlink_to(f"/proc/{child.process.pid}/status")

    share = read(HostMemory(tmp_path), child.process.pid).children_bytes

    assert share is not None
    assert share > 64 * MIB


def test_sample_says_when_and_from_where() -> None:
    sample = read(HostMemory(Path("/nowhere"), clock=lambda: 7.0))

    assert (sample.device, sample.taken_at, sample.source) == (HOST, 7.0, "psutil")
    assert sample.total_bytes == psutil.virtual_memory().total
    assert sample.used_bytes + sample.free_bytes == sample.total_bytes


def test_another_device_than_the_host_is_refused() -> None:
    with pytest.raises(TelemetryError, match="gpu0"):
        HostMemory().sample("gpu0")


class Cgroups:
    """A root folder with cgroups of one version."""

    def __init__(self, root: Path, version: int, own_path: str) -> None:
        self.root = root
        self._version = version
        controllers = "0:" if version == 2 else "4:memory"
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_text(f"9:name=systemd:/x\n{controllers}:{own_path}\n")

    def add(
        self, path: str, *, limit: str, usage_mib: int, inactive: int = 0, active: int = 0
    ) -> None:
        mount = "sys/fs/cgroup" if self._version == 2 else "sys/fs/cgroup/memory"
        folder = self.root / mount / path
        folder.mkdir(parents=True, exist_ok=True)
        limit_file, usage_file, prefix = {
            1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
            2: ("memory.max", "memory.current", ""),
        }[self._version]
        (folder / limit_file).write_text(f"{limit}\n")
        (folder / usage_file).write_text(f"{usage_mib * MIB}\n")
        (folder / "memory.stat").write_text(
            f"anon {usage_mib * MIB}\n"
            f"{prefix}inactive_file {inactive * MIB}\n"
            f"{prefix}active_file {active * MIB}\n"
        )

    def read(self) -> MemorySample:
        return read(HostMemory(self.root))


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_smaller_cgroup_limit_bounds_the_host(tmp_path: Path, version: int) -> None:
    cgroups = Cgroups(tmp_path, version, "/pod/server")
    cgroups.add("pod/server", limit=str(400 * MIB), usage_mib=100)

    sample = cgroups.read()

    assert sample.source == f"cgroup v{version}"
    assert sample.total_bytes == 400 * MIB
    assert sample.used_bytes == 100 * MIB
    assert sample.free_bytes == 300 * MIB


def test_page_cache_of_the_cgroup_counts_as_reclaimable(tmp_path: Path, version: int) -> None:
    cgroups = Cgroups(tmp_path, version, "/pod")
    cgroups.add("pod", limit=str(400 * MIB), usage_mib=390, inactive=200, active=100)

    sample = cgroups.read()

    assert sample.used_bytes == 90 * MIB
    assert sample.free_bytes == 310 * MIB


@pytest.mark.parametrize(
    ("version", "limit"), [(2, "max"), (1, "9223372036854771712")], ids=["v2", "v1"]
)
def test_cgroup_without_a_limit_bounds_nothing(tmp_path: Path, version: int, limit: str) -> None:
    cgroups = Cgroups(tmp_path, version, "/pod")
    cgroups.add("pod", limit=limit, usage_mib=100)

    assert cgroups.read().source == "psutil"


def test_limit_of_an_ancestor_bounds_too(tmp_path: Path, version: int) -> None:
    cgroups = Cgroups(tmp_path, version, "/pod/server")
    cgroups.add("pod", limit=str(300 * MIB), usage_mib=250)
    cgroups.add("pod/server", limit=str(200 * MIB), usage_mib=10)

    sample = cgroups.read()

    assert sample.total_bytes == 200 * MIB
    assert sample.free_bytes == 50 * MIB


def test_containers_own_folder_is_found_where_the_path_is_the_hosts(
    tmp_path: Path, version: int
) -> None:
    cgroups = Cgroups(tmp_path, version, "/kubepods/burstable/pod1/abc")
    cgroups.add("", limit=str(400 * MIB), usage_mib=100)

    assert cgroups.read().free_bytes == 300 * MIB


def test_path_outside_the_mount_is_not_followed(tmp_path: Path, version: int) -> None:
    cgroups = Cgroups(tmp_path, version, "/../../other")
    cgroups.add("../../other", limit=str(100 * MIB), usage_mib=1)
    cgroups.add("", limit=str(400 * MIB), usage_mib=100)

    assert cgroups.read().total_bytes == 400 * MIB


def test_more_use_than_the_limit_is_nothing_free(tmp_path: Path, version: int) -> None:
    cgroups = Cgroups(tmp_path, version, "/")
    cgroups.add("", limit=str(100 * MIB), usage_mib=120)

    assert cgroups.read().free_bytes == 0


def test_limit_whose_use_cannot_be_read_is_an_error(tmp_path: Path, version: int) -> None:
    cgroups = Cgroups(tmp_path, version, "/pod")
    cgroups.add("pod", limit=str(400 * MIB), usage_mib=100)
    mount = "sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory"
    (tmp_path / mount / "pod/memory.stat").unlink()

    with pytest.raises(TelemetryError, match="readable"):
        cgroups.read()
