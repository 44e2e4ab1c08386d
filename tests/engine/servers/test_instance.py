"""One controller per data folder, and no server that a killed one left."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from structlog.testing import capture_logs

from supervisor.core.machine.events import BackendExited, BackendSpawned
from supervisor.engine.servers.instance import Instance
from supervisor.errors import SupervisorError
from supervisor.observability.impairments import Impairments


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a group of its own, as a server has."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def children(folder: Path) -> list[int]:
    return [child["pid"] for child in json.loads((folder / "children.json").read_text())]


def test_second_controller_on_a_folder_is_refused_with_the_pid_of_the_first(
    tmp_path: Path,
) -> None:
    first = Instance(tmp_path)

    with pytest.raises(SupervisorError, match=f"in use by the controller with pid {os.getpid()}"):
        Instance(tmp_path)

    first.release()
    Instance(tmp_path).release()


def test_running_servers_are_noted_until_they_are_reaped(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    instance = Instance(tmp_path)

    instance.observe(BackendSpawned(at=0.0, epoch=1, pid=sleeper.pid, address="a"))
    assert children(tmp_path) == [sleeper.pid]
    instance.observe(BackendExited(at=1.0, epoch=1, exit_code=0))

    assert children(tmp_path) == []
    instance.release()


def test_server_that_a_killed_controller_left_is_ended(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    started_at = psutil.Process(sleeper.pid).create_time()
    noted = [{"pid": sleeper.pid, "started_at": started_at}]
    (tmp_path / "children.json").write_text(json.dumps(noted))

    Instance(tmp_path).release()

    assert not psutil.pid_exists(sleeper.pid)


def test_process_that_was_given_the_same_pid_later_is_left_alone(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    noted = [{"pid": sleeper.pid, "started_at": 1.0}]
    (tmp_path / "children.json").write_text(json.dumps(noted))

    Instance(tmp_path).release()

    assert sleeper.poll() is None


def test_damaged_note_of_children_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "children.json").write_text("{nonsense")

    Instance(tmp_path).release()

    assert not (tmp_path / "children.json").exists()


def test_disk_that_takes_nothing_is_noted_and_what_runs_is_written_when_it_does(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    impairments = Impairments()
    instance = Instance(tmp_path, impairments)
    (tmp_path / "children.tmp").mkdir()  # where the file is written first

    with capture_logs() as lines:
        instance.observe(BackendSpawned(at=0.0, epoch=1, pid=sleeper.pid, address="a"))
        instance.observe(BackendSpawned(at=0.0, epoch=2, pid=os.getpid(), address="b"))

    assert [line["event"] for line in lines] == ["instance.not_written"]
    assert "children.json" in impairments.describe()[0]
    (tmp_path / "children.tmp").rmdir()
    impairments._current["children.json"].retry()  # type: ignore[misc]
    assert impairments.describe() == []
    assert children(tmp_path) == [sleeper.pid, os.getpid()]
    instance.release()


def test_folder_that_was_deleted_is_claimed_anew_before_anything_is_written_there(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    instance = Instance(folder)
    shutil.rmtree(folder)

    instance.observe(BackendSpawned(at=0.0, epoch=1, pid=sleeper.pid, address="a"))

    assert children(folder) == [sleeper.pid]
    with pytest.raises(SupervisorError, match="in use by the controller"):
        Instance(folder)
    assert sleeper.poll() is None
    instance.release()


def test_folder_that_another_claimed_after_it_was_deleted_is_left_to_that_one(
    tmp_path: Path, sleeper: "subprocess.Popen[bytes]"
) -> None:
    impairments = Impairments()
    folder = tmp_path / "data"
    folder.mkdir()
    first = Instance(folder, impairments)
    shutil.rmtree(folder)
    folder.mkdir()
    second = Instance(folder)

    first.observe(BackendSpawned(at=0.0, epoch=1, pid=sleeper.pid, address="a"))

    assert children(folder) == []
    assert "in use by the controller" in impairments.describe()[0]
    first.release()
    second.release()
