"""Who may call from a browser: any page can send requests to us, and must not drive us.

Three defences, at the door and for every path. An unsafe method needs to come from our own origin
or from none (the Fetch standard's Sec-Fetch-Site, else Origin against Host). A name in Host has to
be ours, or a page whose name was bound to our address (DNS rebinding) would be of our own origin.
And CORS is answered by us alone, for the origins that the operator names.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from functools import cache, lru_cache
from urllib.parse import urlsplit

from supervisor.config.holder import ConfigurationHolder
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer
from supervisor.gateway.call import Headers, RequestHead

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})  # RFC 9110, 9.2.1
_ANY = "*"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(%[\w.~-]+)?\]|[A-Za-z0-9_.~-]+)(:[0-9]*)?", re.ASCII)
"""A name or an address, with a port or not (RFC 9110, 7.2): what is called, and nothing else."""
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = (
    b"X-Request-ID, Retry-After, X-Queue-Position, X-Served-By, x-should-retry, X-Truncated, "
    b"X-Windowed, Location, X-Queue-Time-Ms, X-Inference-Time-Ms"
)
_PREFLIGHT_S = b"600"


class Origins:
    """Judges where requests come from.

    `hosts` are the addresses that we listen on. On loopback alone Host is looked at in every
    request; beyond it only in those of browsers, for others are not rebound, and call us by names
    that we do not know.
    """

    def __init__(self, configuration: ConfigurationHolder, hosts: Sequence[str]) -> None:
        self._configuration = configuration
        self._is_loopback = all(_is_loopback(host) for host in hosts)

    def check(self, head: RequestHead) -> Answer | None:
        """Return the answer to a browser that asks beforehand; None for any other request.

        Raises RequestRefused `foreign_host`, `foreign_origin`, or `bad_request`.
        """
        origin = _text(head.fields.get(b"origin"))
        site = _text(head.fields.get(b"sec-fetch-site"))
        host = _text(head.fields.get(b"host"))
        if host and _HOST.fullmatch(host) is None:
            raise RequestRefused("bad_request", f"'{host}' in Host is not a name or an address")
        is_browser = origin is not None or site is not None
        # A page's GET of its own origin has no Origin, and over plain http no Sec-Fetch-* either.
        is_page = is_browser or head.fields.get(b"user-agent", b"").startswith(b"Mozilla/")
        if host and (is_page or self._is_loopback) and not self._is_ours(host):
            raise RequestRefused(
                "foreign_host",
                f"'{host}' is not a name of this controller; call it by its address, or add the "
                "name to server.allowed_hosts",
            )
        wanted = head.fields.get(b"access-control-request-method")
        if wanted is not None and head.method == "OPTIONS":
            return self._preflight(origin, head.fields.get(b"access-control-request-headers", b""))
        if not is_browser or head.method in _SAFE_METHODS or self._is_allowed(origin):
            return None
        is_own = site in {"same-origin", "none"} if site else _is_same(origin, host)
        if not is_own:
            raise RequestRefused(
                "foreign_origin",
                f"a page of '{origin or site}' may not call this controller; add its origin to "
                "server.cors_origins if it should",
            )
        return None

    def headers(self, head: RequestHead) -> Headers:
        """Return the CORS headers of an answer: for origins that the operator names."""
        origin = _text(head.fields.get(b"origin"))
        if origin is None or not self._is_allowed(origin):
            return ()
        return (
            (b"Access-Control-Allow-Origin", origin.encode("utf-8", "surrogateescape")),
            (b"Access-Control-Expose-Headers", _EXPOSED),
            (b"Vary", b"Origin"),
        )

    def _preflight(self, origin: str | None, asked: bytes) -> Answer:
        if not self._is_allowed(origin):
            raise RequestRefused(
                "foreign_origin",
                f"'{origin}' is not among server.cors_origins; add it if its pages should call us",
            )
        return Answer(
            status=204,
            body=b"",
            headers=(
                (b"Access-Control-Allow-Methods", _METHODS),
                (b"Access-Control-Allow-Headers", asked),
                (b"Access-Control-Max-Age", _PREFLIGHT_S),
            ),
        )

    def _is_allowed(self, origin: str | None) -> bool:
        allowed = self._configuration.current.settings.server.cors_origins
        return origin is not None and (origin in allowed or _ANY in allowed)

    def _is_ours(self, host: str) -> bool:
        name = _name_of(host)
        if _is_address(name) or name == "localhost" or name.endswith(".localhost"):
            return True
        allowed = self._configuration.current.settings.server.allowed_hosts
        return name in _machine_names() or name in {each.lower() for each in allowed}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "surrogateescape")


def _name_of(host: str) -> str:
    """Return a Host without its port, in lower case; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _is_same(origin: str | None, host: str | None) -> bool:
    """Whether an Origin is that of the Host that was called; `null` is nobody's."""
    if origin is None or host is None:
        return origin is None
    try:
        return urlsplit(origin).netloc.lower() == host.lower()
    except ValueError:  # no URL at all
        return False


@lru_cache(maxsize=1024)
def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    is_address = _is_address(host)
    return ipaddress.ip_address(host).is_loopback if is_address else host == "localhost"


@cache
def _machine_names() -> frozenset[str]:
    """Return this machine's own names. Without a look-up: that could take seconds."""
    name = socket.gethostname().lower()
    return frozenset({name, name.partition(".")[0], f"{name}.local"})
