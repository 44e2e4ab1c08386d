"""Who is measured side by side: servers that are running, ours and others'."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil

from lab.harness.command import LabError
from lab.harness.servers import ChildCommand, Controller, Endpoint, Server
from lab.harness.setting import CHAT_MODEL, EMBEDDING_MODEL, Setting, with_changes

TURNS, FIFO, ROUTER = "controller", "fifo", "router"
"""The product as it is shipped, the product with its `fifo` policy, and llama.cpp's own router."""

OF_THE_ROUTER = frozenset({"--alias", "--metrics"})
"""What the router gives its servers itself, and what only we ask of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A server: where it listens, who relays, and the path of llama-server's own routes."""

    endpoint: Endpoint
    pid: int
    prefix: str

    @classmethod
    def peer(cls, url: str, model: str) -> Self:
        """Find a running peer by its URL, in which `{model}` stands for the model's name.

        The URL leads to llama-server's own routes: `http://127.0.0.1:9292/upstream/{model}`. Raises
        LabError where nobody listens.
        """
        parts = urlsplit(url.format(model=model))
        for found in psutil.net_connections("tcp"):
            is_there = found.status == psutil.CONN_LISTEN and found.laddr[1:] == (parts.port,)
            if is_there and found.pid is not None:
                endpoint = Endpoint(host=parts.hostname or "127.0.0.1", port=parts.port)
                return cls(endpoint=endpoint, pid=found.pid, prefix=parts.path.rstrip("/"))
        raise LabError(f"no process of this machine listens at {url}")

    @classmethod
    def of(cls, server: Server) -> Self:
        """Return the side that a server is which the run has started."""
        return cls(endpoint=server.endpoint, pid=server.pid, prefix="")


Pair = Mapping[str, Side]
"""A supervisor as it serves each of the two models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Supervisors with one device for two models: all of them by name, and ours as controllers."""

    pairs: Mapping[str, Pair]
    controllers: Mapping[str, Controller]

    @property
    def others(self) -> tuple[str, ...]:
        """The names of those that are not ours."""
        return tuple(name for name in self.pairs if name not in self.controllers)


@contextmanager
def running_sides(setting: Setting) -> Iterator[Sides]:
    """Run the product twice, with both its policies, and the router, beside the peers.

    The router's servers get the arguments that ours were given.
    """
    commands = _commands(setting)
    with ExitStack() as stack:
        controllers = {}
        for name, policy in {TURNS: "turns", FIFO: "fifo"}.items():
            work_dir = setting.work_dir / name
            work_dir.mkdir(exist_ok=True)
            own = _with_policy(replace(setting, work_dir=work_dir), policy)
            controllers[name] = stack.enter_context(Controller(own))
            controllers[name].wait_until_settled()
        router = stack.enter_context(_router(commands, setting.work_dir))
        servers: dict[str, Server] = {**controllers, ROUTER: router}
        pairs: dict[str, Pair] = {
            name: dict.fromkeys(commands, Side.of(server)) for name, server in servers.items()
        }
        pairs |= {
            name: {model: Side.peer(url, model) for model in commands}
            for name, url in setting.peers.items()
        }
        yield Sides(pairs=pairs, controllers=controllers)


def _commands(setting: Setting) -> dict[str, ChildCommand]:
    """Ask a controller how it starts both models; a switch by hand would hold those to come."""
    with Controller(setting) as controller:
        return {model: controller.load(model) for model in (CHAT_MODEL, EMBEDDING_MODEL)}


def _with_policy(setting: Setting, policy: str) -> Setting:
    if (setting.work_dir / "profiles").exists():
        return replace(setting, profiles=setting.work_dir / "profiles")
    return with_changes(setting, "profiles", {"supervisor.yaml": {"scheduler": {"policy": policy}}})


def _router(commands: Mapping[str, ChildCommand], work_dir: Path) -> Server:
    """Start llama.cpp's router, with room for one model at a time."""
    preset = work_dir / "router.ini"
    sections = (f"[{model}]\n{preset_of(each.argv[1:])}" for model, each in commands.items())
    preset.write_text("version = 1\n\n" + "\n".join(sections), encoding="utf-8")
    command = next(iter(commands.values()))
    endpoint = Endpoint.on_free_port()
    flags = ("--models-preset", str(preset), "--models-max", "1", *endpoint.flags())
    env = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    return Server((command.argv[0], *flags), endpoint, work_dir / "router.log", env)


def preset_of(arguments: tuple[str, ...]) -> str:
    """Write arguments of llama-server as a section of a preset: a flag that has no value is true.

    The format is described in llama.cpp's docs/preset.md.
    """
    lines: dict[str, str] = {}
    key = ""
    for word in arguments:
        if word.startswith("--"):
            key = word
            lines[key] = "true"
        else:
            lines[key] = word
    return "".join(
        f"{name.removeprefix('--')} = {value}\n"
        for name, value in lines.items()
        if name not in OF_THE_ROUTER
    )
