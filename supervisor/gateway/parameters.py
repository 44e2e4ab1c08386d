"""One strict reading of what a reserved route is asked: its path, its query and its body."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import pydantic

from supervisor.config.problems import field_problems
from supervisor.config.source import dotted
from supervisor.errors import RequestRefused
from supervisor.gateway.body_reading import BOM


class Parameters(pydantic.BaseModel):
    """What a route is asked. Each field stands once: in the path, the query or the body.

    A flag is declared `pydantic.StrictBool`: `true` or `false` in JSON, also `1` or `0` in a query
    or a form. A file is declared `pydantic.InstanceOf[Upload]`, so that no JSON can name one.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class NoParameters(Parameters):
    """What routes are asked that take nothing."""


class AnyParameters(pydantic.BaseModel):
    """What routes are asked that answer whatever is given, and do not look at it.

    Those of probes, and of lists that clients of other servers ask for with queries of their own.
    """


_FLAGS = {"true": True, "1": True, "false": False, "0": False}

_Asked = TypeVar("_Asked", bound=pydantic.BaseModel)


def read_parameters(
    parameters_type: type[_Asked],
    query: str,
    values: Mapping[str, str],
    body: bytes,
    form: Iterable[tuple[str, Any]] = (),
) -> _Asked:
    """Read what is asked out of the values in the path, the query, and the JSON body or the form.

    Raises RequestRefused `bad_request`, naming every field that is wrong.
    """
    if parameters_type is AnyParameters:
        return parameters_type()
    fields: dict[str, Any] = dict(values)
    pairs = (*parse_qsl(query, keep_blank_values=True), *form)
    asked = [(name, _flag_of(parameters_type, name, text)) for name, text in pairs]
    for name, value in (*asked, *_fields_of(body).items()):
        if name in fields:
            raise RequestRefused("bad_request", f"{name} is given more than once")
        fields[name] = value
    try:
        return parameters_type.model_validate(fields)
    except pydantic.ValidationError as error:
        found = field_problems(error, parameters_type)
        problems = [f"{dotted(place)}: {said}" if place else said for place, said in found]
        raise RequestRefused("bad_request", "; ".join(problems)) from error


def _flag_of(parameters_type: type[pydantic.BaseModel], name: str, text: Any) -> Any:
    """Return what stands in a query or a form; true or false where that is meant by a flag."""
    field = parameters_type.model_fields.get(name)
    return _FLAGS.get(text, text) if field is not None and field.annotation is bool else text


def _fields_of(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        return msgspec.json.decode(body.removeprefix(BOM), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused("bad_request", f"the body must be a JSON object: {error}") from error
