"""Sizes, durations and text from the environment, as operators write them."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

_UNIT_BYTES = {
    "B": 1,
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", start=1)},
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
}
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?)\s*([A-Za-z]+)")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:(?!\$\{)[^}])*))?\}")
_OTHER_FORM = re.compile(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)(?=[:?+=-]))?")


def _size(value: Any) -> Any:
    return _quantity(value, _UNIT_BYTES, "a size such as 16GiB, 512MiB or a number of bytes", int)


def _duration(value: Any) -> Any:
    return _quantity(
        value, _UNIT_SECONDS, "a duration such as 30s, 250ms, 5m or a number of seconds", float
    )


def _quantity(value: Any, units: Mapping[str, float], wanted: str, number_type: type) -> Any:
    """Turn `16GiB` into a number; numbers stay what they are. Raises ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"must be {wanted}, not {as_written(value)}")
    if not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value.strip())
    if match is None or match[2] not in units:
        known = f"; the units are {', '.join(units)}" if match is not None else ""
        raise ValueError(f"must be {wanted}, not {as_written(value)}{known}")
    quantity = float(match[1]) * units[match[2]]
    if math.isinf(quantity):
        raise ValueError(f"is too large; it must be {wanted}")
    return number_type(quantity)


def as_written(value: Any) -> str:
    """Write a value as it stands in YAML, cut where it is long: `'many'`, `true`, `nothing`."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def expand(
    text: str, environ: Mapping[str, str], write: Callable[[str], str] = lambda value: value
) -> str:
    """Put variables in: `${NAME}`, or `${NAME:-default}`, which also stands for an empty one.

    `write` says how their values are written. Raises ValueError for a variable that is not set or
    is empty, and for other forms, without what stands in them: it may be a secret.
    """

    def value_of(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        value = environ.get(name) or default
        if value is None:
            state, remedy = ("is empty", "fill it") if name in environ else ("is not set", "set it")
            raise ValueError(f"variable {name} {state}; {remedy}, or write ${{{name}:-default}}")
        return write(value)

    if other := _OTHER_FORM.search(_VARIABLE.sub(" ", text)):
        raise ValueError(_describe_form(other[1]))
    return _VARIABLE.sub(value_of, text)


def _describe_form(name: str | None) -> str:
    """Say which forms there are, to whoever wrote another one: `${NAME-x}`, `${NAME:?x}`, `${`."""
    if name is None:
        return (
            "has a `${` that begins no variable; write ${NAME}, or ${NAME:-default}, and text that "
            "has one in it as the value of a variable"
        )
    return (
        f"has ${{{name}…}} in a form that is not supported; write ${{{name}}}, or "
        f"${{{name}:-default}} without another variable in it"
    )


def variables_in(text: str) -> tuple[str, ...]:
    """Return the names of the variables that a text refers to."""
    return tuple(match[1] for match in _VARIABLE.finditer(text))


def _expanded(value: Any, info: ValidationInfo) -> Any:
    environ = (info.context or {}).get("environ", {})
    return expand(value, environ) if isinstance(value, str) else value


_SIZE_SCHEMA = {
    "anyOf": [{"type": "integer"}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[KMGT]?i?B$"}]
}
_DURATION_SCHEMA = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^\d+(\.\d+)?\s*(ms|s|m|min|h|d)$"},
    ]
}

Bytes = Annotated[int, BeforeValidator(_size), WithJsonSchema(_SIZE_SCHEMA)]
"""A size in bytes; written as a number, or with a unit: `16GiB`."""

Seconds = Annotated[float, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
"""A duration in seconds; written as a number, or with a unit: `30s`."""

EnvText = Annotated[str, BeforeValidator(_expanded)]
"""Text that may name variables of the environment: paths and secrets only."""
