"""Everything operators wrote, checked: what the rest of the product is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace
from pydantic import ValidationError

from supervisor.config.catalogue import Catalogue, LongInput
from supervisor.config.layers import Layers
from supervisor.config.problems import field_problems
from supervisor.config.profile import Profile
from supervisor.config.scanned import LeftOut
from supervisor.config.settings import SupervisorSettings
from supervisor.config.source import FieldPath, Source, dotted
from supervisor.core.machine.rules import ModelRules, SwitchRules
from supervisor.core.machine.values import Mode
from supervisor.core.scheduling.values import Priority
from supervisor.errors import RequestRefused


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model of the catalogue with the profile it runs with, overrides applied.

    `reference` is the path as it was written, for engines that take a model's name on a hub in its
    place.
    """

    name: str
    path: Path
    reference: str
    mode: Mode
    profile_name: str
    profile: Profile
    aliases: tuple[str, ...] = ()
    projector_path: Path | None = None
    max_input_tokens: int | None = None
    tokenizer_path: Path | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    long_input: LongInput = LongInput.ERROR
    matryoshka_dimensions: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """Everything operators wrote. Names resolve by `named()` and `resolve()`.

    `layers` and `catalogue_source` hold what was written, each value with its file and line;
    `projectors` the files of the models' multimodal projectors, `left_out` what a scan of the
    models folder met and did not use.
    """

    settings: SupervisorSettings
    catalogue: Catalogue
    profiles: Mapping[str, Profile]
    layers: Layers
    catalogue_source: Source
    models_dir: Path
    projectors: Mapping[str, Path] = field(default_factory=dict)
    left_out: tuple[LeftOut, ...] = ()

    @cached_property
    def _name_by_alias(self) -> Mapping[str, str]:
        models = self.catalogue.models
        aliases = {alias: name for name, entry in models.items() for alias in entry.aliases}
        return aliases | {name: name for name in models}

    @cached_property
    def _resolved(self) -> dict[tuple[str, str | None], ResolvedModel]:
        """What `resolve()` has answered: a validation of all fields takes a millisecond."""
        return {}

    def model_name(self, name_or_alias: str) -> str | None:
        """Return the catalogue's name for a name or an alias; None when it is unknown.

        Ollama's clients add the tag `:latest` to a name without one.
        """
        known = self._name_by_alias
        return known.get(name_or_alias) or known.get(name_or_alias.removesuffix(":latest"))

    def named(self, name_or_alias: str) -> str:
        """Return the catalogue's name for a name or an alias. Raises RequestRefused."""
        name = self.model_name(name_or_alias)
        if name is not None:
            return name
        known = sorted(self.catalogue.models)
        raise RequestRefused(
            "model_not_found",
            f"there is no model '{name_or_alias}'; there are: {', '.join(known) or 'none'}",
            {"known_models": known},
        )

    def default_of(self, mode: Mode) -> str | None:
        """Return the model that is live where only a mode is known; None where none is meant.

        That is the one that `default_models` names, else the `default_model` if it is of the mode,
        else the only one that is.
        """
        catalogue = self.catalogue
        of_mode = [name for name, entry in catalogue.models.items() if entry.type is mode]
        named = catalogue.default_models.of(mode) or catalogue.default_model
        if named in of_mode:
            return named
        return of_mode[0] if len(of_mode) == 1 else None

    def rules(self) -> SwitchRules:
        """Return how switches go about their work, with what was chosen for single models."""
        of_models = {name: entry.rules() for name, entry in self.catalogue.models.items()}
        chosen = {name: rules for name, rules in of_models.items() if rules != ModelRules()}
        return replace(self.settings.rules(), models=chosen)

    def priority_of(self, model: str | None) -> Priority:
        """Return how urgent requests for a model are that say nothing of it."""
        entry = self.catalogue.models.get(model or "")
        return Priority.INTERACTIVE if entry is None else entry.priority

    def located(self, place: FieldPath, sentence: str) -> str:
        """Write a problem of the catalogue as `file:line: field: sentence`."""
        return f"{self.catalogue_source.at(place)}: {dotted(place)}: {sentence}"

    def located_field(self, name: str, field: str, sentence: str) -> str:
        """Write a problem of a field that a model runs with, where that field was written.

        That is the model's overrides, or its profile or what this extends. A field that nobody
        wrote is looked for where the model's profile is chosen.
        """
        entry = self.catalogue.models[name]
        place = tuple(field.split("."))
        if place[0] in entry.overrides:
            return self.located(("models", name, "overrides", *place), sentence)
        origin = self.layers.layer(entry.profile_name).origin(place, "")
        if origin:
            return f"{origin}: {field}: {sentence}"
        return self.located(("models", name, "profile"), f"{field}: {sentence}")

    def profiles_for(self, mode: Mode) -> tuple[str, ...]:
        """Return the names of the profiles that models of this mode can run with."""
        return tuple(sorted(name for name, p in self.profiles.items() if p.mode is mode))

    def profile_for(self, mode: Mode, name: str) -> Profile:
        """Return a profile for models of a mode. Raises RequestRefused where that is not one."""
        profile = self.profiles.get(name)
        if profile is not None and profile.mode is mode:
            return profile
        fitting = ", ".join(self.profiles_for(mode)) or "none"
        raise RequestRefused(
            "unknown_profile", f"there is no profile '{name}' for {mode}; there are: {fitting}"
        )

    def resolve(self, name_or_alias: str, profile_name: str | None = None) -> ResolvedModel:
        """Put a model of the catalogue and a profile (None: its own) together; computed once.

        Raises RequestRefused: `model_not_found`, `unknown_profile`, or `profile_conflict`
        where the model's overrides and a profile other than its own contradict each other.
        """
        key = name_or_alias, profile_name
        if key not in self._resolved:
            self._resolved[key] = self._resolve(self.named(name_or_alias), profile_name)
        return self._resolved[key]

    def _resolve(self, name: str, profile_name: str | None) -> ResolvedModel:
        entry = self.catalogue.models[name]
        chosen = profile_name or entry.profile_name
        self.profile_for(entry.type, chosen)
        try:
            profile = self.layers.overridden(chosen, entry.overrides)
        except ValidationError as error:
            problems = "; ".join(
                f"{dotted(place)}: {sentence}" for place, sentence in field_problems(error, Profile)
            )
            raise RequestRefused(
                "profile_conflict",
                f"'{name}' cannot run with profile '{chosen}', which its overrides contradict: "
                f"{problems}; choose another profile, or change its overrides in models.yaml",
            ) from error
        return ResolvedModel(
            name=name,
            path=self.models_dir / entry.path,
            reference=entry.path,
            mode=entry.type,
            profile_name=chosen,
            profile=profile,
            aliases=entry.aliases,
            projector_path=self.projectors.get(name),
            max_input_tokens=entry.max_input_tokens,
            tokenizer_path=self.models_dir / entry.tokenizer if entry.tokenizer else None,
            prompts=entry.prompts,
            long_input=entry.long_input,
            matryoshka_dimensions=entry.matryoshka_dimensions,
        )
