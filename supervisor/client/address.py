"""Where the running controller is expected: what was named, else where the settings have it."""

import ipaddress
from collections.abc import Mapping
from pathlib import Path


def address_of(url: str | None, profiles: Path, environ: Mapping[str, str]) -> str:
    """Return the URL that was named, else the one that `supervisor.yaml` in a folder leads to.

    A folder that is missing, or cannot be read, leaves the defaults.
    """
    if url is not None:
        return (url if "://" in url else f"http://{url}").rstrip("/")
    from supervisor.config.load import read  # noqa: PLC0415 - else half of a command's start
    from supervisor.config.settings import ServerSettings  # noqa: PLC0415 - the same

    configuration = read(profiles, Path(), environ).configuration
    server = configuration.settings.server if configuration is not None else ServerSettings()
    return f"http://{_reachable(server.hosts[0])}:{server.port}"


def _reachable(host: str) -> str:
    """Return what reaches a listener from this machine: a wildcard is no address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return "127.0.0.1" if address.is_unspecified else host
    return f"[{'::1' if address.is_unspecified else host}]"
