"""The catalogue of models (`models.yaml`) and the controller's own settings (`supervisor.yaml`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from supervisor.config.profile import Profile, Settings
from supervisor.core.memory import MIB
from supervisor.core.values import Mode


class ModelEntry(Settings):
    """One model of the catalogue."""

    path: str = Field(description="The GGUF file, relative to the models folder, or absolute.")
    type: Mode = Field(
        default=Mode.GENERATION,
        description="`generation` or `embedding` (`embedding: true` is the older spelling).",
    )
    profile: str | None = Field(
        default=None, description="The profile to run with; default: the one named as the type."
    )
    aliases: tuple[str, ...] = Field(default=(), description="Further names that clients may use.")
    max_input_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Longest input that the model was trained for, in tokens; default: the file's.",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the profile that differ for this model."
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_older_spelling(cls, entry: Any) -> Any:
        if not isinstance(entry, dict) or "embedding" not in entry:
            return entry
        entry = dict(entry)
        flag = entry.pop("embedding")
        if not isinstance(flag, bool):
            raise ValueError("embedding: must be true or false; better write `type: embedding`")
        spelled = Mode.EMBEDDING if flag else Mode.GENERATION
        if entry.setdefault("type", spelled.value) != spelled.value:
            raise ValueError(f"type says {entry['type']} and embedding says {spelled}; keep type")
        return entry

    @property
    def profile_name(self) -> str:
        """The profile to run with when a switch names none."""
        return self.profile or self.type.value


class Catalogue(Settings):
    """`models.yaml`: the models that can be switched to."""

    default_model: str | None = Field(
        default=None, description="The model to load at start; none when left out."
    )
    models: dict[str, ModelEntry] = Field(description="Each model under the name clients use.")


class ServerSettings(Settings):
    """Where the controller listens and what it takes."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 = any free one.")
    max_body_bytes: int = Field(
        default=64 * MIB, ge=1, description="Largest request body in bytes; above it: 413."
    )
    log_format: Literal["console", "json"] = Field(
        default="console", description="Log lines for people, or JSON for machines."
    )


class DeviceSettings(Settings):
    """What a device may carry."""

    budget_bytes: int | None = Field(
        default=None, gt=0, description="Bytes that backends may take in all; default: its total."
    )
    exclusive: bool = Field(default=False, description="Only one backend at a time.")


class QueueSettings(Settings):
    """Bounds on requests that wait for a switch."""

    hold_max_requests: int = Field(
        default=10_000, ge=0, description="Requests that may wait; beyond: 503."
    )
    hold_timeout_s: float = Field(
        default=300.0, gt=0, description="Seconds that a request may wait; beyond: 503."
    )


class SwitchSettings(Settings):
    """How switches and the shutdown behave."""

    history_size: int = Field(default=1000, ge=1, description="Switches kept for /switches.")
    shutdown_drain_timeout_s: float = Field(
        default=30.0, ge=0, description="Seconds that requests get after SIGTERM."
    )


class EngineSettings(Settings):
    """Where engines are found."""

    llama_server_bin: Path | None = Field(
        default=None,
        description="The llama-server binary; default: LLAMA_SERVER_BIN, PATH, the cached build.",
    )


class SupervisorSettings(Settings):
    """`supervisor.yaml`: everything that is neither a model nor a profile."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    devices: dict[str, DeviceSettings] = Field(
        default_factory=dict, description="By id: `gpu0`, `gpu1`, `host`."
    )
    engines: EngineSettings = Field(default_factory=EngineSettings)
    queue: QueueSettings = Field(default_factory=QueueSettings)
    switch: SwitchSettings = Field(default_factory=SwitchSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model of the catalogue with the profile it runs with, overrides applied."""

    name: str
    path: Path
    mode: Mode
    profile_name: str
    profile: Profile
    max_input_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Everything operators wrote, checked. Names resolve by `model_name()` and `resolve()`."""

    settings: SupervisorSettings
    catalogue: Catalogue
    profiles: Mapping[str, Profile]
    models_dir: Path

    def model_name(self, name_or_alias: str) -> str | None:
        """Return the catalogue's name for a name or an alias; None when it is unknown."""
        if name_or_alias in self.catalogue.models:
            return name_or_alias
        for name, entry in self.catalogue.models.items():
            if name_or_alias in entry.aliases:
                return name
        return None

    def resolve(self, name: str, profile_name: str | None = None) -> ResolvedModel:
        """Put a catalogued model and a profile together.

        Raises KeyError for a name or a profile that is not there, pydantic's ValidationError for
        overrides that do not fit the profile (both are ruled out for what `load()` checked).
        """
        entry = self.catalogue.models[name]
        chosen = profile_name or entry.profile_name
        return ResolvedModel(
            name=name,
            path=self.models_dir / entry.path,
            mode=entry.type,
            profile_name=chosen,
            profile=override(self.profiles[chosen], entry.overrides),
            max_input_tokens=entry.max_input_tokens,
        )


def override(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """Apply a model's overrides to a profile. Raises ValidationError when they do not fit."""
    if not overrides:
        return profile
    merged = profile.model_dump(exclude_unset=True) | dict(overrides)
    if isinstance(overrides.get("memory"), dict):
        merged["memory"] = profile.memory.model_dump(exclude_unset=True) | overrides["memory"]
    return Profile.model_validate(merged)
