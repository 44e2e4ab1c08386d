"""Which saved prompts a server may restore: those of the same model, settings and engine build.

A server checks the shape of what it restores, and not whose it is: the cached keys and values of
another model, or of other settings, would be taken for those of the prompt.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.flags import SERVER_FIELDS
from supervisor.engine.models.model_file import ModelFile, identify
from supervisor.engine.port import EngineIdentity
from supervisor.engine.prompts.prompt_cache import identity_of


def prompt_identity(resolved: ResolvedModel, file: ModelFile, engine: EngineIdentity) -> str:
    """Return a name that changes with all that decides what a server caches of a prompt.

    That is every shard; the profile's fields that reach the server, and files that its
    arguments name (adapters, draft models); the engine's build.
    """
    profile = resolved.profile
    return identity_of(
        {
            "shards": file.identity,
            "settings": profile.model_dump(mode="json", include={*SERVER_FIELDS, "device", "env"}),
            "projector": _look(resolved.projector_path),
            "argument_files": [_look(path) for path in _named_files(profile.extra_args)],
            "engine": (engine.name, engine.location, engine.version, engine.build),
        }
    )


def _named_files(arguments: tuple[str, ...]) -> Iterator[Path]:
    for argument in arguments:
        path = Path(argument.rpartition("=")[2])
        if path.is_absolute() and path.is_file():
            yield path


def _look(path: Path | None) -> tuple[Any, ...]:
    """Return what distinguishes a file from another of the same name; empty where there is none."""
    if path is None or not path.is_file():
        return ()
    return (str(path), *identify(path.stat()))
