"""Which saved prompts a server may restore: those of the same model, settings and engine build.

A server checks the shape of what it restores, and not whose it is: the cached keys and values of
another model, or of other settings, would be taken for those of the prompt.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.flags import SERVER_FIELDS
from supervisor.engine.models.model_file import ModelFile, identify
from supervisor.engine.port import EngineIdentity
from supervisor.engine.prompts.prompt_cache import identity_of

_SCALE = re.compile(r":[-+.\d]+(?:[eE][-+]?\d+)?$")
"""How much of an adapter counts, behind its name."""


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
    """Yield the files that arguments name, by paths that are absolute or from where servers run.

    llama.cpp takes several at once, each with its scale: `--lora-scaled a.gguf:0.5,b.gguf:1`.
    """
    for argument in arguments:
        for name in dict.fromkeys(_names_in(argument)):
            path = Path.cwd() / name  # ours, which servers inherit
            if _is_file(path):
                yield path


def _names_in(argument: str) -> Iterator[str]:
    """Yield whatever may be the name of a file in an argument: `--flag=a:0.5,b` has several."""
    for value in (argument, argument.partition("=")[2]):
        for part in (value, *value.split(",")):
            yield part
            yield _SCALE.sub("", part)


def _is_file(path: Path) -> bool:
    """Whether there is a file: an argument may be anything, and longer than a name can be."""
    try:
        return path.is_file()
    except OSError:
        return False


def _look(path: Path | None) -> tuple[Any, ...]:
    """Return what distinguishes a file from another of the same name; empty where there is none."""
    if path is None or not path.is_file():
        return ()
    return (str(path), *identify(path.stat()))
