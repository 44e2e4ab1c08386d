"""Inputs as several forms write them: a text, token ids, or a list of either."""

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from supervisor.embedding.values import Content
from supervisor.errors import RequestRefused
from supervisor.gateway.body_reading import BOM

MAX_INPUTS = 2048
"""Inputs of one request (OpenAI's API reference, Create embeddings)."""

GivenInputs = str | list[str | int | list[int]]
"""What a body may have; a list of numbers is one input."""

_Body = TypeVar("_Body")


def read_body(decoder: msgspec.json.Decoder[_Body], content: bytes) -> _Body:
    """Read a JSON body. Raises RequestRefused `bad_request`, which names what is wrong."""
    try:
        return decoder.decode(content.removeprefix(BOM))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused("bad_request", f"the body cannot be read: {error}") from error


def is_given(value: msgspec.Raw) -> bool:
    """Whether a field has a value; null is what was not given: some clients write every field."""
    return bytes(memoryview(value)[:4]) not in {b"", b"null"}  # the rest may be megabytes


def read_inputs(given: str | Sequence[str | int | list[int]], field: str) -> tuple[Content, ...]:
    """Return the inputs that a field has; raises RequestRefused, with `index`, for one that is not.

    None of them is empty; there may be none.
    """
    if isinstance(given, str):
        inputs: tuple[Content, ...] = (given,)
    elif given and all(isinstance(each, int) for each in given):
        inputs = (tuple(each for each in given if isinstance(each, int)),)
    else:
        inputs = tuple(_input(each, field, index) for index, each in enumerate(given))
    require_count(inputs, field)
    empty = next((index for index, each in enumerate(inputs) if not each), None)
    if empty is not None:
        which = "" if isinstance(given, str) else f": `{field}[{empty}]` is"
        raise RequestRefused("bad_request", f"`{field}` cannot be empty{which}", {"index": empty})
    return inputs


def require_count(inputs: Sequence[object], field: str) -> None:
    """Raise RequestRefused where a request has more inputs than it may."""
    if len(inputs) > MAX_INPUTS:
        raise RequestRefused(
            "bad_request",
            f"batch size {len(inputs)} > maximum allowed batch size {MAX_INPUTS}: `{field}` has "
            f"{len(inputs)} entries; send several requests",
        )


def _input(given: str | int | list[int], field: str, index: int) -> Content:
    if isinstance(given, int):
        raise RequestRefused(
            "bad_request",
            f"`{field}[{index}]` is a number among texts; token ids of one input are a list",
            {"index": index},
        )
    return given if isinstance(given, str) else tuple(given)
