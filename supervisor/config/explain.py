"""Shows, field by field, what a model runs with and where each value comes from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.layers import leaves
from supervisor.config.source import FieldPath, dotted
from supervisor.config.units import variables_in


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedField:
    """A field's name, its value as it holds, and where that was written."""

    name: str
    value: str
    origin: str


def explain(configuration: Configuration, resolved: ResolvedModel) -> Iterator[ExplainedField]:
    """Yield every field of the profile that a model of the catalogue runs with.

    A value that comes from the environment is shown by its variable, for it may be a secret.
    """
    model, entry = resolved.name, configuration.catalogue.models[resolved.name]
    layer = configuration.layers.layer(resolved.profile_name)
    written = dict(leaves(layer.values)) | dict(leaves(entry.overrides))
    overridden = {place for place, _ in leaves(entry.overrides)}
    for place, value in _fields(resolved.profile):
        if place in overridden:
            line = configuration.catalogue_source.at(("models", model, "overrides", *place))
            origin = f"model, {line}"
        elif place in written:
            origin = f"profile, {layer.origin(place, resolved.profile_name)}"
        else:
            origin = "default"
        raw = written.get(place)
        names = variables_in(raw) if isinstance(raw, str) else ()
        if names:
            origin += f", environment {', '.join(names)}"
        yield ExplainedField(
            name=dotted(place), value=str(raw if names else _shown(value)), origin=origin
        )


def _fields(settings: BaseModel, place: FieldPath = ()) -> Iterator[tuple[FieldPath, Any]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from _fields(value, (*place, name))
        elif isinstance(value, dict) and value:
            yield from (((*place, name, key), inner) for key, inner in value.items())
        elif name != "extends":
            yield (*place, name), value


def _shown(value: Any) -> str:
    if value is None or value in ((), {}):
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, tuple) else str(value)
