"""The `command` engine: any HTTP server, started as its profile's `command` section says."""

import shutil
import signal
from collections.abc import Callable, Mapping

from supervisor.config.command import PLACEHOLDER, CommandSettings
from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.flags import unhonoured
from supervisor.engine.models.model_source import model_argument
from supervisor.engine.port import Abilities, EngineIdentity, ParkRoutes, ServerStart
from supervisor.errors import UnfitProfile

NAME = "command"
HONOURED = frozenset({"command", "extra_args", "keep_prompt_cache"})
"""And every field that stands in a placeholder. Of `keep_prompt_cache` it honours `false`."""

Fill = Callable[[str], str]


class CommandEngine:
    """Runs the command line of the profile, its placeholders filled in."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._path = environ.get("PATH")

    @property
    def identity(self) -> EngineIdentity:
        """The engine's name; what it runs is another program for each profile."""
        return EngineIdentity(name=NAME, location="command.argv of each profile", version="any")

    def abilities(self, resolved: ResolvedModel) -> Abilities:
        """Return what the section says of the server."""
        command = resolved.profile.command
        if command is None:
            return Abilities()
        keys = (name for name, text in command.env.items() if text == "{api_key}")
        return Abilities(
            readiness_path=command.readiness_path,
            readiness_status=command.readiness_status,
            has_unix_socket=command.listens_on_socket,
            takes_token_ids=command.takes_token_ids,
            embeds_base64=command.embeds_base64,
            api_key_variable=next(keys, None),
            park_routes=_park_routes(command),
            stop_signal=signal.Signals[command.stop_signal],
        )

    def check(self, resolved: ResolvedModel) -> None:
        """Raise UnfitProfile for a missing section or program, and fields that nobody reads."""
        command = _section(resolved)
        read = {name.removeprefix("profile.") for name in command.placeholders()}
        problems = unhonoured(NAME, resolved.profile, HONOURED | read)
        problems = {
            field: f"the command does not read it; put {{profile.{field}}} into command.argv, or "
            "leave the field out"
            for field in problems
        }
        if resolved.profile.keep_prompt_cache:
            problems["keep_prompt_cache"] = (
                "must be false with the engine command: it is not known how its server saves "
                "a prompt cache"
            )
        unset = [field for field in sorted(read) if getattr(resolved.profile, field, "") is None]
        problems |= dict.fromkeys(unset, "has no value for the command; write one")
        path = {**resolved.profile.env, **command.env}.get("PATH", self._path)
        if shutil.which(command.argv[0], path=path) is None:
            problems["command.argv"] = (
                f"{command.argv[0]} is not a program on PATH; install it, or write its whole path"
            )
        if problems:
            raise UnfitProfile(resolved.profile_name, problems)

    def argv(self, start: ServerStart) -> tuple[str, ...]:
        """Return the section's words with the placeholders filled in, and the extra arguments."""
        resolved = start.model
        self.check(resolved)
        fill = _filler(start)
        words: list[str] = []
        for word in _section(resolved).argv:
            if word == "{aliases}":
                words += (resolved.name, *resolved.aliases)
            else:
                words.append(fill(word))
        return (*words, *resolved.profile.extra_args)

    def environment(self, start: ServerStart, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return what the child inherits, the profile's variables, and the section's, filled in."""
        fill = _filler(start)
        own = {name: fill(text) for name, text in _section(start.model).env.items()}
        return {**inherited, **start.model.profile.env, **own}


def _park_routes(command: CommandSettings) -> ParkRoutes | None:
    park = command.park
    if park is None:
        return None
    return ParkRoutes(sleep=park.sleep, wake=park.wake, is_asleep=park.is_asleep)


def _section(resolved: ResolvedModel) -> CommandSettings:
    command = resolved.profile.command
    if command is None:
        missing = "command needs a section `command:` with its argv; write it"
        raise UnfitProfile(resolved.profile_name, {"engine": missing})
    return command


def _filler(start: ServerStart) -> Fill:
    """Return what fills a text's placeholders in; the configuration knows all their names."""
    resolved = start.model
    values = {
        "port": str(start.address.port),
        "socket": str(start.address.socket_path),
        "model": model_argument(resolved),
        "alias": resolved.name,
        "aliases": " ".join((resolved.name, *resolved.aliases)),
        "api_key": start.api_key,
    }

    def value_of(name: str) -> str:
        section, _, field = name.partition(".")
        return _written(getattr(resolved.profile, field)) if section == "profile" else values[name]

    return lambda text: PLACEHOLDER.sub(lambda match: value_of(match[1]), text)


def _written(value: object) -> str:
    """Write a field's value as YAML does: `true`, `q8_0`, `4096`; a list as `3,1`."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
