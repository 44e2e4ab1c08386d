"""Child processes: what they print, how they end, and that nothing of them is left behind."""

import asyncio
import errno
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil
import pytest

from supervisor.engine.port import Address
from supervisor.engine.servers.addresses import is_listening
from supervisor.engine.servers.descendants import MARK_VARIABLE
from supervisor.engine.servers.output import KEPT_LINES
from supervisor.engine.servers.process import ChildProcess, ProcessExit
from supervisor.errors import EngineError
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]
Spawn = Callable[..., ChildProcess]

GRACE_S = 600.0
"""Nobody waits for the end of it, however loaded the machine is."""

IGNORES_SIGTERM = "trap '' TERM; echo up; while :; do sleep 1; done"


def ended_by(number: signal.Signals) -> ProcessExit:
    return ProcessExit(exit_code=None, signal=number)


def ended_with(code: int) -> ProcessExit:
    return ProcessExit(exit_code=code, signal=None)


async def test_a_program_that_is_not_there_is_named(spawn: Spawn) -> None:
    with pytest.raises(EngineError, match=r"/no/such/program cannot be executed: .*No such file"):
        spawn("/no/such/program")


async def test_a_file_that_is_no_program_is_named(spawn: Spawn, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a program")
    with pytest.raises(EngineError, match=r"notes\.txt cannot be executed: .*Permission denied"):
        spawn(str(file))


async def test_start_without_setpriv_names_what_to_install(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"setpriv is not installed.*part of util-linux"):
        spawn("/bin/true")


async def test_an_argument_that_no_program_can_take_is_an_engine_error(spawn: Spawn) -> None:
    with pytest.raises(EngineError, match="null byte"):
        spawn("/bin/true", "a\0b")


async def test_output_is_handed_on_line_by_line_both_streams_in_order(spawn: Spawn) -> None:
    lines: list[str] = []
    child = spawn(sh="echo one; echo two >&2; echo; printf 'no end'", lines=lines)
    assert await child.wait() == ended_with(0)
    assert lines == ["one", "two", "no end"]
    assert list(child.last_lines) == lines


async def test_a_line_is_handed_on_while_the_process_runs(
    spawn: Spawn, eventually: Eventually
) -> None:
    lines: list[str] = []
    child = spawn(sh="echo hello; exec sleep 60", lines=lines)
    await eventually(lambda: lines == ["hello"])
    assert child.is_running


async def test_only_the_last_lines_are_kept_for_error_messages(spawn: Spawn) -> None:
    lines: list[str] = []
    child = spawn(sh="seq 1 1000", lines=lines)
    await child.wait()
    assert len(lines) == 1000
    assert list(child.last_lines) == [str(n) for n in range(1001 - KEPT_LINES, 1001)]


async def test_a_line_without_end_is_cut_and_never_awaited(
    spawn: Spawn, eventually: Eventually
) -> None:
    lines: list[str] = []
    child = spawn(sh="head -c 300000 /dev/zero | tr '\\0' x; exec sleep 60", lines=lines)
    await eventually(lambda: sum(map(len, lines)) > 280_000)
    assert child.is_running
    assert max(map(len, lines)) < 100_000
    await child.stop(0)
    assert "".join(lines) == "x" * 300_000


async def test_a_flood_of_lines_is_read_to_its_end_and_little_of_it_handed_on(spawn: Spawn) -> None:
    lines: list[str] = []
    child = spawn(sh="seq 1 200000", lines=lines)
    async with asyncio.timeout(60):
        await child.wait()
    assert list(child.last_lines)[-1] == "200000"
    assert len(lines) < 100_000


async def test_output_that_is_not_utf8_is_kept_readable(spawn: Spawn) -> None:
    child = spawn(sh=r"printf 'caf\351 ready\n'")
    await child.wait()
    assert list(child.last_lines) == ["caf\N{REPLACEMENT CHARACTER} ready"]


async def test_stopping_asks_with_sigterm_and_hears_the_last_words(
    spawn: Spawn, eventually: Eventually
) -> None:
    child = spawn(sh="trap 'echo bye; exit 3' TERM; echo up; sleep 60 & wait")
    await eventually(lambda: child.last_lines)
    assert await child.stop(30) == ended_with(3)
    assert list(child.last_lines) == ["up", "bye"]
    assert not child.is_running


async def test_a_process_without_handler_ends_by_sigterm_at_once(spawn: Spawn) -> None:
    child = spawn("/bin/sleep", "60")
    async with asyncio.timeout(GRACE_S / 10):
        assert await child.stop(GRACE_S) == ended_by(signal.SIGTERM)


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(
    spawn: Spawn, eventually: Eventually
) -> None:
    child = spawn(sh=IGNORES_SIGTERM)
    await eventually(lambda: child.last_lines)
    started_at = time.monotonic()
    assert await child.stop(0.2) == ended_by(signal.SIGKILL)
    assert time.monotonic() - started_at >= 0.2


async def test_a_second_stop_may_be_less_patient(spawn: Spawn, eventually: Eventually) -> None:
    child = spawn(sh=IGNORES_SIGTERM)
    await eventually(lambda: child.last_lines)
    patient = asyncio.create_task(child.stop(60))
    assert await child.stop(0) == ended_by(signal.SIGKILL)
    assert await patient == ended_by(signal.SIGKILL)


async def test_a_waiter_that_is_cancelled_leaves_the_watch_running(spawn: Spawn) -> None:
    child = spawn("/bin/sleep", "60")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(child.wait(), 0.01)
    assert await child.stop(30) == ended_by(signal.SIGTERM)


async def test_stopping_what_has_ended_tells_how_it_ended(spawn: Spawn) -> None:
    child = spawn(sh="exit 7")
    await child.wait()
    assert await child.stop(30) == ended_with(7)


async def test_what_the_child_leaves_in_its_group_dies_with_it(
    spawn: Spawn, is_alive: Callable[[int], bool]
) -> None:
    child = spawn(sh="sleep 60 & echo $!; exit 1")
    assert await child.wait() == ended_with(1)
    assert not is_alive(int(child.last_lines[0]))


async def test_grandchildren_that_ignore_sigterm_die_when_the_child_has_obeyed(
    spawn: Spawn, eventually: Eventually, is_alive: Callable[[int], bool]
) -> None:
    child = spawn(sh=f"({IGNORES_SIGTERM}) & echo $!; trap 'exit 0' TERM; wait")
    await eventually(lambda: len(child.last_lines) == 2)
    grandchild = next(int(line) for line in child.last_lines if line.isdigit())
    assert is_alive(grandchild)
    await child.stop(30)
    assert not is_alive(grandchild)


async def test_a_pipe_held_open_by_a_stranger_does_not_hold_up_the_end(
    spawn: Spawn, eventually: Eventually, is_alive: Callable[[int], bool], kill_later: list[int]
) -> None:
    child = spawn(sh="(env -i setsid sh -c 'echo $$; exec sleep 60' &); sleep 60 & wait")
    await eventually(lambda: child.last_lines)
    stranger = int(child.last_lines[0])
    kill_later.append(stranger)
    async with asyncio.timeout(PATIENCE_S):
        assert await child.stop(GRACE_S) == ended_by(signal.SIGTERM)
    assert is_alive(stranger)


async def test_a_process_that_cannot_be_watched_is_ended_and_fails_the_start(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, is_alive: Callable[[int], bool]
) -> None:
    seen: list[int] = []

    def run_out(pid: int) -> int:
        seen.append(pid)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", run_out)
    with pytest.raises(EngineError, match=r"cannot be watched: .*Too many open files"):
        spawn("/bin/sleep", "60")
    (pid,) = seen
    assert not is_alive(pid)


async def test_what_it_leaves_in_its_group_dies_though_descriptors_have_run_out(
    spawn: Spawn, eventually: Eventually, is_alive: Callable[[int], bool]
) -> None:
    child = spawn(sh="sleep 60 & echo $!; exec sleep 60")
    await eventually(lambda: child.last_lines)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.kill(child.pid, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        ended = await child.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert ended == ended_by(signal.SIGKILL)
    assert not is_alive(int(child.last_lines[0]))


async def test_a_process_of_another_user_is_named_as_one_that_cannot_be_ended(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = spawn("/bin/sleep", "60")
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", refuse)
        with pytest.raises(EngineError, match=rf"pid {child.pid}\) .* runs as another user"):
            await child.stop(0)
        assert child.is_running


async def test_the_end_of_a_server_is_told_though_another_user_runs_on_in_its_group(
    spawn: Spawn, monkeypatch: pytest.MonkeyPatch, kill_later: list[int]
) -> None:
    child = spawn(sh="sleep 60 & echo $!; exit 1")
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", refuse)
        assert await child.wait() == ended_with(1)
    kill_later.append(int(child.last_lines[0]))


def refuse(_pid: int, _number: int) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


LEAVERS = {
    "a session of its own": "setsid sh -c 'echo $$; exec sleep 60' & sleep 60 & wait",
    "a daemon": "(setsid sh -c 'echo $$; exec sleep 60' &); exec sleep 60",
    "a daemon that ignores SIGTERM": (
        "(setsid sh -c 'trap \"\" TERM; echo $$; exec sleep 60' &); exec sleep 60"
    ),
    "a daemon with children": "(setsid sh -c 'sleep 60 & echo $!; sleep 60' &); exec sleep 60",
    "a session of its own, its mark taken off": (
        "env -i setsid sh -c 'echo $$; exec sleep 60' & sleep 60 & wait"
    ),
}


@pytest.mark.parametrize("how", LEAVERS)
async def test_what_left_the_group_of_the_child_is_ended_and_reaped_with_it(
    spawn: Spawn, eventually: Eventually, kill_later: list[int], how: str
) -> None:
    child = spawn(sh=LEAVERS[how])
    await eventually(lambda: child.last_lines)
    leaver = int(child.last_lines[0])
    kill_later.append(leaver)
    # Between two programs (`exec`) a process shows no environment, and so no mark.
    await eventually(lambda: child.owns(leaver) is ("mark" not in how))
    async with asyncio.timeout(PATIENCE_S):
        await child.stop(5)
    assert not psutil.pid_exists(leaver), "also no zombie of it"


async def test_daemon_that_listens_for_its_launcher_is_known(
    spawn: Spawn, eventually: Eventually, unused_tcp_port: int
) -> None:
    listen = f"{sys.executable} -I -S -m http.server {unused_tcp_port} --bind 127.0.0.1"
    child = spawn(sh=f"(setsid {listen} &); exec sleep 60")
    address = Address(port=unused_tcp_port)

    await eventually(lambda: is_listening(address, child.pid, child.owns))

    await child.stop(5)
    assert not is_listening(address, child.pid, child.owns)


async def test_what_a_dead_child_left_outside_its_group_is_ended(
    spawn: Spawn, tmp_path: Path, kill_later: list[int]
) -> None:
    """A launcher that starts a daemon and goes: on a GPU its memory would be held for ever."""
    told = tmp_path / "told"
    daemon = f"echo $$; echo > {told}; exec sleep 60"
    child = spawn(
        sh=f"(setsid sh -c '{daemon}' &); until [ -e {told} ]; do sleep 0.01; done; exit 3"
    )
    assert await child.wait() == ended_with(3)
    leaver = int(child.last_lines[0])
    kill_later.append(leaver)
    assert not psutil.pid_exists(leaver)


async def test_one_that_was_asked_to_stop_outside_the_group_may_say_its_last_words(
    spawn: Spawn, eventually: Eventually
) -> None:
    script = "trap 'echo bye; exit' TERM; echo up; sleep 60 & wait"
    child = spawn(sh=f"trap : TERM; setsid sh -c '{script.replace(chr(39), chr(34))}' & wait; wait")
    await eventually(lambda: "up" in child.last_lines)
    await child.stop(10)
    assert "bye" in child.last_lines


def start_unrelated(script: str) -> subprocess.Popen[bytes]:
    """Start a process of ours that is not a server."""
    return subprocess.Popen(["sh", "-c", script], start_new_session=True)


async def test_nothing_of_another_child_is_touched(spawn: Spawn, eventually: Eventually) -> None:
    other = spawn(sh="echo up; exec sleep 60")
    await eventually(lambda: other.last_lines)
    unrelated = start_unrelated("exit 7")
    child = spawn(sh="(setsid sleep 60 &); exit 0")
    await child.wait()
    assert other.is_running
    assert unrelated.wait() == 7, "somebody else has reaped it"


PARENT = """
    import asyncio, ctypes, os, sys
    from supervisor.engine.port import Address, Launch
    from supervisor.engine.servers.process import ChildProcess

    PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


    def say(line):
        print(line, flush=True)


    def adopt_orphans():
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


    async def run(script):
        launch = Launch(
            argv=("/bin/sh", "-c", script), env=os.environ, address=Address(port=1), api_key="k",
            model="stub", profile="stub", epoch=1,
        )
        async with asyncio.timeout(10):
            return await ChildProcess.spawn(launch, say).wait()
"""


def start_parent(script: str) -> subprocess.Popen[str]:
    """Start a Python process that has children of its own."""
    program = textwrap.dedent(PARENT) + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)


async def test_a_killed_parent_leaves_no_child(
    eventually: Eventually, is_alive: Callable[[int], bool]
) -> None:
    with start_parent("""asyncio.run(run("trap '' TERM; echo $$; exec sleep 60"))""") as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(parent.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(child))


async def test_process_1_reaps_the_orphans_that_it_adopts() -> None:
    """A container's process 1 has nobody behind it: a zombie would stay for ever."""
    with start_parent("""
        import psutil

        adopt_orphans()
        print(asyncio.run(run("sleep 60 & sleep 60 & exit 1")), psutil.Process().children())
    """) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read() == "ProcessExit(exit_code=1, signal=None) []\n"


async def test_orphans_that_process_1_never_reaps_do_not_hold_up_the_end() -> None:
    """The middle process adopts the orphans in the place of process 1 and never reaps them."""
    with start_parent("""
        adopt_orphans()
        controller = os.fork()
        if controller == 0:
            print(asyncio.run(run("sleep 60 & exit 1")), flush=True)
            os._exit(0)
        os.waitpid(controller, 0)
    """) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read() == "ProcessExit(exit_code=1, signal=None)\n"


async def test_the_child_sees_the_environment_of_its_launch_and_its_mark(spawn: Spawn) -> None:
    child = spawn("/usr/bin/env", env={"ONLY": "this"})
    await child.wait()
    keeps_mark, only, mark = child.last_lines
    assert keeps_mark == "SPT_NOENV=1", "a title would overwrite the mark"
    assert only == "ONLY=this"
    assert mark.startswith(f"{MARK_VARIABLE}=-1-")
