"""One controller per data folder, and no server that a killed one left."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.core.machine.events import BackendExited, BackendSpawned
from supervisor.engine.servers.instance import Instance
from supervisor.errors import SupervisorError


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
