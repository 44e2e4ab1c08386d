"""Reads the configuration folder, and reports every problem of every file at once.

`models.yaml` is the catalogue (or the file named by MODEL_CONFIG_PATH), `supervisor.yaml` holds
the controller's settings, every other `*.yaml` is the profile of that name.
"""

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from supervisor.config.catalogue import Catalogue, ModelEntry
from supervisor.config.catalogue_checker import CatalogueChecker
from supervisor.config.configuration import Configuration
from supervisor.config.layers import Layers, leaves
from supervisor.config.problems import describe_faults
from supervisor.config.profile import Profile
from supervisor.config.scanned import ModelScan, add_scanned
from supervisor.config.schedule_checker import schedule_problems
from supervisor.config.settings import SupervisorSettings
from supervisor.config.source import Source, dotted, read_source
from supervisor.config.units import variables_in
from supervisor.errors import ConfigError

CATALOGUE_FILE = "models.yaml"
SETTINGS_FILE = "supervisor.yaml"

_EXPANDED_FIELDS = frozenset(
    {
        *("path", "mmproj", "tokenizer", "models_dir", "allowed_roots"),
        *("llama_server_bin", "env", "url", "queue_url", "files_dir"),
    }
)

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What came of reading a folder: everything that is wrong, and what is sound of the rest.

    `configuration` is for further checks where there are problems: faulty models and profiles are
    missing from it. None: there is no folder, or no catalogue in it.
    """

    configuration: Configuration | None
    problems: tuple[str, ...]


def load(
    folder: Path, models_dir: Path, environ: Mapping[str, str], scan: ModelScan | None = None
) -> Configuration:
    """Read and check the folder. Raises ConfigError that names every problem.

    Without a `scan`, the models that `models_dir` would add are unknown, and nothing is said of a
    `default_model` that may be one of them.
    """
    reading = read(folder, models_dir, environ, scan)
    if reading.problems or reading.configuration is None:
        raise ConfigError(reading.problems)
    return reading.configuration


def read(
    folder: Path, models_dir: Path, environ: Mapping[str, str], scan: ModelScan | None = None
) -> Reading:
    """Read and check the folder as `load()`. Problems do not end it: what can be checked is."""
    with _collector_paused():
        return _read(folder, models_dir, environ, scan)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Let no garbage collection run: many small values live on, and it would halve the speed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(
    folder: Path, models_dir: Path, environ: Mapping[str, str], scan: ModelScan | None
) -> Reading:
    reader = _Reader(environ)
    if not folder.is_dir():
        problem = f"{folder}: there is no such folder; name it with --profiles"
        return Reading(configuration=None, problems=(problem,))
    catalogue_path = Path(environ.get("MODEL_CONFIG_PATH") or folder / CATALOGUE_FILE)
    catalogue_source, catalogue = reader.read_catalogue(catalogue_path)
    settings_path = folder / SETTINGS_FILE
    settings: SupervisorSettings | None = None
    settings_source: Source | None = None
    if os.path.lexists(settings_path):  # a link that leads nowhere is a fault, not no file
        settings_source, settings = reader.read(settings_path, SupervisorSettings)
    layers, profiles = reader.read_profiles(_profile_paths(folder, catalogue_path, reader))
    configuration = None
    if catalogue is not None and catalogue_source is not None:
        knows_all = scan is not None or catalogue.models_dir is None
        full = add_scanned(catalogue, models_dir, scan)
        checker = CatalogueChecker(
            catalogue_source,
            full.catalogue,
            layers,
            profiles,
            settings or SupervisorSettings(),
        )
        reader.problems += checker.problems(knows_all_models=knows_all)
        reader.problems += checker.root_problems(models_dir)
        configuration = Configuration(
            settings=settings or SupervisorSettings(),
            catalogue=full.catalogue,
            profiles=profiles,
            layers=layers,
            catalogue_source=catalogue_source,
            models_dir=models_dir,
            projectors=full.projectors,
            left_out=full.left_out,
        )
        if settings_source is not None and knows_all:
            reader.problems += schedule_problems(settings_source, configuration)
    return Reading(configuration=configuration, problems=tuple(dict.fromkeys(reader.problems)))


def _profile_paths(folder: Path, catalogue_path: Path, reader: "_Reader") -> Iterator[Path]:
    """Yield the files of profiles, hidden ones (`._generation.yaml`) left out."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        reader.problems.append(f"{folder}: cannot be read: {error.strerror}")
        return
    for path in paths:
        is_catalogue = path.name == CATALOGUE_FILE or path.resolve() == catalogue_path.resolve()
        if path.name.startswith(".") or path.name == SETTINGS_FILE or is_catalogue:
            continue
        if path.suffix == ".yaml":
            yield path
        elif path.suffix.lower() in {".yaml", ".yml"}:
            reader.problems.append(f"{path}:1: file: is not read; rename it {path.stem}.yaml")


class _Reader:
    """Reads files into models and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._environ = environ

    def read(self, path: Path, model_type: type[_Model]) -> tuple[Source | None, _Model | None]:
        """Return the file's source and content as `model_type`; None after noting problems."""
        source = self._source(path)
        if source is None:
            return None, None
        try:
            context = {"environ": self._environ}
            return source, model_type.model_validate(source.content, context=context)
        except ValidationError as error:
            self.problems += describe_faults(source, error, model_type)
            return source, None

    def read_catalogue(self, path: Path) -> tuple[Source | None, Catalogue | None]:
        """Return the catalogue as `read()` does, and after problems without the faulty models."""
        if not os.path.lexists(path):
            self.problems.append(
                f"{path}:1: file: is not there, and names the models; write it, or name another "
                "folder with --profiles, or the file in MODEL_CONFIG_PATH"
            )
            return None, None
        source, catalogue = self.read(path, Catalogue)
        if source is None or catalogue is not None:
            return source, catalogue
        models = source.content.get("models")
        sound: dict[str, ModelEntry] = {}
        for name, entry in models.items() if isinstance(models, dict) else ():
            with suppress(ValidationError):
                sound[name] = ModelEntry.model_validate(entry, context={"environ": self._environ})
        return source, Catalogue(models=sound)

    def read_profiles(self, paths: Iterable[Path]) -> tuple[Layers, dict[str, Profile]]:
        """Read the files as profiles, each over what it extends."""
        found = {path.stem: self._source(path) for path in paths}
        layers = Layers(found, self._environ)
        profiles: dict[str, Profile] = {}
        for name, source in found.items():
            if source is None:
                continue
            try:
                profiles[name] = layers.profile(name)
            except ConfigError as error:
                self.problems += [p for p in error.problems if p not in self.problems]
        return layers, profiles

    def _source(self, path: Path) -> Source | None:
        try:
            source = read_source(path)
        except ConfigError as error:
            self.problems += error.problems
            return None
        self.problems += [*source.problems, *_misplaced_variables(source)]
        return source


def _misplaced_variables(source: Source) -> Iterable[str]:
    """Find `${NAME}` where it stands for itself: surprises are worse than a refusal."""
    for place, value in leaves(source.content):
        words = value if isinstance(value, list) else [value]
        if any(isinstance(word, str) and variables_in(word) for word in words) and not any(
            part in _EXPANDED_FIELDS for part in place
        ):
            yield (
                f"{source.at(place)}: {dotted(place)}: variables are replaced in paths and "
                "secrets only; write the value itself"
            )
