"""Backends: when one counts as ready, who may answer for it, and what is left when it is gone."""

import asyncio
import os
import signal
import socket
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Stop, Target
from supervisor.data_folder import DataFolder, remove_run_dir
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.environment import inherited_environment
from supervisor.engine.launcher import Launcher
from supervisor.engine.port import Address, Launch, ServerStart
from supervisor.engine.servers.addresses import choose_address
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import Request
from supervisor.engine.servers.process import ProcessExit
from supervisor.errors import BackendUnreachable, EngineError
from tests.engine.child_client import open_session
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]
MakeLaunch = Callable[..., Launch]
Resolve = Callable[..., ResolvedModel]
ServerOf = Callable[..., tuple[Backend, list[str]]]
StartStranger = Callable[[Address], Path]
StubServer = Callable[..., tuple[str, ...]]

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


@pytest.fixture(params=["unix socket", "TCP"])
def address(request: pytest.FixtureRequest, run_dir: Path) -> Address:
    """Where the child is to listen: in our private folder, or on a fresh loopback port."""
    return choose_address(run_dir, 1, has_unix_socket=request.param == "unix socket")


def where(address: Address) -> str:
    """Write the address as the stub server takes it."""
    return str(address.socket_path or address.port)


async def call(
    backend: Backend, path: str, body: Any = None, *, key: str | None = None
) -> tuple[int, Any]:
    """Call the child past the product; returns its status and its JSON."""
    async with (
        open_session(backend.launch.address) as session,
        session.request(
            "POST" if body else "GET",
            path,
            json=body,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        ) as answer,
    ):
        return answer.status, await answer.json()


async def read(backend: Backend, path: str) -> bytes:
    """Ask the child through the product."""
    async with backend.exchange(Request(method="GET", path=path)) as answer:
        return await answer.read()


@pytest.fixture
def server_of(stub_server: StubServer, make_launch: MakeLaunch) -> ServerOf:
    """Spawns a stub server that answers `/health` as told; returns it with the lines it prints."""

    def start(
        health: str, address: Address, listens_at: str | None = None
    ) -> tuple[Backend, list[str]]:
        lines: list[str] = []
        argv = stub_server(listens_at or where(address), health)
        return Backend(
            make_launch(*argv, address=address), lambda line, _: lines.append(line)
        ), lines

    return start


def ignore_line(_line: str, _is_ready: bool) -> None:
    pass


async def end(backend: Backend) -> ProcessExit:
    async with asyncio.timeout(PATIENCE_S):
        await backend.give_up_memory(Stop(grace_s=5))
        return await backend.wait()


# The real engines


async def test_a_real_server_becomes_ready_answers_and_leaves_nothing(
    engines: Engines, resolve: Resolve, make_launch: MakeLaunch, address: Address
) -> None:
    server = engines.choose("auto")
    model = resolve("demo-chat", parallel=2, ctx_size=512)
    start = ServerStart(model=model, address=address, api_key="the-key")
    argv = server.argv(start)
    environment = server.environment(start, inherited_environment(os.environ, {}))
    backend = Backend(make_launch(*argv, env=environment, address=address), ignore_line)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        status, answer = await call(backend, "/v1/chat/completions", CHAT, key="the-key")
        assert status == 200
        assert answer["choices"][0]["message"]["content"]
        _, properties = await call(backend, "/props", key="the-key")
        assert properties["total_slots"] == 2
        assert properties["default_generation_settings"]["n_ctx"] == 512
    finally:
        ended = await end(backend)
    assert ended == ProcessExit(exit_code=0, signal=None) or ended.signal == signal.SIGTERM
    assert not psutil.pid_exists(backend.process.pid)
    assert address.socket_path is None or not address.socket_path.exists()


async def test_a_real_server_refuses_whoever_lacks_the_key_of_this_start(
    engines: Engines, configuration: Configuration, run_dir: Path
) -> None:
    launcher = Launcher(
        configuration=ConfigurationHolder(configuration),
        engines=engines,
        run_dir=run_dir,
        device_env=lambda _: {},
    )
    target = Target(
        model="minilm",
        mode=configuration.resolve("minilm").mode,
        profile="embedding",
        device="host",
    )
    backend = launcher.launch(target, 1)
    try:
        key = backend.launch.api_key
        child = psutil.Process(backend.process.pid)
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        body = {"input": "Hello"}
        assert [
            (await call(backend, "/v1/embeddings", body, key=guess))[0]
            for guess in (None, "", "wrong", key[:-1], key)
        ] == [401, 401, 401, 401, 200]

        command_line = child.cmdline()
        assert str(configuration.resolve("minilm").path) in command_line
        assert not any(key in word for word in command_line)
        assert child.environ()["LLAMA_API_KEY"] == key
        assert len(key) >= 32
        assert not any(key in line for line in backend.process.last_lines)
    finally:
        await end(backend)


async def test_a_real_server_that_cannot_load_its_model_tells_why(
    engines: Engines, resolve: Resolve, make_launch: MakeLaunch, run_dir: Path, tmp_path: Path
) -> None:
    model = tmp_path / "broken.gguf"
    model.write_bytes(b"GGUF" + b"\xff" * 4096)
    address = choose_address(run_dir, 1, has_unix_socket=True)
    start = ServerStart(model=resolve("demo-chat"), address=address)
    argv = list(engines.choose("auto").argv(start))
    argv[argv.index("--model") + 1] = str(model)
    backend = Backend(make_launch(*argv, address=address), ignore_line)
    readying = asyncio.create_task(backend.become_ready())
    async with asyncio.timeout(PATIENCE_S):
        ended = await backend.wait()
    assert ended == ProcessExit(exit_code=1, signal=None)
    assert any("broken.gguf" in line for line in backend.process.last_lines)
    assert not readying.done()
    readying.cancel()


# Readiness


async def test_a_server_is_ready_when_its_health_is_200_and_not_before(
    server_of: ServerOf, address: Address
) -> None:
    backend, lines = server_of("503,503,500,200", address)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        await backend.process.stop(0)
        answers = [line for line in lines if line.startswith("answered")]
        assert answers == ["answered 503", "answered 503", "answered 500", "answered 200"]
    finally:
        await end(backend)


async def test_a_server_behind_a_wrapper_script_counts_as_our_own(
    stub_server: StubServer, make_launch: MakeLaunch, address: Address
) -> None:
    server = stub_server(where(address), "200")
    argv = ("/bin/sh", "-c", '"$@" & wait', "wrapper", *server)
    backend = Backend(make_launch(*argv, address=address), ignore_line)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
    finally:
        await end(backend)


async def test_a_server_that_never_becomes_ready_is_asked_until_it_is_stopped(
    server_of: ServerOf, address: Address, eventually: Eventually
) -> None:
    backend, lines = server_of("503", address)
    readying = asyncio.create_task(backend.become_ready())
    try:
        await eventually(lambda: lines.count("answered 503") > 3)
    finally:
        await end(backend)
    with pytest.raises(TimeoutError):  # who waits for it is told of its end by others
        await asyncio.wait_for(readying, 0.05)


async def test_a_server_that_dies_while_loading_tells_its_last_words(
    make_launch: MakeLaunch, address: Address
) -> None:
    argv = ("/bin/sh", "-c", "echo out of memory; exit 1")
    backend = Backend(make_launch(*argv, address=address), ignore_line)
    readying = asyncio.create_task(backend.become_ready())
    async with asyncio.timeout(PATIENCE_S):
        assert await backend.wait() == ProcessExit(exit_code=1, signal=None)
    assert list(backend.process.last_lines) == ["out of memory"]
    with pytest.raises(BackendUnreachable):
        await read(backend, "/health")
    with pytest.raises(TimeoutError):  # who waits for it is told of its end by others
        await asyncio.wait_for(readying, 0.05)


# Strangers


async def test_a_stranger_at_the_expected_address_is_not_accepted(
    make_launch: MakeLaunch,
    address: Address,
    start_stranger: StartStranger,
    eventually: Eventually,
) -> None:
    backend = Backend(make_launch("/bin/sleep", "60", address=address), ignore_line)
    log = start_stranger(address)
    try:
        await eventually(lambda: "listening" in log.read_text())
        with pytest.raises(TimeoutError):  # time for some twenty looks
            await asyncio.wait_for(backend.become_ready(), 0.4)
        assert "answered" not in log.read_text(), "it was told the key"
    finally:
        await end(backend)


async def test_a_stranger_is_not_accepted_beside_a_child_that_listens_elsewhere(
    server_of: ServerOf, address: Address, start_stranger: StartStranger, eventually: Eventually
) -> None:
    elsewhere = choose_address(
        address.socket_path.parent if address.socket_path else Path(),
        2,
        has_unix_socket=address.socket_path is not None,
    )
    backend, lines = server_of("200", address, where(elsewhere))
    log = start_stranger(address)
    try:
        await eventually(lambda: lines and "listening" in log.read_text())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(backend.become_ready(), 0.4)
        assert "answered" not in log.read_text(), "it was told the key"
    finally:
        await end(backend)


# Addresses


async def test_a_stale_socket_file_does_not_hinder_the_next_start(
    server_of: ServerOf, run_dir: Path
) -> None:
    address = choose_address(run_dir, 1, has_unix_socket=True)
    assert address.socket_path is not None
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(address.socket_path))
    backend, _ = server_of("200", address)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
    finally:
        await end(backend)
    assert not address.socket_path.exists()


async def test_the_socket_of_a_child_that_died_is_removed(
    server_of: ServerOf, run_dir: Path
) -> None:
    address = choose_address(run_dir, 1, has_unix_socket=True)
    assert address.socket_path is not None
    backend, _ = server_of("200", address)
    async with asyncio.timeout(PATIENCE_S):
        await backend.become_ready()
    assert address.socket_path.exists()
    os.kill(backend.process.pid, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE_S):
        assert await backend.wait() == ProcessExit(exit_code=None, signal=signal.SIGKILL)
    assert not address.socket_path.exists()


async def test_stopping_cuts_the_connections_of_requests_in_flight(
    make_launch: MakeLaunch, run_dir: Path, eventually: Eventually
) -> None:
    """llama-server answers SIGTERM only when its clients are gone."""
    address = choose_address(run_dir, 1, has_unix_socket=True)
    program = (
        "import signal, socket, sys\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "server = socket.socket(socket.AF_UNIX)\n"
        "server.bind(sys.argv[1])\n"
        "server.listen()\n"
        "print('listening', flush=True)\n"
        "client, _ = server.accept()\n"
        "while client.recv(65536):\n"
        "    print('asked', flush=True)\n"
        "print('client gone', flush=True)\n"
    )
    argv = (sys.executable, "-S", "-c", program)
    lines: list[str] = []
    backend = Backend(
        make_launch(*argv, where(address), address=address), lambda line, _: lines.append(line)
    )
    await eventually(lambda: lines == ["listening"])
    asking = asyncio.create_task(read(backend, "/slow"))
    await eventually(lambda: "asked" in lines)
    ended = await end(backend)
    assert ended == ProcessExit(exit_code=0, signal=None)
    assert lines[-1] == "client gone"
    with pytest.raises(BackendUnreachable):
        await asking


def test_a_fresh_port_is_free_and_differs_from_start_to_start(run_dir: Path) -> None:
    ports = {choose_address(run_dir, n, has_unix_socket=False).port for n in range(5)}
    assert len(ports) > 1
    for port in ports:
        with socket.create_server(("127.0.0.1", port or 0)):
            pass


async def test_each_start_has_a_socket_of_its_own_in_a_folder_that_only_we_can_enter(
    tmp_path: Path,
) -> None:
    data = await DataFolder.claim(tmp_path / "data")
    folder = data.make_run_dir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    sockets = {choose_address(folder, epoch, has_unix_socket=True).socket_path for epoch in (1, 2)}
    assert len(sockets) == 2
    assert all(path is not None and path.parent == folder for path in sockets)
    data.release()


async def test_a_data_folder_with_a_long_path_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    data = await DataFolder.claim(tmp_path / ("long" * 40))
    folder = data.make_run_dir()
    try:
        path = choose_address(folder, 10**9, has_unix_socket=True).socket_path
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        remove_run_dir(folder)
        data.release()
    assert not folder.exists()


async def test_a_folder_of_sockets_that_was_swept_is_made_anew_for_us_alone(
    server_of: ServerOf, run_dir: Path
) -> None:
    folder = run_dir / "run-1"
    backend, _ = server_of("200", choose_address(folder, 1, has_unix_socket=True))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await backend.become_ready()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    finally:
        await end(backend)


@pytest.mark.parametrize("fault", ["others may enter", "a link", "a file"])
async def test_a_folder_of_sockets_that_others_may_enter_is_not_used(
    server_of: ServerOf, run_dir: Path, fault: str
) -> None:
    folder = run_dir / "run-1"
    if fault == "a link":
        (run_dir / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(run_dir / "elsewhere")
    elif fault == "a file":
        folder.touch(mode=0o600)
    else:
        folder.mkdir()
        folder.chmod(0o755)
    with pytest.raises(EngineError, match="the folder of sockets"):
        server_of("200", choose_address(folder, 1, has_unix_socket=True))


def test_an_address_is_written_as_operators_would(run_dir: Path) -> None:
    assert Address(port=8080).describe() == "127.0.0.1:8080"
    assert Address(socket_path=run_dir / "a.sock").describe() == f"{run_dir}/a.sock"
