"""`llama-supervisor serve` as a daemon meets the world: terminals, streams, hosts, data folders."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import Serve, Served
from tests.patience import PATIENCE_S


async def ready_status(served: Served) -> int:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"{await served.url()}/health") as answer,
    ):
        return answer.status


# SIGHUP


async def test_a_terminal_that_closes_drains_like_sigterm(serve: Serve) -> None:
    controlling, terminal = pty.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    served = serve(start_new_session=True, preexec_fn=take_terminal, pass_fds=(terminal,))
    os.close(terminal)
    child = await served.child()
    os.close(controlling)
    assert await served.exit_code() == 0
    [stopping] = served.events("controller.stopping")
    assert stopping["signal"] == "SIGHUP"
    assert served.events("controller.stopped")
    assert not child.is_running()


async def test_sighup_without_a_terminal_is_noted_and_ignored(serve: Serve) -> None:
    served = serve(start_new_session=True)
    await served.child()
    served.process.send_signal(signal.SIGHUP)
    ignored = await served.until_logged("controller.signal_ignored")
    assert ignored["signal"] == "SIGHUP"
    assert await ready_status(served) == 200
    served.terminate()
    assert await served.exit_code() == 0


# Standard streams


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
async def test_closed_standard_streams_take_no_file_of_ours(
    serve: Serve, unused_tcp_port: int, data_dir: Path, closed: str
) -> None:
    close = ("/bin/sh", "-c", f'exec "$@" {closed}', "sh")
    served = serve("--port", str(unused_tcp_port), through=close)
    async with aiohttp.ClientSession() as client:

        async def is_ready() -> bool:
            try:
                async with client.get(f"http://127.0.0.1:{unused_tcp_port}/ready") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

        async with asyncio.timeout(PATIENCE_S):
            while not await is_ready():
                assert served.process.poll() is None
                await asyncio.sleep(0.01)
    streams = standard_streams(served.process.pid)
    assert [each for each in streams if each.startswith(str(data_dir))] == []
    assert streams.count(os.devnull) >= len(closed.split())
    assert (data_dir / "controller.lock").read_text() == str(served.process.pid)
    served.terminate()
    assert await served.exit_code() == 0


def standard_streams(pid: int) -> list[str]:
    return [str(Path(f"/proc/{pid}/fd/{number}").readlink()) for number in range(3)]


# Users


@pytest.fixture
def as_nobody() -> tuple[str, ...]:
    """What runs a program as a user whom the system does not know, and who has no home."""
    unknown = ("unshare", "--user", "--map-user=54321")
    if subprocess.run([*unknown, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    return ("env", "-u", "HOME", "-u", "XDG_CACHE_HOME", *unknown)


async def test_neither_a_home_nor_an_entry_in_passwd_is_needed(
    serve: Serve, as_nobody: tuple[str, ...]
) -> None:
    served = serve(through=as_nobody)
    await served.child()
    assert await ready_status(served) == 200
    served.terminate()
    assert await served.exit_code() == 0


# Hosts


async def test_the_unspecified_address_of_ipv6_serves_both_families(serve: Serve) -> None:
    served = serve("--host", "::", "--host", "localhost")
    url = await served.url()
    port = url.rpartition(":")[2]
    assert url == f"http://[::1]:{port}"
    async with aiohttp.ClientSession() as client:
        for host in ("[::1]", "127.0.0.1", "localhost"):
            async with client.get(f"http://{host}:{port}/health") as answer:
                assert answer.status == 200


async def test_several_hosts_are_served_with_one_port_and_urls_that_work(serve: Serve) -> None:
    served = serve("--host", "127.0.0.1", "--host", "127.0.0.2", "--host", "::1")
    await served.until(lambda: len(served.events("controller.listening")) == 3)
    urls = [event["url"] for event in served.events("controller.listening")]
    port = urls[0].rpartition(":")[2]
    assert urls == [f"http://{host}:{port}" for host in ("127.0.0.1", "127.0.0.2", "[::1]")]
    async with aiohttp.ClientSession() as client:
        for url in urls:
            async with client.get(f"{url}/management/health") as answer:
                assert answer.status in {200, 503}


# The data folder


async def test_a_controller_waits_for_the_one_before_it_to_leave_the_data_folder(
    serve: Serve, tmp_path: Path
) -> None:
    first = serve()
    await first.child()
    second = serve("--data-wait", "60", log_file=tmp_path / "second.log")
    waiting = await second.until_logged("controller.waiting_for_data")
    assert waiting["pid"] == str(first.process.pid)
    assert not second.events("controller.listening")
    first.terminate()
    assert await first.exit_code() == 0
    await second.child()


async def test_a_signal_while_we_start_ends_the_start_in_order(
    serve: Serve, tmp_path: Path
) -> None:
    first = serve()
    await first.url()
    second = serve("--data-wait", "600", log_file=tmp_path / "second.log")
    await second.until_logged("controller.waiting_for_data")

    second.terminate()

    assert await second.exit_code() == 0
    assert second.events("controller.stopped")
    first.terminate()
    assert await first.exit_code() == 0


async def test_a_folder_that_is_in_use_is_refused_at_once_without_the_option(
    serve: Serve, tmp_path: Path
) -> None:
    first = serve()
    await first.until_logged("controller.listening")
    second = serve(log_file=tmp_path / "second.log")
    assert await second.exit_code() == 1
    assert f"in use by the controller with pid {first.process.pid};" in second.log()


@pytest.mark.parametrize(
    ("name", "makes"),
    [
        ("prompt-cache", lambda path: path.write_text("a file")),
        ("history.sqlite", lambda path: path.symlink_to("/nowhere")),
        ("controller.lock", lambda path: path.symlink_to("/nowhere")),
        ("children.json", lambda path: path.write_text('[{"pid": -1}]')),
    ],
)
async def test_what_stands_in_our_way_is_set_aside_and_the_start_goes_on(
    serve: Serve, data_dir: Path, name: str, makes: Callable[[Path], object]
) -> None:
    make_folder(data_dir)
    makes(data_dir / name)
    served = serve()
    await served.child()
    set_aside = [event["path"] for event in served.events("data.set_aside")]
    served.terminate()
    assert await served.exit_code() == 0
    assert set_aside == [str(data_dir / name)]


def make_folder(path: Path) -> None:
    path.mkdir()
