"""URLs, origins and names of hosts, as operators write them.

No error shows what was written: a URL may hold a password.
"""

import re
from typing import Annotated, Any
from urllib.parse import quote, urlsplit

from pydantic import BeforeValidator, ValidationInfo

from supervisor.config.units import expand

_VARIABLE_OR_AT = re.compile(r"\$\{[^}]*\}|@")
_REDIS = ("redis", "rediss", "unix")
_READ_AS_HOST = (
    "percent-encode /, #, ? and @ in its password, or write redis://:${NAME}@host:port/0 with the "
    "password in the variable NAME, where that is done for you"
)


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
    return url


EnvUrl = Annotated[str, BeforeValidator(_expanded)]
"""A URL that may name variables: one before its `@` is percent-encoded, others are put in as is."""
