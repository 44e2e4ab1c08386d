"""Who can reach the controller: everybody who can is allowed everything, as there are no keys."""

import ipaddress
from collections.abc import Iterable


def describe_exposure(hosts: Iterable[str]) -> str | None:
    """Say what is open where one of the addresses is not a loopback one; None: nothing is."""
    exposed = [host for host in hosts if not _is_loopback(host)]
    if not exposed:
        return None
    return (
        f"requests are taken on {', '.join(exposed)} without a key: whoever reaches it can use, "
        "switch and unload models; listen on 127.0.0.1, or let only a proxy that asks for keys, or "
        "the clients that may, reach it (a firewall, a NetworkPolicy)"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: where it leads is not ours to say
        return False
