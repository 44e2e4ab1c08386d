"""How devices are named: those that a profile gives its server, and those that have settings."""

import re
from itertools import combinations
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

_NAME_PATTERN = r"gpu(0|[1-9][0-9]*)|(GPU|MIG)-[0-9A-Za-z/-]+|[0-9A-Fa-f][0-9A-Fa-f-]{7,}"
_NAME = re.compile(_NAME_PATTERN)
_ID_PATTERN = r"host|gpu(0|[1-9][0-9]*)"
_ID = re.compile(_ID_PATTERN)
_NAME_SCHEMA = {"type": "string", "pattern": f"^({_NAME_PATTERN})$"}


def _device_choice(value: Any) -> Any:
    if isinstance(value, str) and (value in {"gpu", "cpu"} or _NAME.fullmatch(value)):
        return value
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(
            f"must be gpu, cpu, a device such as gpu1, its UUID (GPU-…), or a list of these, not "
            f"{value!r}"
        )
    for name in value:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"lists devices such as gpu1, or their UUIDs (GPU-…), and {name!r} is none"
            )
    for name, other in combinations(sorted(value), 2):  # the beginning of a UUID names it, too
        if name == other or (not name.startswith("gpu") and other.startswith(name)):
            raise ValueError(f"names a device twice: {name!r} and {other!r}; keep one")
    return value[0] if len(value) == 1 else tuple(value)


DeviceChoice = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_device_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["gpu", "cpu"]},
                _NAME_SCHEMA,
                {"type": "array", "items": _NAME_SCHEMA, "minItems": 1, "uniqueItems": True},
            ]
        }
    ),
]
"""`gpu`, `cpu`, a device, or several; a list of one is that device."""


def _device_id(value: Any) -> Any:
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    hint = "; the memory of the CPU is host" if value in {"cpu", "CPU"} else ""
    raise ValueError(f"must be host, or a GPU by its number, such as gpu0{hint}")


DeviceId = Annotated[
    str,
    BeforeValidator(_device_id),
    WithJsonSchema({"type": "string", "pattern": f"^({_ID_PATTERN})$"}),
]
"""`host`, or a GPU by its number through all vendors: `gpu0`."""
