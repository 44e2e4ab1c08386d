"""Where the running controller is expected: what was named, else where the settings have it."""

import ipaddress
import os
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.client.connection import OTHER_ADDRESS, NoController
from supervisor.errors import ConfigError

if TYPE_CHECKING:
    from supervisor.config.settings import ServerSettings

_NEEDED = ("host", "port")


def address_of(url: str | None, profiles: Path) -> str:
    """Return the URL that was named, else the one that `supervisor.yaml` in a folder leads to.

    Nothing else in the folder is read, and of that file `server.host` and `server.port` only, since
    what is wrong elsewhere hinders nobody who asks. Without the file, it is the default. Raises
    NoController where these cannot be read.
    """
    if url is not None:
        return (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        server = _server_of(profiles / "supervisor.yaml")
    except ConfigError as error:
        raise NoController(
            f"where the controller listens cannot be read: {'; '.join(error.problems)}; or "
            f"{OTHER_ADDRESS}"
        ) from error
    return f"http://{_reachable(server.hosts[0])}:{server.port}"


def _server_of(path: Path) -> "ServerSettings":
    """Read where a settings file has the controller listen. Raises ConfigError."""
    from pydantic import ValidationError  # noqa: PLC0415 - these are half of a command's start

    from supervisor.config.problems import describe_faults  # noqa: PLC0415 - the same
    from supervisor.config.settings import ServerSettings  # noqa: PLC0415 - the same
    from supervisor.config.source import read_source  # noqa: PLC0415 - the same

    if not os.path.lexists(path):  # a link that leads nowhere is a fault, not no file
        return ServerSettings()
    source = read_source(path)
    places = [": server: ", *(f": server.{name}: " for name in _NEEDED)]
    if unclear := [each for each in source.problems if any(place in each for place in places)]:
        raise ConfigError(tuple(unclear))  # given twice
    section = source.content.get("server", {})
    if isinstance(section, dict):
        section = {name: section[name] for name in _NEEDED if name in section}
    try:
        return ServerSettings.model_validate(section)
    except ValidationError as error:
        faults = describe_faults(source, error, ServerSettings, below=("server",))
        raise ConfigError(tuple(faults)) from error


def _reachable(host: str) -> str:
    """Return what reaches a listener from this machine: a wildcard is no address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return "127.0.0.1" if address.is_unspecified else host
    return f"[{'::1' if address.is_unspecified else host}]"
