"""The vocabulary of one of the demo models, for models that are made in tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter


def copy_vocabulary(source: Path, writer: GGUFWriter) -> Mapping[str, Any]:
    """Write the tokenizer of a model into another one; return its keys, without their prefix."""
    copied = {}
    for name, field in GGUFReader(source).fields.items():
        if name.startswith("tokenizer.ggml."):
            sub_type = field.types[1] if len(field.types) > 1 else None
            value = copied[name.removeprefix("tokenizer.ggml.")] = field.contents()
            writer.add_key_value(name, value, field.types[0], sub_type)
    return copied
