"""Finds what is wrong with the catalogue as a whole: what single fields cannot show."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from supervisor.config.catalogue import Catalogue, ModelEntry
from supervisor.config.layers import Layers
from supervisor.config.problems import field_problems, nearest
from supervisor.config.profile import Profile
from supervisor.config.settings import SupervisorSettings
from supervisor.config.source import FieldPath, Source, dotted
from supervisor.core.machine.values import Mode
from supervisor.errors import ConfigError

_FIXED = frozenset({"mode", "extends"})
_FIELDS_OF_A_MODE = {
    Mode.GENERATION: ("mmproj",),
    Mode.EMBEDDING: (
        *("tokenizer", "prompts", "long_input", "matryoshka_dimensions"),
        "spill",
    ),
}


class CatalogueChecker:
    """Looks for names that clash or cannot be said, and for profiles that are not there."""

    def __init__(
        self,
        source: Source,
        catalogue: Catalogue,
        layers: Layers,
        profiles: Mapping[str, Profile],
        settings: SupervisorSettings,
    ) -> None:
        self._source = source
        self._catalogue = catalogue
        self._layers = layers
        self._profiles = profiles
        self._settings = settings

    def problems(self, *, knows_all_models: bool) -> Iterable[str]:
        """Yield every problem of the catalogue as a whole."""
        yield from self._default_problems(knows_all_models=knows_all_models)
        yield from self._bad_names()
        yield from self._name_clashes()
        for name, entry in self._catalogue.models.items():
            yield from self._entry_problems(name, entry)

    def root_problems(self, models_dir: Path) -> Iterable[str]:
        """Yield the models whose file lies outside `allowed_roots`, links followed."""
        roots = [(models_dir / root).resolve() for root in self._catalogue.allowed_roots]
        if not roots:
            return
        allowed = ", ".join(str(root) for root in roots)
        for name, entry in self._catalogue.models.items():
            for field in ("path", "mmproj", "tokenizer"):
                written = getattr(entry, field)
                path = (models_dir / (written or "")).resolve()
                if written and not any(path.is_relative_to(root) for root in roots):
                    yield self._at(
                        ("models", name, field),
                        f"{path} lies outside allowed_roots ({allowed}); move it, or add its "
                        "folder",
                    )

    def _default_problems(self, *, knows_all_models: bool) -> Iterable[str]:
        models = self._catalogue.models
        of_mode = {mode: self._catalogue.default_models.of(mode) for mode in Mode}
        named: dict[FieldPath, str | None] = {
            ("default_model",): self._catalogue.default_model,
            ("idle_model",): self._catalogue.idle_model,
        }
        named |= {("default_models", mode.value): name for mode, name in of_mode.items()}
        for path, name in named.items():
            if name is not None and name not in models and knows_all_models:
                hint = nearest(name, list(models)) or f"; there are: {', '.join(sorted(models))}"
                yield self._at(path, f"there is no model '{name}'{hint}")
        idle = self._catalogue.idle_model or ""
        if idle in models and models[idle].idle_unload_s is not None:
            sentence = "is unloaded when idle, and idle_model loads it again; leave it out"
            yield self._at(("models", idle, "idle_unload_s"), f"'{idle}' {sentence}")
        for mode, name in of_mode.items():
            if name in models and models[name].type is not mode:
                sentence = f"'{name}' is a model for {models[name].type}; name one for {mode}"
                yield self._at(("default_models", mode.value), sentence)

    def _bad_names(self) -> Iterable[str]:
        for name, entry in self._catalogue.models.items():
            for field, words in (("", (name,)), (".aliases", entry.aliases)):
                for word in words:
                    if not word.strip() or not word.isprintable():
                        at = self._source.at(("models", name))
                        yield f"{at}: models{field}: {word!r} cannot be a model's name; write text"

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
        place: FieldPath = ("models", name, "profile")
        chosen = entry.profile_name
        if chosen not in self._layers.names():
            known = self._layers.names()
            hint = nearest(chosen, known) or f"; there are: {', '.join(known) or 'none'}"
            yield self._at(place, f"there is no profile '{chosen}'{hint}")
            return
        profile = self._profiles.get(chosen)
        if profile is None:
            return  # its own problems are reported
        yield from self._fallback_problems(name, entry, profile)
        yield from self._parking_problems(chosen, profile)
        if profile.mode is not entry.type:
            yield self._at(
                place,
                f"'{chosen}' is for {profile.mode}, and the model's type is {entry.type}; name "
                f"another profile, or write `type: {profile.mode}`",
            )
        for mode, fields in _FIELDS_OF_A_MODE.items():
            for field in fields:
                default = ModelEntry.model_fields[field].get_default(call_default_factory=True)
                if mode is not entry.type and getattr(entry, field) != default:
                    yield self._at(("models", name, field), f"is for {mode}; leave it out")
        yield from self._override_problems(name, entry)
        if entry.spill is not None and entry.type is Mode.EMBEDDING:
            yield from self._spill_problems(name, entry, entry.spill)

    def _spill_problems(self, name: str, entry: ModelEntry, spill: str) -> Iterable[str]:
        place: FieldPath = ("models", name, "spill")
        known = self._layers.names()
        if spill not in known:
            hint = nearest(spill, known) or f"; there are: {', '.join(known)}"
            yield self._at(place, f"there is no profile '{spill}'{hint}")
            return
        if spill == entry.profile_name:
            yield self._at(place, f"'{spill}' is its profile already; name another one, or none")
            return
        if None in (self._profiles.get(entry.profile_name), self._profiles.get(spill)):
            return  # the problems of a profile are reported with it
        try:
            own = self._layers.overridden(entry.profile_name, entry.overrides)
        except (ValidationError, ConfigError):
            return  # so are those of its own with the overrides
        try:
            twin = self._layers.overridden(spill, entry.overrides)
        except ValidationError as error:
            for inner, sentence in field_problems(error, Profile):
                at = ("models", name, "overrides", *inner)
                yield self._at(at, f"as its twin, with '{spill}': {sentence}")
        else:
            yield from self._differences(place, entry, own, twin)

    def _differences(
        self, place: FieldPath, entry: ModelEntry, own: Profile, twin: Profile
    ) -> Iterable[str]:
        spill = entry.spill
        if twin.mode is not Mode.EMBEDDING:
            yield self._at(place, f"'{spill}' is for {twin.mode}; name a profile for embedding")
        elif twin.device != "cpu":
            yield self._at(place, f"'{spill}' needs `device: cpu`, for a twin runs on the host")
        elif twin.pooling != own.pooling:
            yield self._at(
                place,
                f"'{spill}' has pooling {twin.pooling or 'as the model'}, and "
                f"'{entry.profile_name}' {own.pooling or 'as the model'}: the two would make other "
                "vectors of one text; write the same in both",
            )
        elif own.pooling == "rank":
            yield self._at(
                place, "is for models that make vectors, and this one ranks; leave it out"
            )

    def _fallback_problems(self, name: str, entry: ModelEntry, profile: Profile) -> Iterable[str]:
        overrides = _changeable(entry.overrides)
        try:
            fallback = self._layers.overridden(entry.profile_name, overrides).fallback_profile
        except ValidationError:  # which is reported with the overrides
            fallback = profile.fallback_profile
        if fallback in {None, entry.profile_name}:
            return
        other = self._profiles.get(fallback)
        if fallback not in self._layers.names():
            known = self._layers.names()
            hint = nearest(fallback, known) or f"; there are: {', '.join(known)}"
            yield self._at_fallback(name, entry, f"there is no profile '{fallback}'{hint}")
        elif other is not None and other.mode is not profile.mode:
            yield self._at_fallback(
                name,
                entry,
                f"'{fallback}' is for {other.mode}, and '{entry.profile_name}' for {profile.mode}",
            )
        elif other is not None:
            yield from self._overridden_fallback_problems(name, overrides, fallback, other)

    def _at_fallback(self, name: str, entry: ModelEntry, sentence: str) -> str:
        """Write a problem where the fallback is chosen: with the model, or in its profile."""
        if "fallback_profile" in entry.overrides:
            return self._at(("models", name, "overrides", "fallback_profile"), sentence)
        layer = self._layers.layer(entry.profile_name)
        place = layer.origin(("fallback_profile",), entry.profile_name)
        return f"{place}: fallback_profile: {sentence}"

    def _overridden_fallback_problems(
        self, name: str, overrides: Mapping[str, Any], fallback: str, other: Profile
    ) -> Iterable[str]:
        """Yield what is wrong with a fallback under the overrides, which are laid over it, too."""
        remedy = "write it into a profile of the model's own"
        try:
            device = self._layers.overridden(fallback, overrides).device
        except ValidationError as error:
            for inner, sentence in field_problems(error, Profile):
                at = ("models", name, "overrides", *inner)
                yield self._at(at, f"with its fallback_profile '{fallback}': {sentence}; {remedy}")
            return
        if other.device == "cpu" != device:
            yield self._at(
                ("models", name, "overrides", "device"),
                f"keeps its fallback_profile '{fallback}', which is for the host, on the GPU, too; "
                f"{remedy}",
            )

    def _parking_problems(self, name: str, profile: Profile) -> Iterable[str]:
        is_by_driver = profile.give_up_memory == "park" and profile.engine != "command"
        if is_by_driver and not self._settings.switch.cuda_checkpoint:
            place = self._layers.layer(name).origin(("give_up_memory",), name)
            yield (
                f"{place}: give_up_memory: park needs switch.cuda_checkpoint in supervisor.yaml "
                "for this engine; set that, or write stop"
            )

    def _override_problems(self, name: str, entry: ModelEntry) -> Iterable[str]:
        place: FieldPath = ("models", name, "overrides")
        for fixed in _FIXED & entry.overrides.keys():
            yield self._at((*place, fixed), "cannot be overridden; choose another profile")
        overrides = _changeable(entry.overrides)
        if not overrides:
            return
        try:
            self._layers.overridden(entry.profile_name, overrides)
        except ValidationError as error:
            for inner, sentence in field_problems(error, Profile):
                yield self._at((*place, *inner), sentence)

    def _at(self, place: FieldPath, sentence: str) -> str:
        return f"{self._source.at(place)}: {dotted(place)}: {sentence}"


def _changeable(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the overrides without those that are a problem of their own."""
    return {name: value for name, value in overrides.items() if name not in _FIXED}
