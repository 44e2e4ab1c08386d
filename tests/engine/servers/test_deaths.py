"""Servers that cannot be reached: dead, dying, lost, or only rude; and what is said of each."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import stat
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from supervisor.core.machine.values import Stop
from supervisor.engine.port import Address, Launch
from supervisor.engine.servers.addresses import accepts_connections, choose_address
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request
from supervisor.errors import BackendUnreachable
from tests.conftest import StartController
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]
MakeLaunch = Callable[..., Launch]
StartServer = Callable[..., Awaitable[Backend]]

SERVER = textwrap.dedent("""
    import os, socket, sys, time

    where, order = sys.argv[1:]
    if where.isdigit():
        listener = socket.create_server(("127.0.0.1", int(where)))
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where)
        listener.listen()
    while True:
        client, _ = listener.accept()
        with client:
            asked = client.recv(65536)
            if b"GET /order" not in asked:
                if asked:
                    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n"
                                   b"Connection: close\\r\\n\\r\\n")
                continue
            if order == "die slowly":
                listener.close()
                client.close()
                time.sleep(1.5)  # as one that gives a GPU's memory back
                sys.exit(3)
            if order == "stop listening":
                listener.close()
                client.close()
                time.sleep(60)
""")


@pytest.fixture(params=["unix socket", "TCP"])
def address(request: pytest.FixtureRequest, run_dir: Path) -> Address:
    """Where the server listens."""
    return choose_address(run_dir, 1, has_unix_socket=request.param == "unix socket")


@pytest.fixture
async def start_server(make_launch: MakeLaunch, address: Address) -> AsyncIterator[StartServer]:
    """Starts a server that obeys an order at `/order`; `is_gone` is set as the arbiter does."""
    started: list[tuple[Backend, asyncio.Task[None]]] = []

    async def look_after(backend: Backend) -> None:
        await backend.wait()
        backend.is_gone.set()

    async def start(order: str) -> Backend:
        where = str(address.socket_path or address.port)
        launch = make_launch(sys.executable, "-S", "-c", SERVER, where, order, address=address)
        backend = Backend(launch, lambda _line, _is_ready: None)
        started.append((backend, asyncio.create_task(look_after(backend))))
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        return backend

    yield start
    for backend, looking_after in started:
        await backend.give_up_memory(Stop(grace_s=0))
        await looking_after


async def fails(backend: Backend) -> BackendUnreachable:
    with pytest.raises(BackendUnreachable) as caught:
        async with (
            asyncio.timeout(PATIENCE_S),
            backend.exchange(Request(method="GET", path="/order")),
        ):
            pass
    return caught.value


async def test_a_server_that_only_broke_a_connection_runs_on_and_is_not_dead(
    start_server: StartServer,
) -> None:
    backend = await start_server("break the connection")
    error = await fails(backend)
    assert not error.may_repeat
    assert error.details["may_repeat"] is False
    assert backend.standing == "its process runs on"
    assert not await backend.is_found_dead(10)


async def test_a_server_that_takes_seconds_to_die_is_waited_for(start_server: StartServer) -> None:
    backend = await start_server("die slowly")
    await fails(backend)
    assert await backend.is_found_dead(30)
    assert "has ended" in backend.standing


async def test_a_server_that_was_killed_is_found_dead_and_what_comes_later_may_be_repeated(
    start_server: StartServer,
) -> None:
    backend = await start_server("break the connection")
    os.kill(backend.process.pid, signal.SIGKILL)
    assert (await fails(backend)).may_repeat, "whether it was refused, or accepted and not read"
    assert await backend.is_found_dead(30)


async def test_a_server_that_runs_and_listens_no_more_is_ended_and_found_dead(
    start_server: StartServer,
) -> None:
    backend = await start_server("stop listening")
    await fails(backend)
    assert await backend.is_found_dead(30)
    assert not backend.process.is_running
    assert "nobody listens" in backend.process.last_lines[-1]


async def test_a_server_whose_socket_is_swept_away_is_ended_by_the_next_request(
    start_server: StartServer, address: Address
) -> None:
    if address.socket_path is None:
        pytest.skip("a port cannot be swept away")
    backend = await start_server("break the connection")
    address.socket_path.unlink()
    error = await fails(backend)
    assert error.may_repeat
    assert "cannot be reached" in error.message
    assert await backend.is_found_dead(30)


async def test_a_server_whose_socket_is_swept_away_is_ended_although_nobody_asks(
    start_server: StartServer, address: Address, eventually: Eventually
) -> None:
    if address.socket_path is None:
        pytest.skip("a port cannot be swept away")
    backend = await start_server("break the connection")
    address.socket_path.unlink()
    await eventually(backend.is_gone.is_set)
    assert "its socket is gone" in backend.process.last_lines[-1]


@pytest.mark.parametrize("is_replaced", [True, False])
async def test_a_server_that_is_stopped_is_dead_only_for_those_whom_its_successor_serves(
    start_server: StartServer, is_replaced: bool
) -> None:
    backend = await start_server("break the connection")
    await backend.give_up_memory(Stop(grace_s=1, is_replaced=is_replaced))
    assert await backend.is_found_dead(30) is is_replaced


async def test_a_server_is_not_taken_for_dead_where_we_run_out_of_descriptors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", none_left)
        is_there = await accepts_connections(Address(socket_path=tmp_path / "a.sock"))
    assert is_there


@pytest.mark.parametrize("engine", ["llama-server"], indirect=True)
async def test_a_controller_recovers_a_server_whose_folder_was_swept_and_switches_on(
    start_controller: StartController, eventually: Eventually, engine: str
) -> None:
    """With a long data folder the sockets stand in the temporary folder, which sweepers clean."""
    controller = await start_controller(engine=engine)
    await controller.switch_to("minilm")
    (backend,) = controller.parts.arbiter._performer.backends.values()
    socket_path = backend.launch.address.socket_path
    assert socket_path is not None
    shutil.rmtree(socket_path.parent)
    # A connection that stands is used as long as it lives; then a new one is needed.
    await eventually(lambda: backend.open_connections == 0)

    body = {"model": "minilm", "input": "hello"}
    answer = await controller.json("POST", "/v1/embeddings", body)

    assert len(answer["data"]) == 1, answer
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700
    assert (await controller.switch_to("demo-chat"))["outcome"] == "switched"
