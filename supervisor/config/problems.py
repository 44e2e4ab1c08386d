"""Says what is wrong with a field, and what would be right, in an operator's words."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher, get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from supervisor.config.source import FieldPath, Source, dotted
from supervisor.config.units import as_written

_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text (in quotes)",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "fields (`name: value`)",
    "model_type": "fields (`name: value`)",
    "path_type": "a path",
    "is_instance_of": "a file, sent in a form",  # the only instances are uploads to our routes
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_LENGTHS = {
    "string_too_short": ("min_length", "at least"),
    "string_too_long": ("max_length", "at most"),
}
_OF_A_NAME = "[key]"
"""The last part of pydantic's place of a field whose name is wrong, and not its value."""


def field_problems(
    error: ValidationError, model_type: type[BaseModel]
) -> Iterator[tuple[FieldPath, str]]:
    """Yield the place and the sentence for each finding of pydantic."""
    for details in error.errors():
        place = tuple(part for part in details["loc"] if part != _OF_A_NAME)
        yield place, _sentence(details, _fields_beside(model_type, place))


def describe_faults(
    source: Source, error: ValidationError, model_type: type[BaseModel], below: FieldPath = ()
) -> list[str]:
    """Write each finding of pydantic behind its line; `below`: where in the file the model is."""
    found = field_problems(error, model_type)
    faults = (((*below, *place), sentence) for place, sentence in found)
    return [f"{source.at(place)}: {dotted(place)}: {sentence}" for place, sentence in faults]


def nearest(name: str, known: Iterator[str] | list[str]) -> str:
    """Return `; did you mean 'x'?` for the known names that are nearest, or nothing."""
    close = get_close_matches(name, list(known))
    nearness = [SequenceMatcher(None, each, name).ratio() for each in close]
    meant = [each for each, near in zip(close, nearness, strict=True) if near == nearness[0]]
    return f"; did you mean {' or '.join(map(repr, sorted(meant)))}?" if meant else ""


def _sentence(details: ErrorDetails, beside: list[str]) -> str:
    error_type, given, context = details["type"], details["input"], details.get("ctx", {})
    if error_type == "extra_forbidden":
        name = str(details["loc"][-1])
        hint = nearest(name, beside) or f"; there are: {', '.join(sorted(beside)) or 'none'}"
        return f"is not a known field{hint}"
    if error_type == "missing":
        return "is missing; write it"
    if error_type == "value_error":
        return f"{context['error']}"
    wanted = _wanted(error_type, context)
    if wanted is None:
        return details["msg"]
    return f"must be {wanted}, not {as_written(given)}{_advice(error_type, given)}"


def _advice(error_type: str, given: Any) -> str:
    """Say what to do where fields are wanted and one of the two usual slips was made."""
    if error_type not in {"model_type", "dict_type"}:
        return ""
    if given is None:
        return "; write them below it, or remove it"
    is_glued = isinstance(given, str) and re.match(r"\w+:\S", given)
    return "; a space belongs behind the colon" if is_glued else ""


def _wanted(error_type: str, context: dict[str, Any]) -> str | None:
    if error_type in {"enum", "literal_error"}:
        return str(context["expected"])
    if error_type in _BOUNDS:
        bound, words = _BOUNDS[error_type]
        return f"{words} {context[bound]:g}"
    if error_type in _LENGTHS:
        bound, words = _LENGTHS[error_type]
        count = context[bound]
        return f"text of {words} {count} character{'' if count == 1 else 's'}"
    return _WANTED.get(error_type)


def _fields_beside(model_type: type[BaseModel], place: FieldPath) -> list[str]:
    """Return the names that are known where the last part of a place stands."""
    here: Any = model_type
    for part in place[:-1]:
        here = _inside(here, part)
    fields = here.model_fields if _is_model(here) else {}
    return [field.alias or name for name, field in fields.items()]


def _inside(annotation: Any, part: str | int) -> Any:
    """Return the type behind a field's name, a mapping's key, a list's place, or beside None."""
    if _is_model(annotation):
        field = annotation.model_fields.get(str(part))
        return _plain(field.annotation) if field else None
    if get_origin(annotation) is dict:
        return _plain(get_args(annotation)[1])
    if get_origin(annotation) is tuple:
        return _plain(get_args(annotation)[0])
    return None


def _plain(annotation: Any) -> Any:
    if get_origin(annotation) in {Union, UnionType}:
        return next((a for a in get_args(annotation) if _is_model(a)), annotation)
    return annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
