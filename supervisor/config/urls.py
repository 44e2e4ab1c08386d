"""URLs, origins and names of hosts, as operators write them.

No error shows a URL that was written: it may hold a password.
"""

import ipaddress
import re
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from supervisor.config.units import expand

_VARIABLE_OR_AT = re.compile(r"\$\{[^}]*\}|@")
_REDIS = ("redis", "rediss", "unix")
_NOT_THE_OPERATORS = {
    *("decode_responses", "encoding", "encoding_errors", "legacy_responses", "protocol"),
    *("encoder_class", "parser_class", "credential_provider", "redis_connect_func", "retry"),
    "max_connections",
}
"""Parameters of redis-py with which it gives back something else than the queue reads, cannot be
used, or has no connection left for some of those who work. Its others say how to get there."""

_READ_AS_HOST = (
    "percent-encode /, #, ? and @ in its password, or write redis://:${NAME}@host:port/0 with the "
    "password in the variable NAME, where that is done for you"
)
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_NAME = re.compile(r"[A-Za-z0-9_~-]+(\.[A-Za-z0-9_~-]+)*")
_STATED_ALREADY = {"http": ":80", "https": ":443"}


def _expanded(value: Any, info: ValidationInfo) -> Any:
    """Put variables in; before the `@`, where name and password stand, as a URL can hold them."""
    if not isinstance(value, str):
        return value
    environ = (info.context or {}).get("environ", {})
    at = max((m.start() for m in _VARIABLE_OR_AT.finditer(value) if m[0] == "@"), default=0)
    return expand(value[:at], environ, lambda text: quote(text, safe="")) + expand(
        value[at:], environ
    )


def redis_url(url: str) -> str:
    """Return the URL of a Redis server. Raises ValueError where it names none."""
    scheme, _, _ = url.partition("://")
    if scheme not in _REDIS or "://" not in url:
        raise ValueError("must begin with redis://, rediss:// or unix://")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"has no host and port that can be read; {_READ_AS_HOST}") from None
    if scheme == "unix":
        if not parts.path:
            raise ValueError("names no socket; write unix:///path/of/the/socket")
    elif not host or parts.fragment or "@" in parts.path + parts.query:
        raise ValueError(f"has no host that can be read; {_READ_AS_HOST}")
    for name in sorted(_NOT_THE_OPERATORS & parse_qs(parts.query, keep_blank_values=True).keys()):
        raise ValueError(
            f"has the parameter {name}, with which the queue cannot work; leave it out"
        )
    return url


def http_url(url: str) -> str:
    """Return the URL of an HTTP server. Raises ValueError where it names none."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("has no host and port that can be read") from None
    if parts.scheme not in {"http", "https"}:
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError(
            "has a name or password, which is not sent; give the server's key in a variable "
            "(api_key_env, --key-env)"
        )
    if not (_NAME.fullmatch(host.removesuffix(".")) or _is_address(host)):
        raise ValueError("has no host that can be read")
    return url


def _origin(text: str) -> str:
    """Return an origin as browsers write it. Raises ValueError for what no page can have."""
    if text in {"*", "null"}:
        return text
    if not _ORIGIN.fullmatch(text) or text != text.lower():
        raise ValueError(
            f"must be an origin such as https://chat.example, or *, not {text!r}: with its scheme, "
            "without a path, in lower case"
        )
    port = _STATED_ALREADY.get(text.partition("://")[0])
    if port and text.endswith(port):
        raise ValueError(f"{text!r} has the port that its scheme means; leave {port} out")
    return text


def _host_name(text: str) -> str:
    """Return a name of a host. Raises ValueError for what no request can call us."""
    if not _NAME.fullmatch(text) and not _is_address(text):
        raise ValueError(
            f"must be a name such as llm.example, not {text!r}: without scheme, port and path, and "
            "each name by itself"
        )
    return text


def _host_and_port(text: str) -> str:
    """Return a host, with a port or without, in ASCII. Raises ValueError where it is none."""
    if not text.isascii():
        text = text.encode("idna").decode()
    name, _, port = text.rpartition(":")
    host = name if name and port.isdecimal() and not _is_address(text) else text
    if not (_NAME.fullmatch(host) or _is_address(host)) or text != text.lower():
        raise ValueError(
            "must be a name or an address, with a port or without, such as hooks.example:8443, "
            f"not {text!r}: without scheme and path, in lower case"
        )
    return text


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


Origin = Annotated[str, AfterValidator(_origin)]
"""Where a page comes from, as browsers write it: scheme, host, and a port that is not the usual."""

HostName = Annotated[str, AfterValidator(_host_name)]
"""A name, or an address, and nothing else."""

HostAndPort = Annotated[str, AfterValidator(_host_and_port)]
"""A name or an address, with a port or without."""

EnvUrl = Annotated[str, BeforeValidator(_expanded)]
"""A URL that may name variables: one before its `@` is percent-encoded, others are put in as is."""
