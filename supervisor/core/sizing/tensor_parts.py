"""The tensor table of a GGUF file in short: what each layer and the output take."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSummary:
    """The tensor table in short: how many, their bytes without padding, how many of each type.

    `layer_bytes` are the bytes of each layer by its number (`blk.N.…`), `output_bytes` those of
    the output (`output….`), and `embedding_bytes` those of the tokens' embeddings, which the output
    uses, too, where it has no weights of its own (`has_output_weights`). `input_bytes` are those of
    the tables that tokens are looked up in, the embeddings among them. What is left belongs to no
    layer. `expert_bytes` are those of each layer's experts, which are among its bytes, and
    `largest_expert_bytes` those of the largest tensor of experts. All are empty where a tensor's
    type is not known, and its size with it.
    """

    count: int
    total_bytes: int
    types: Mapping[str, int]
    layer_bytes: Mapping[int, int] = field(default_factory=dict)
    output_bytes: int = 0
    embedding_bytes: int = 0
    input_bytes: int = 0
    has_output_weights: bool = False
    expert_bytes: Mapping[int, int] = field(default_factory=dict)
    largest_expert_bytes: int = 0


_INPUT = frozenset({"token_embd", "position_embd", "token_types", "per_layer_token_embd"})
"""Tables that llama.cpp looks tokens up in (LLM_TENSOR_LAYER_INPUT in llama-arch.cpp)."""

_EXPERTS = re.compile(r"blk\.[0-9]+\.ffn_(up|down|gate|gate_up)_(ch|)exps")
"""What `--cpu-moe` leaves on the host (LLM_FFN_EXPS_REGEX in common.h): no shared experts."""


class TensorParts:
    """Adds up what belongs to each layer, to the output, and to the input."""

    def __init__(self) -> None:
        self.layers: Counter[int] = Counter()
        self.experts: Counter[int] = Counter()
        self.largest_expert_bytes = 0
        self.output_bytes = self.embedding_bytes = 0
        self.input_bytes = 0
        self.has_output_weights = False

    def add(self, name: str, size_bytes: int) -> None:
        """Add a tensor under its name, as llama.cpp's converters write it."""
        head, _, rest = name.partition(".")
        number = rest.partition(".")[0]
        if head == "blk" and number.isascii() and number.isdigit():
            self.layers[int(number)] += size_bytes
            if _EXPERTS.match(name):
                self.experts[int(number)] += size_bytes
                self.largest_expert_bytes = max(self.largest_expert_bytes, size_bytes)
        elif head.startswith("output"):
            self.output_bytes += size_bytes
            self.has_output_weights |= name == "output.weight"
        elif head in _INPUT:
            self.input_bytes += size_bytes
            if head == "token_embd":
                self.embedding_bytes += size_bytes

    def summary(self, *, count: int, total_bytes: int, types: Mapping[str, int]) -> TensorSummary:
        """Return the table in short."""
        return TensorSummary(
            count=count,
            total_bytes=total_bytes,
            types=MappingProxyType(dict(types)),
            layer_bytes=MappingProxyType(dict(self.layers)),
            output_bytes=self.output_bytes,
            embedding_bytes=self.embedding_bytes,
            input_bytes=self.input_bytes,
            has_output_weights=self.has_output_weights,
            expert_bytes=MappingProxyType(dict(self.experts)),
            largest_expert_bytes=self.largest_expert_bytes,
        )
