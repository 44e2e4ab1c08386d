"""Profiles as layers: what a profile says, over what it extends, under a model's overrides.

Each value keeps the place it comes from, so that problems name a file and line, and
`check --explain` shows an operator why a field has its value.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from supervisor.config.problems import field_problems, nearest
from supervisor.config.profile import Profile
from supervisor.config.source import FieldPath, Source, dotted
from supervisor.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Fields as written, merged from all that a profile extends, and where each stands."""

    values: Mapping[str, Any]
    origins: Mapping[FieldPath, str]

    def origin(self, place: FieldPath, otherwise: str) -> str:
        """Return `file:line` of a value, or of what encloses it."""
        for length in range(len(place), 0, -1):
            found = self.origins.get(place[:length])
            if found is not None:
                return found
        return otherwise


class Layers:
    """All profiles of a folder, by name; None stands for a file that cannot be read."""

    def __init__(self, sources: Mapping[str, Source | None], environ: Mapping[str, str]) -> None:
        self._sources = sources
        self._context = {"environ": environ}
        self._layers: dict[str, Layer] = {}

    def names(self) -> list[str]:
        """Return the names of the profiles there are."""
        return sorted(self._sources)

    def layer(self, name: str) -> Layer:
        """Return a profile's fields, inherited ones included. Raises ConfigError."""
        if name not in self._layers:
            self._layers[name] = self._merge(name, ())
        return self._layers[name]

    def profile(self, name: str) -> Profile:
        """Return the validated profile. Raises ConfigError with every problem."""
        layer = self.layer(name)
        try:
            return Profile.model_validate(dict(layer.values), context=self._context)
        except ValidationError as error:
            otherwise = self._source(name).at(())
            raise ConfigError(
                tuple(
                    f"{layer.origin(place, otherwise)}: {dotted(place)}: {sentence}"
                    for place, sentence in field_problems(error, Profile)
                )
            ) from error

    def overridden(self, name: str, overrides: Mapping[str, Any]) -> Profile:
        """Return the profile under a model's overrides. Raises ValidationError."""
        values = merge(self.layer(name).values, overrides)
        return Profile.model_validate(dict(values), context=self._context)

    def _source(self, name: str) -> Source:
        """Return a profile's file. Raises ConfigError, without a new problem, if unreadable."""
        source = self._sources[name]
        if source is None:
            raise ConfigError(())
        return source

    def _merge(self, name: str, below: tuple[str, ...]) -> Layer:
        source = self._source(name)
        own = {place: source.at(place) for place in source.lines if place and place[0] != "extends"}
        base_name = source.content.get("extends")
        if base_name is None:
            return Layer(values=source.content, origins=own)
        where = f"{source.at(('extends',))}: extends"
        if not isinstance(base_name, str):
            raise ConfigError((f"{where}: must be the name of one profile",))
        if base_name in (*below, name):
            chain = " → ".join((*below, name, str(base_name)))
            raise ConfigError((f"{where}: leads back to itself ({chain}); remove one of these",))
        if base_name not in self._sources:
            hint = nearest(str(base_name), self.names())
            known = ", ".join(self.names())
            raise ConfigError(
                (f"{where}: there is no profile '{base_name}'{hint or f'; there are: {known}'}",)
            )
        base = self._merge(base_name, (*below, name))
        return Layer(values=merge(base.values, source.content), origins={**base.origins, **own})


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay fields over fields; sections (`memory`, `env`) merge, everything else is replaced."""
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if isinstance(value, dict) and isinstance(under, dict):
            merged[name] = merge(under, value)
        else:
            merged[name] = value
    return merged


def leaves(values: Mapping[str, Any], place: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    """Yield every value that is not a section, with its place."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, (*place, name))
        else:
            yield (*place, name), value
