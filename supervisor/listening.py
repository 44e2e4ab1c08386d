"""Where the controller listens: sockets for each host, and URLs that can be typed."""

import contextlib
import ipaddress
import socket
from collections.abc import Mapping, Sequence

import psutil

from supervisor.errors import SupervisorError

BACKLOG = 4096
"""Connections that wait to be accepted; the kernel takes no more than net.core.somaxconn."""

_Address = tuple[socket.AddressFamily, str]

_ANY_IPV4: _Address = (socket.AF_INET, "0.0.0.0")  # noqa: S104 - where the operator names it
_ANY_IPV6: _Address = (socket.AF_INET6, "::")


def open_sockets(hosts: Sequence[str], port: int) -> tuple[socket.socket, ...]:
    """Listen on every address of the hosts, with one port for all; 0: any free one.

    `::` stands for both families where the system allows that. An address that is named twice, or
    that another one stands for, is opened once. Raises SupervisorError, with nothing left open,
    naming the process that holds the port.
    """
    wanted = dict[_Address, str]()
    for host in hosts:
        for each in _addresses(host, port):
            wanted.setdefault(each, host)
    serves_both = _ANY_IPV6 in wanted and _ANY_IPV4 not in wanted and socket.has_dualstack_ipv6()
    covering = {_ANY_IPV6, _ANY_IPV4} & wanted.keys()
    covered = {family for family, _ in covering} | ({socket.AF_INET} if serves_both else set())
    places = {
        each: host for each, host in wanted.items() if each[0] not in covered or each in covering
    }
    tries_left = 0 if port else 4  # a port that is free at one address may be taken at the next
    while True:
        try:
            return _open_all(places, port, serves_both=serves_both)
        except SupervisorError:
            if not tries_left:
                raise
            tries_left -= 1


def _open_all(
    places: Mapping[_Address, str], port: int, *, serves_both: bool
) -> tuple[socket.socket, ...]:
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for each, host in places.items():
            try:
                one = _bound(*each, port, serves_both=serves_both)
            except OSError as error:
                raise SupervisorError(
                    f"cannot listen on {host}:{port}: {_reason(error)}{_listener_of(port)}; "
                    "choose others with --host and --port"
                ) from error
            opened.callback(one.close)
            sockets.append(one)
            port = one.getsockname()[1]
        opened.pop_all()
    return tuple(sockets)


def url_of(listening: socket.socket) -> str:
    """Return a URL that reaches the socket from this machine."""
    host, port = listening.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.version == 4:
        return f"http://{'127.0.0.1' if address.is_unspecified else host}:{port}"
    return f"http://[{'::1' if address.is_unspecified else host}]:{port}"


def _addresses(host: str, port: int) -> Sequence[_Address]:
    """Return the addresses of a host, each once; those of families that are not here left out."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SupervisorError(
            f"cannot listen on {host}: {_reason(error)}; choose an address of this machine with "
            "--host"
        ) from error
    addresses = list(dict.fromkeys((family, str(place[0])) for family, *_, place in found))
    has_ipv6 = socket.has_ipv6 and _can_bind_ipv6()
    usable = [each for each in addresses if has_ipv6 or each[0] != socket.AF_INET6]
    return usable or addresses


def _can_bind_ipv6() -> bool:
    """Whether this machine has IPv6 at all: localhost may have an IPv6 address even where not."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


def _bound(
    family: socket.AddressFamily, address: str, port: int, *, serves_both: bool
) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not serves_both)
        one.bind((address, port))
        one.listen(BACKLOG)
        one.setblocking(False)
    except OSError:
        one.close()
        raise
    return one


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _listener_of(port: int) -> str:
    """Name the process that listens on a port, as far as we may see it."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and connection.pid and tuple(connection.laddr)[1:2] == (port,):
                return f" by pid {connection.pid}"
    return ""
