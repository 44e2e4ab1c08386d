"""The sockets that the controller listens on, and the URLs that it prints."""

import errno
import socket

import pytest

from supervisor import listening
from supervisor.errors import SupervisorError
from supervisor.listening import open_sockets, url_of


def reach(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def close(sockets: tuple[socket.socket, ...]) -> None:
    for each in sockets:
        each.close()


def test_the_unspecified_address_of_ipv6_serves_both_families() -> None:
    [both] = sockets = open_sockets(("::",), 0)
    port = both.getsockname()[1]
    assert url_of(both) == f"http://[::1]:{port}"
    assert reach("::1", port)
    assert reach("127.0.0.1", port) == socket.has_dualstack_ipv6()
    close(sockets)


def test_both_unspecified_addresses_can_be_named_together() -> None:
    sockets = open_sockets(("::", "0.0.0.0"), 0)
    port = sockets[0].getsockname()[1]
    assert [each.getsockname()[:2] for each in sockets] == [("::", port), ("0.0.0.0", port)]
    assert reach("::1", port)
    assert reach("127.0.0.1", port)
    close(sockets)


def test_any_free_port_is_one_that_is_free_at_every_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bound, taken = listening._bound, list[int]()

    def bind(family: socket.AddressFamily, host: str, port: int, **options: bool) -> socket.socket:
        if host == "127.0.0.2" and not taken:
            taken.append(port)  # somebody else was quicker there
            raise OSError(errno.EADDRINUSE, "taken")
        return bound(family, host, port, **options)

    monkeypatch.setattr(listening, "_bound", bind)
    sockets = open_sockets(("127.0.0.1", "127.0.0.2"), 0)
    assert len({each.getsockname()[1] for each in sockets} - set(taken)) == 1
    close(sockets)


@pytest.mark.parametrize(
    ("hosts", "addresses"),
    [
        (("127.0.0.1", "127.0.0.1"), ["127.0.0.1"]),
        (("127.0.0.1", "0.0.0.0"), ["0.0.0.0"]),
        (("::1", "127.0.0.1", "::"), ["::"]),
        (("::1", "127.0.0.1", "::", "0.0.0.0"), ["::", "0.0.0.0"]),
    ],
)
def test_an_address_that_another_stands_for_is_opened_once(
    hosts: tuple[str, ...], addresses: list[str]
) -> None:
    sockets = open_sockets(hosts, 0)
    assert [each.getsockname()[0] for each in sockets] == addresses
    port = sockets[0].getsockname()[1]
    assert url_of(sockets[-1]) == f"http://{'[::1]' if addresses == ['::'] else '127.0.0.1'}:{port}"
    close(sockets)


def test_an_address_is_served_alone() -> None:
    [only] = sockets = open_sockets(("::1",), 0)
    port = only.getsockname()[1]
    assert url_of(only) == f"http://[::1]:{port}"
    assert not reach("127.0.0.1", port)
    close(sockets)


def test_a_name_stands_for_all_its_addresses_with_one_port() -> None:
    sockets = open_sockets(("localhost",), 0)
    assert len({each.getsockname()[1] for each in sockets}) == 1
    assert all(each.getsockname()[0] in {"127.0.0.1", "::1"} for each in sockets)
    close(sockets)


def test_a_port_that_is_taken_on_one_host_leaves_nothing_open_on_the_others() -> None:
    with socket.create_server(("127.0.0.2", 0)) as owner:
        port = owner.getsockname()[1]
        with pytest.raises(SupervisorError, match=rf"cannot listen on 127\.0\.0\.2:{port}: "):
            open_sockets(("127.0.0.1", "127.0.0.2"), port)
        assert not reach("127.0.0.1", port)


def test_a_name_that_nobody_has_is_refused() -> None:
    with pytest.raises(SupervisorError, match=r"cannot listen on nobody\.invalid: "):
        open_sockets(("nobody.invalid",), 0)
