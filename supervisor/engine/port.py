"""What the rest of the product asks of an engine: a command line, and what it is able to do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from supervisor.config.configuration import ResolvedModel

API_KEY_VARIABLE = "LLAMA_API_KEY"
"""The variable by which llama-server takes its API key; never an argument, which `ps` shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a child listens: a unix socket, or a loopback port where the engine has none."""

    socket_path: Path | None = None
    port: int | None = None

    def describe(self) -> str:
        """Return the address as an operator would write it."""
        return str(self.socket_path) if self.socket_path else f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """All that is needed to spawn one server."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    address: Address
    api_key: str
    model: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineIdentity:
    """Which engine this is: its name, where it was found, and the version it tells."""

    name: str
    location: str
    version: str


class Engine(Protocol):
    """A way to run llama.cpp's HTTP server as a child process."""

    @property
    def identity(self) -> EngineIdentity:
        """Name, place and version, read once."""
        ...

    @property
    def has_unix_socket(self) -> bool:
        """Whether the server can listen on a unix socket."""
        ...

    def check(self, resolved: ResolvedModel) -> None:
        """Raise EngineError, naming the flag, when this engine cannot honour the profile."""
        ...

    def argv(self, resolved: ResolvedModel, address: Address) -> tuple[str, ...]:
        """Return the command line that serves the model at the address."""
        ...
