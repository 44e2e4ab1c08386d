"""Where a child listens, and who it is that listens there."""

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import psutil

from supervisor.engine.port import Address
from supervisor.engine.servers.descendants import descendants_of
from supervisor.errors import EngineError

_CONNECT_TIMEOUT_S = 1.0


def choose_address(run_dir: Path, epoch: int, *, has_unix_socket: bool) -> Address:
    """Choose where a child listens: a socket in our private folder, else a fresh loopback port."""
    if has_unix_socket:
        return Address(socket_path=run_dir / f"backend-{epoch}.sock")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return Address(port=listener.getsockname()[1])


def make_room(address: Address) -> None:
    """Make a socket's folder where it is gone, and remove what stands in the socket's place.

    Temporary folders are swept of what is old, and a stale socket fails the bind. Raises
    EngineError where the folder cannot be made, or is not ours alone: whoever else can write there
    could listen in the child's place.
    """
    path = address.socket_path
    if path is None:
        return
    folder = path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        path.unlink(missing_ok=True)
    except OSError as error:
        raise EngineError(f"the folder of sockets cannot be used: {error}") from error
    is_private = found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    if not stat.S_ISDIR(found.st_mode) or not is_private:
        raise EngineError(
            f"the folder of sockets, {folder}, belongs to somebody else or lets others in; "
            "remove it, or choose another data folder with --data"
        )


def is_listening(address: Address, leader: int, owns: Callable[[int], bool]) -> bool:
    """Whether whoever listens at the address is a server of ours, or comes from it.

    Raises OSError where nobody listens on a socket.
    """
    if address.socket_path is not None:
        return owns(_listener_pid(address.socket_path))
    # A daemon that the leader started is no longer below it: it became our own child.
    ours = {pid for pid in descendants_of(os.getpid()) if owns(pid)}
    return any(_has_port(pid, address.port) for pid in {leader, *descendants_of(leader), *ours})


def _has_port(pid: int, port: int | None) -> bool:
    """Whether a process listens on a TCP port."""
    with contextlib.suppress(psutil.Error):
        return any(
            connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
            for connection in psutil.Process(pid).net_connections("tcp")
        )
    return False


async def accepts_connections(address: Address) -> bool:
    """Whether somebody listens at the address, even one whose queue is full, or who hangs."""
    family = socket.AF_UNIX if address.socket_path is not None else socket.AF_INET
    name = str(address.socket_path) if address.socket_path else ("127.0.0.1", address.port or 0)
    loop = asyncio.get_running_loop()
    try:
        connection = socket.socket(family)
    except OSError:  # we have run out of descriptors, which says nothing of the server
        return True
    with connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await loop.sock_connect(connection, name)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # TimeoutError and EAGAIN, too: its queue is full
            return True
    return True


def _listener_pid(path: Path) -> int:
    """Return the process that listens on a unix socket, as the kernel tells (unix(7))."""
    credentials = struct.Struct("3i")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.setblocking(False)  # where its queue is full this is EAGAIN, not a wait
        connection.connect(str(path))
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    pid: int = credentials.unpack(raw)[0]
    return pid
