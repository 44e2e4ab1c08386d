"""Reads the configuration folder, and reports every problem of every file at once.

`models.yaml` is the catalogue (or the file named by MODEL_CONFIG_PATH), `supervisor.yaml` holds
the controller's settings, every other `*.yaml` is the profile of that name.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from supervisor.config.profile import Profile
from supervisor.config.settings import (
    Catalogue,
    Configuration,
    ModelEntry,
    SupervisorSettings,
    override,
)
from supervisor.errors import ConfigError

CATALOGUE_FILE = "models.yaml"
SETTINGS_FILE = "supervisor.yaml"

_Model = TypeVar("_Model", bound=BaseModel)


def load(folder: Path, models_dir: Path, environ: Mapping[str, str]) -> Configuration:
    """Read and check the folder. Raises ConfigError that names every problem."""
    reader = _Reader()
    if not folder.is_dir():
        raise ConfigError((f"{folder}: there is no such folder; name it with --profiles",))
    catalogue_path = Path(environ.get("MODEL_CONFIG_PATH") or folder / CATALOGUE_FILE)
    settings_path = folder / SETTINGS_FILE
    catalogue = reader.read(catalogue_path, Catalogue)
    settings = (
        reader.read(settings_path, SupervisorSettings)
        if settings_path.exists()
        else SupervisorSettings()
    )
    profiles = {
        path.stem: profile
        for path in sorted(folder.glob("*.yaml"))
        if path.name not in {CATALOGUE_FILE, SETTINGS_FILE} and path != catalogue_path
        if (profile := reader.read(path, Profile)) is not None
    }
    if catalogue is not None:
        reader.problems += _catalogue_problems(catalogue_path, catalogue, profiles)
    if reader.problems or catalogue is None or settings is None:
        raise ConfigError(tuple(reader.problems))
    return Configuration(
        settings=settings, catalogue=catalogue, profiles=profiles, models_dir=models_dir
    )


class _Reader:
    """Reads YAML files into models and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def read(self, path: Path, kind: type[_Model]) -> _Model | None:
        """Return the file's content as `kind`, or None after noting its problems."""
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            self.problems.append(f"{path}: cannot be read: {error.strerror}")
            return None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.problems.append(f"{path}: is not YAML: {' '.join(str(error).split())}")
            return None
        if not isinstance(content, dict):
            self.problems.append(f"{path}: must hold fields (`name: value`), and holds none")
            return None
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            self.problems += describe(path, error)
            return None


def describe(path: Path, error: ValidationError, prefix: str = "") -> list[str]:
    """Write pydantic's findings as `file: field: what is wrong`."""
    return [
        f"{path}: {prefix}{'.'.join(str(part) for part in problem['loc']) or 'file'}: "
        f"{problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    ]


def _catalogue_problems(
    path: Path, catalogue: Catalogue, profiles: Mapping[str, Profile]
) -> Iterable[str]:
    default = catalogue.default_model
    if default is not None and default not in catalogue.models:
        known = ", ".join(sorted(catalogue.models))
        yield f"{path}: default_model: '{default}' is not in models; there are: {known}"
    yield from _name_clashes(path, catalogue)
    for name, entry in catalogue.models.items():
        yield from _entry_problems(path, f"models.{name}", entry, profiles)


def _name_clashes(path: Path, catalogue: Catalogue) -> Iterable[str]:
    owner = {name: name for name in catalogue.models}
    for name, entry in catalogue.models.items():
        for alias in entry.aliases:
            if owner.setdefault(alias, name) != name:
                yield (
                    f"{path}: models.{name}.aliases: '{alias}' already names '{owner[alias]}'; "
                    "a name can stand for one model only"
                )


def _entry_problems(
    path: Path, where: str, entry: ModelEntry, profiles: Mapping[str, Profile]
) -> Iterable[str]:
    profile = profiles.get(entry.profile_name)
    if profile is None:
        known = ", ".join(sorted(profiles)) or "none"
        yield f"{path}: {where}.profile: there is no '{entry.profile_name}'; there are: {known}"
        return
    if profile.mode is not entry.type:
        yield (
            f"{path}: {where}.profile: '{entry.profile_name}' is for {profile.mode}, and the "
            f"model's type is {entry.type}"
        )
    try:
        override(profile, _checked(entry.overrides))
    except ValidationError as error:
        yield from describe(path, error, f"{where}.overrides.")


def _checked(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave `mode` to the type: an override of it would contradict the catalogue."""
    return {**overrides, "mode": "set by the model's type"} if "mode" in overrides else overrides
