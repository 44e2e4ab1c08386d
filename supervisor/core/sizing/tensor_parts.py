"""The tensor table of a GGUF file in short: what each layer and the output take."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSummary:
    """The tensor table in short: how many, their bytes without padding, how many of each type.

    `layer_bytes` are the bytes of each layer by its number (`blk.N.…`), `output_bytes` those of
    the output (`output….`), and `embedding_bytes` those of the tokens' embeddings, which the output
    uses, too, where it has no weights of its own (`has_output_weights`). What is left belongs to
    the input. All are empty where a tensor's type is not known, and its size with it.
    """

    count: int
    total_bytes: int
    types: Mapping[str, int]
    layer_bytes: Mapping[int, int] = field(default_factory=dict)
    output_bytes: int = 0
    embedding_bytes: int = 0
    has_output_weights: bool = False


class TensorParts:
    """Adds up what belongs to each layer, and to the output."""

    def __init__(self) -> None:
        self.layers: Counter[int] = Counter()
        self.output_bytes = self.embedding_bytes = 0
        self.has_output_weights = False

    def add(self, name: str, size_bytes: int) -> None:
        """Add a tensor under its name, as llama.cpp's converters write it."""
        head, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if head == "blk" and number.isascii() and number.isdigit():
            self.layers[int(number)] += size_bytes
        elif head.startswith("output"):
            self.output_bytes += size_bytes
            self.has_output_weights |= name == "output.weight"
        elif name == "token_embd.weight":
            self.embedding_bytes = size_bytes

    def summary(self, *, count: int, total_bytes: int, types: Mapping[str, int]) -> TensorSummary:
        """Return the table in short."""
        return TensorSummary(
            count=count,
            total_bytes=total_bytes,
            types=MappingProxyType(dict(types)),
            layer_bytes=MappingProxyType(dict(self.layers)),
            output_bytes=self.output_bytes,
            embedding_bytes=self.embedding_bytes,
            has_output_weights=self.has_output_weights,
        )
