"""Reads the configuration folder, and reports every problem of every file at once.

`models.yaml` is the catalogue (or the file named by MODEL_CONFIG_PATH), `supervisor.yaml` holds
the controller's settings, every other `*.yaml` is the profile of that name.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from supervisor.config.configuration import Configuration
from supervisor.config.layers import Layers, leaves
from supervisor.config.problems import field_problems, nearest
from supervisor.config.profile import Profile
from supervisor.config.settings import Catalogue, ModelEntry, SupervisorSettings
from supervisor.config.source import Place, Source, dotted, read_source
from supervisor.config.units import variables_in
from supervisor.core.machine.values import Mode
from supervisor.errors import ConfigError

CATALOGUE_FILE = "models.yaml"
SETTINGS_FILE = "supervisor.yaml"

_FIXED = frozenset({"mode", "extends"})
_EXPANDED_FIELDS = frozenset({"path", "models_dir", "allowed_roots", "llama_server_bin", "env"})

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A GGUF file that a folder scan found, with what its header says."""

    name: str
    path: Path
    mode: Mode
    projector_path: Path | None = None


ModelScan = Callable[[Path], Iterable[FoundModel]]
"""Looks through a folder for models; injected, because reading headers is the engine's room."""


def load(
    folder: Path,
    models_dir: Path,
    environ: Mapping[str, str],
    scan: ModelScan | None = None,
) -> Configuration:
    """Read and check the folder. Raises ConfigError that names every problem.

    Without a `scan`, the models that `models_dir` would add are unknown, and nothing is said of a
    `default_model` that may be one of them.
    """
    with _collector_paused():
        return _load(folder, models_dir, environ, scan)


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


def _load(
    folder: Path, models_dir: Path, environ: Mapping[str, str], scan: ModelScan | None
) -> Configuration:
    reader = _Reader(environ)
    if not folder.is_dir():
        raise ConfigError((f"{folder}: there is no such folder; name it with --profiles",))
    catalogue_path = Path(environ.get("MODEL_CONFIG_PATH") or folder / CATALOGUE_FILE)
    catalogue_source, catalogue = reader.read(catalogue_path, Catalogue)
    settings_path = folder / SETTINGS_FILE
    settings: SupervisorSettings | None = SupervisorSettings()
    if settings_path.exists():
        _, settings = reader.read(settings_path, SupervisorSettings)
    layers, profiles = reader.read_profiles(
        path
        for path in sorted(folder.glob("*.yaml"))
        if path.name not in {SETTINGS_FILE, CATALOGUE_FILE}
        and path.resolve() != catalogue_path.resolve()
    )
    projectors: dict[str, Path] = {}
    if catalogue is not None and catalogue_source is not None:
        knows_all = scan is not None or catalogue.models_dir is None
        if scan is not None:
            catalogue, projectors = _with_scanned(catalogue, models_dir, scan)
        checker = _CatalogueChecker(catalogue_source, catalogue, layers, profiles)
        reader.problems += checker.problems(knows_all_models=knows_all)
        reader.problems += checker.root_problems(models_dir)
    if reader.problems or catalogue is None or catalogue_source is None or settings is None:
        raise ConfigError(tuple(reader.problems))
    return Configuration(
        settings=settings,
        catalogue=catalogue,
        profiles=profiles,
        layers=layers,
        catalogue_source=catalogue_source,
        models_dir=models_dir,
        projectors=projectors,
    )


class _Reader:
    """Reads files into models and collects what is wrong with them."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._environ = environ

    def read(self, path: Path, kind: type[_Model]) -> tuple[Source | None, _Model | None]:
        """Return the file's source and content as `kind`; None after noting problems."""
        source = self._source(path)
        if source is None:
            return None, None
        try:
            context = {"environ": self._environ}
            return source, kind.model_validate(source.content, context=context)
        except ValidationError as error:
            self.problems += [
                f"{source.at(place)}: {dotted(place)}: {sentence}"
                for place, sentence in field_problems(error, kind)
            ]
            return source, None

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
                f"{source.at(place)}: {dotted(place)}: variables are put in for paths and "
                "secrets only; write the value itself"
            )


def _with_scanned(
    catalogue: Catalogue, models_dir: Path, scan: ModelScan
) -> tuple[Catalogue, dict[str, Path]]:
    """Add the models that a scan of `models_dir` finds and that no entry names."""
    if catalogue.models_dir is None:
        return catalogue, {}
    named = {(models_dir / entry.path).resolve() for entry in catalogue.models.values()}
    models = dict(catalogue.models)
    projectors: dict[str, Path] = {}
    for found in scan(models_dir / catalogue.models_dir):
        if found.path.resolve() in named or found.name in models:
            continue
        models[found.name] = ModelEntry(path=str(found.path), type=found.mode)
        if found.projector_path is not None:
            projectors[found.name] = found.projector_path
    return catalogue.model_copy(update={"models": models}), projectors


class _CatalogueChecker:
    """Finds what single fields cannot show: names that clash, profiles that are not there."""

    def __init__(
        self,
        source: Source,
        catalogue: Catalogue,
        layers: Layers,
        profiles: Mapping[str, Profile],
    ) -> None:
        self._source = source
        self._catalogue = catalogue
        self._layers = layers
        self._profiles = profiles

    def problems(self, *, knows_all_models: bool) -> Iterable[str]:
        """Yield every problem of the catalogue as a whole."""
        default, models = self._catalogue.default_model, self._catalogue.models
        if default is not None and default not in models and knows_all_models:
            hint = nearest(default, list(models)) or f"; there are: {', '.join(sorted(models))}"
            yield self._at(("default_model",), f"there is no model '{default}'{hint}")
        yield from self._name_clashes()
        for name, entry in models.items():
            yield from self._entry_problems(name, entry)

    def root_problems(self, models_dir: Path) -> Iterable[str]:
        """Yield the models whose file lies outside `allowed_roots`, links followed."""
        roots = [(models_dir / root).resolve() for root in self._catalogue.allowed_roots]
        if not roots:
            return
        for name, entry in self._catalogue.models.items():
            path = (models_dir / entry.path).resolve()
            if not any(path.is_relative_to(root) for root in roots):
                allowed = ", ".join(str(root) for root in roots)
                yield self._at(
                    ("models", name, "path"),
                    f"{path} lies outside allowed_roots ({allowed}); move it, or add its folder",
                )

    def _name_clashes(self) -> Iterable[str]:
        owner = {name: name for name in self._catalogue.models}
        for name, entry in self._catalogue.models.items():
            for alias in entry.aliases:
                if owner.setdefault(alias, name) != name:
                    yield self._at(
                        ("models", name, "aliases"),
                        f"'{alias}' already names '{owner[alias]}'; a name can stand for one "
                        "model only",
                    )

    def _entry_problems(self, name: str, entry: ModelEntry) -> Iterable[str]:
        place: Place = ("models", name, "profile")
        chosen = entry.profile_name
        if chosen not in self._layers.names():
            known = self._layers.names()
            hint = nearest(chosen, known) or f"; there are: {', '.join(known) or 'none'}"
            yield self._at(place, f"there is no profile '{chosen}'{hint}")
            return
        profile = self._profiles.get(chosen)
        if profile is None:
            return  # its own problems are reported
        yield from self._fallback_problems(chosen, profile)
        if profile.mode is not entry.type:
            yield self._at(
                place, f"'{chosen}' is for {profile.mode}, and the model's type is {entry.type}"
            )
        yield from self._override_problems(name, entry)

    def _fallback_problems(self, name: str, profile: Profile) -> Iterable[str]:
        fallback = profile.fallback_profile
        if fallback is None:
            return
        other = self._profiles.get(fallback)
        layer = self._layers.layer(name)
        place = layer.origin(("fallback_profile",), name)
        if fallback not in self._layers.names():
            known = self._layers.names()
            hint = nearest(fallback, known) or f"; there are: {', '.join(known)}"
            yield f"{place}: fallback_profile: there is no profile '{fallback}'{hint}"
        elif other is not None and other.mode is not profile.mode:
            yield (
                f"{place}: fallback_profile: '{fallback}' is for {other.mode}, and '{name}' for "
                f"{profile.mode}"
            )

    def _override_problems(self, name: str, entry: ModelEntry) -> Iterable[str]:
        place: Place = ("models", name, "overrides")
        for fixed in _FIXED & entry.overrides.keys():
            yield self._at((*place, fixed), "cannot be overridden; choose another profile")
        overrides = {k: v for k, v in entry.overrides.items() if k not in _FIXED}
        if not overrides:
            return
        try:
            self._layers.overridden(entry.profile_name, overrides)
        except ValidationError as error:
            for inner, sentence in field_problems(error, Profile):
                yield self._at((*place, *inner), sentence)

    def _at(self, place: Place, sentence: str) -> str:
        return f"{self._source.at(place)}: {dotted(place)}: {sentence}"
