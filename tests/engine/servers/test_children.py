"""No server that a killed controller left; and no other process ended in its stead."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from supervisor.core.machine.events import BackendExited, BackendSpawned
from supervisor.data_folder import DataFolder
from supervisor.engine.servers.children import Children, running_children
from supervisor.engine.servers.descendants import MARK_VARIABLE, has_mark, mark_of, new_mark
from supervisor.errors import SupervisorError
from supervisor.observability.impairments import Impairments

Sleeper = subprocess.Popen[bytes]
StartSleeper = Callable[..., Sleeper]


@pytest.fixture
def data_of() -> Iterator[Callable[[Path], DataFolder]]:
    """Claims data folders; they are given back when the test is over."""
    with ExitStack() as stack:

        def claim(path: Path) -> DataFolder:
            data = asyncio.run(DataFolder.claim(path))
            stack.callback(data.release)
            return data

        yield claim


@pytest.fixture
def data(tmp_path: Path, data_of: Callable[[Path], DataFolder]) -> DataFolder:
    return data_of(tmp_path / "data")


@pytest.fixture
def start_sleeper() -> Iterator[StartSleeper]:
    """Starts processes with a group of their own, as servers have; marked, unless `mark` is ""."""
    with ExitStack() as stack:

        def start(mark: str | None = None, *, code: str = "") -> Sleeper:
            process = subprocess.Popen(
                [sys.executable, "-c", f"{code}\nimport time; print(flush=True); time.sleep(60)"],
                start_new_session=True,
                env={**os.environ, MARK_VARIABLE: new_mark("", 1) if mark is None else mark},
                stdout=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None
            process.stdout.readline()  # the program has replaced ours, with its environment
            return process

        yield start


def noted_in(data: DataFolder) -> list[dict[str, Any]]:
    noted: list[dict[str, Any]] = json.loads((data.path / "children.json").read_text())
    return noted


def noted_pids(data: DataFolder) -> list[int]:
    return [child["pid"] for child in noted_in(data)]


def spawned(process: Sleeper, epoch: int = 1) -> BackendSpawned:
    return BackendSpawned(at=0.0, epoch=epoch, pid=process.pid, address="a")


def leave_note(data: DataFolder, sleeper: Sleeper, **changes: Any) -> None:
    """Write the file that a controller leaves when it is killed, with changes."""
    Children(data).observe(spawned(sleeper))
    [noted] = noted_in(data)
    (data.path / "children.json").write_text(json.dumps([noted | changes]))


def test_running_servers_are_noted_until_they_are_reaped(
    data: DataFolder, start_sleeper: StartSleeper
) -> None:
    sleeper = start_sleeper()
    children = Children(data)

    children.observe(spawned(sleeper))
    assert noted_pids(data) == [sleeper.pid]
    assert running_children(data.path) == (sleeper.pid,)
    children.observe(BackendExited(at=1.0, epoch=1, exit_code=0))

    assert noted_pids(data) == []
    children.release()
    assert not (data.path / "children.json").exists()


def test_server_that_a_killed_controller_left_is_ended_with_all_that_it_started(
    data: DataFolder, start_sleeper: StartSleeper
) -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        "one = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "print(one.pid, flush=True)"
    )
    server = start_sleeper(code=code)
    leave_note(data, server)
    marked = [pid for pid in psutil.pids() if has_mark(pid, str(mark_of(server.pid)))]

    with capture_logs() as lines:
        children = Children(data)
        children.release()

    assert children.orphans_at is not None
    assert len(marked) == 2
    ended = [line["pid"] for line in lines if line["event"] == "instance.orphan_ended"]
    assert sorted(ended) == sorted(marked)
    assert server.wait() == -signal.SIGKILL


def test_server_that_was_started_as_its_controller_was_killed_is_ended(
    data: DataFolder, start_sleeper: StartSleeper
) -> None:
    """It is not noted yet. What another folder's controller has started is left alone."""
    ours = start_sleeper(new_mark(data.identity, 1))
    others = start_sleeper(new_mark("0123456789abcdef", 1))

    children = Children(data)

    assert ours.wait() == -signal.SIGKILL
    assert others.poll() is None
    assert children.orphans_at is not None
    children.release()


def worker_of(start_sleeper: StartSleeper, env: dict[str, str]) -> tuple[Sleeper, psutil.Process]:
    """A server with a process in its session that has these variables, and no mark."""
    code = (
        "import subprocess\n"
        f"worker = subprocess.Popen(['/bin/sleep', '60'], env={env!r}, stdout=subprocess.DEVNULL)\n"
    )
    server = start_sleeper(code=code)
    (worker,) = psutil.Process(server.pid).children()
    return server, worker


def test_worker_whose_title_has_overwritten_its_environment_is_ended_behind_its_server(
    data: DataFolder, start_sleeper: StartSleeper, is_alive: Callable[[int], bool]
) -> None:
    server, worker = worker_of(start_sleeper, {})
    leave_note(data, server)
    server.kill()
    server.wait()

    Children(data).release()

    assert not is_alive(worker.pid)


def test_process_with_an_environment_of_its_own_is_left_alone_in_such_a_session(
    data: DataFolder, start_sleeper: StartSleeper, kill_later: list[int]
) -> None:
    server, worker = worker_of(start_sleeper, {"SOMEBODY": "else"})
    kill_later.append(worker.pid)
    leave_note(data, server)
    server.kill()
    server.wait()

    Children(data).release()

    assert worker.is_running()


def test_session_of_another_that_was_given_the_pid_is_left_alone(
    data: DataFolder, start_sleeper: StartSleeper, kill_later: list[int]
) -> None:
    server, worker = worker_of(start_sleeper, {})
    kill_later.append(worker.pid)
    leave_note(data, server, started_ticks=1, mark="1-a")

    Children(data).release()

    assert worker.is_running()


@pytest.mark.parametrize("changes", [{"boot_id": "another"}, {"mark": "2-b"}, {"folder": "copied"}])
def test_process_that_is_not_the_one_that_was_noted_is_left_alone(
    data: DataFolder, start_sleeper: StartSleeper, changes: dict[str, Any]
) -> None:
    sleeper = start_sleeper()
    leave_note(data, sleeper, **changes)

    Children(data).release()

    assert sleeper.poll() is None


def test_process_that_somebody_wrote_into_the_file_is_left_alone_and_named(
    data: DataFolder, start_sleeper: StartSleeper
) -> None:
    sleeper = start_sleeper(mark="")
    leave_note(data, sleeper, mark="1-a")

    with capture_logs() as lines:
        Children(data).release()

    assert sleeper.poll() is None
    assert [(line["event"], line["pid"]) for line in lines] == [
        ("instance.left_alone", sleeper.pid)
    ]


def test_process_that_was_given_the_same_pid_later_is_not_a_running_server(
    data: DataFolder, start_sleeper: StartSleeper
) -> None:
    leave_note(data, start_sleeper(), started_ticks=1)
    assert running_children(data.path) == ()


@pytest.mark.parametrize(
    "text",
    [
        "{nonsense",
        "\x00",
        "5",
        '[{"pid": -1, "started_ticks": 1, "boot_id": "b", "mark": "m", "folder": "f"}]',
        '[{"pid": 1, "started_ticks": 1, "boot_id": "b", "mark": "m", "folder": "f"}]',
        '[{"pid": "x", "started_ticks": 1, "boot_id": "b", "mark": "m", "folder": "f"}]',
        '[{"pid": 4711, "started_at": 1.0}]',
    ],
)
def test_note_that_cannot_be_read_is_set_aside_and_everything_else_goes_on(
    data: DataFolder, text: str
) -> None:
    (data.path / "children.json").write_text(text)

    with capture_logs() as lines:
        Children(data).release()

    assert [line["event"] for line in lines] == ["data.set_aside"]
    assert (data.path / "children.json.set-aside").read_text() == text
    assert not (data.path / "children.json").exists()


def test_note_is_never_written_through_a_link(data: DataFolder, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    for name in ("children.json", "children.json.new"):
        (data.path / name).symlink_to(precious)

    Children(data)

    assert precious.read_text() == "keep me"
    assert noted_pids(data) == []


def test_disk_that_takes_nothing_is_noted_and_what_runs_is_written_when_it_does(
    data: DataFolder, start_sleeper: StartSleeper
) -> None:
    impairments = Impairments()
    sleepers = [start_sleeper(), start_sleeper()]
    children = Children(data, impairments)
    (data.path / "children.json.new").mkdir()  # where the file is written first

    with capture_logs() as lines:
        for epoch, sleeper in enumerate(sleepers):
            children.observe(spawned(sleeper, epoch))

    assert [line["event"] for line in lines] == ["children.not_written"]
    assert "children.json" in impairments.describe()[0]
    (data.path / "children.json.new").rmdir()
    impairments._current["children.json"].retry()  # type: ignore[misc]
    assert impairments.describe() == []
    assert noted_pids(data) == [sleeper.pid for sleeper in sleepers]


def test_folder_that_was_deleted_is_claimed_anew_before_anything_is_written_there(
    data: DataFolder, data_of: Callable[[Path], DataFolder], start_sleeper: StartSleeper
) -> None:
    sleeper = start_sleeper()
    children = Children(data)
    shutil.rmtree(data.path)

    children.observe(spawned(sleeper))

    assert noted_pids(data) == [sleeper.pid]
    with pytest.raises(SupervisorError, match="in use by the controller"):
        data_of(data.path)
    assert sleeper.poll() is None


def test_folder_that_another_claimed_after_it_was_deleted_is_left_to_that_one(
    data: DataFolder, data_of: Callable[[Path], DataFolder], start_sleeper: StartSleeper
) -> None:
    impairments = Impairments()
    first = Children(data, impairments)
    shutil.rmtree(data.path)
    Children(data_of(data.path))

    first.observe(spawned(start_sleeper()))

    assert noted_pids(data) == []
    assert "in use by the controller" in impairments.describe()[0]
    first.release()
    assert noted_pids(data) == []
