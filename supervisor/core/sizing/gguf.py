"""Read the header of a GGUF file from bytes: what the model is, and how large its tensors are.

A header holds key-value pairs, among them vocabularies of some 300,000 strings, and after them
the tensor table. Nothing here opens a file: the caller hands over the first bytes, and more of
them when `NeedMoreBytes` says so. Whatever the bytes are, nothing is raised but that and
ModelFileError, and time and memory stay in proportion to what was handed over.

Source of the format: ggml/include/gguf.h and ggml/src/gguf.cpp of llama.cpp (build 11434).
"""

import math
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, NoReturn, TypeAlias

from supervisor.core.byte_size import format_bytes
from supervisor.core.sizing.ggml_types import GGML_TYPES
from supervisor.core.sizing.likeness import likeness
from supervisor.core.sizing.tensor_parts import TensorParts, TensorSummary
from supervisor.errors import ModelFileError, SupervisorError

MetadataValue: TypeAlias = int | float | str | tuple[int | float, ...]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
LONGEST_KEPT_ARRAY = 1024
"""Arrays of numbers up to this length are kept: per-layer settings (llama.cpp has at most 512
layers), not the scores of a vocabulary."""

_STRING, _ARRAY = 8, 9
_NUMBER_CODES = MappingProxyType(
    {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
)
_SMALLEST_PAIR_BYTES = 8 + 1 + 4 + 1  # key length, key, type, value
_SMALLEST_TENSOR_BYTES = 8 + 4 + 4 + 8  # name length, dimension count, type, offset
_LENGTH = struct.Struct("<Q")
_MAX_DIMENSIONS = 4
_LONGEST_NAME_BYTES = 64  # GGML_MAX_NAME, its closing zero included
_TENSOR_LAYOUTS = tuple(struct.Struct(f"<{n}QIQ") for n in range(_MAX_DIMENSIONS + 1))
_FIRST_UNHEARD_TYPE, _LAST_BELIEVABLE_TYPE = max(GGML_TYPES) + 1, 127

_STRINGS_AT_ONCE = 64
_SHORT_STRINGS = re.compile(
    b"(?s:"
    + b"|".join(
        re.escape(bytes([length])) + rb"\0\0\0\0\0\0\0.{%d}+" % length
        for length in sorted(range(64), key=lambda length: abs(length - 8))  # the usual ones first
    )
    + b"){%d}+" % _STRINGS_AT_ONCE
)
"""Steps over 64 strings of less than 64 bytes, each behind its length in 8 bytes.

A vocabulary can only be walked from length to length. The regular expression engine does so in
half the time of a loop in Python, which alone would take more than 20 ms for a large vocabulary.
"""


class NeedMoreBytes(SupervisorError):
    """The header goes on behind the bytes given: call again with at least `wanted` of them."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        super().__init__(f"the header needs at least the first {wanted} bytes of the file")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """What the header of one file says.

    `metadata` holds numbers, strings and arrays of up to LONGEST_KEPT_ARRAY numbers (as tuples);
    `array_lengths` holds the length of every array, kept or not. Tensor data begins at byte
    `data_offset` and is aligned to `alignment` bytes. `split_no` counts from 0 to `split_count`
    (1 for a whole model); from the second file of a split model on, `architecture` is empty.
    """

    version: int
    architecture: str
    name: str
    metadata: Mapping[str, MetadataValue]
    array_lengths: Mapping[str, int]
    tensors: TensorSummary
    alignment: int
    data_offset: int
    split_count: int
    split_no: int

    def parameter(self, name: str) -> MetadataValue | None:
        """Return a hyperparameter, named without its `<architecture>.` prefix."""
        return self.metadata.get(f"{self.architecture}.{name}")

    def count_parameter(self, name: str) -> int | None:
        """Return a hyperparameter that is one whole number from 0 on, else None."""
        value = self.parameter(name)
        return value if isinstance(value, int) and value >= 0 else None


def read_header(data: bytes | memoryview, *, file_size: int) -> GgufHeader:
    """Read header and tensor table from the first bytes of a file of `file_size` bytes.

    Raises NeedMoreBytes when `data` ends before the header does. Raises ModelFileError when this
    is not a GGUF file (and says what it looks like), when its version or byte order cannot be read,
    when the header is damaged, and when header or tensor data go on behind the file's end.
    """
    cursor = _Cursor(memoryview(data)[:file_size], file_size)
    version = _read_version(cursor)
    tensor_count = cursor.count("tensors", _SMALLEST_TENSOR_BYTES)
    pair_count = cursor.count("key-value pairs", _SMALLEST_PAIR_BYTES)
    metadata, array_lengths = _read_pairs(cursor, pair_count)
    alignment = _alignment(metadata)
    split_no = _whole(metadata, "split.no", default=0)
    architecture = metadata.get("general.architecture", "")
    if not isinstance(architecture, str) or (split_no == 0 and not architecture):
        raise ModelFileError("it names no architecture (general.architecture): not a model")
    tensors, data_offset = _read_tensors(cursor, tensor_count, alignment)
    return GgufHeader(
        version=version,
        architecture=architecture,
        name=str(metadata.get("general.name", "")),
        metadata=MappingProxyType(metadata),
        array_lengths=MappingProxyType(array_lengths),
        tensors=tensors,
        alignment=alignment,
        data_offset=data_offset,
        split_count=max(1, _whole(metadata, "split.count", default=1)),
        split_no=split_no,
    )


class _Cursor:
    """A position in the bytes at hand, which are the beginning of a file that may be longer."""

    __slots__ = ("file_size", "position", "view")

    def __init__(self, view: memoryview, file_size: int) -> None:
        self.view = view
        self.file_size = file_size
        self.position = 0

    def step(self, count: int) -> int:
        """Step over `count` bytes and return where they begin."""
        start = self.position
        if start + count > len(self.view):
            self.fail_behind(start + count)
        self.position = start + count
        return start

    def fail_behind(self, end: int) -> NoReturn:
        """Raise: byte `end` is not at hand, or not even in the file."""
        if end <= self.file_size:
            raise NeedMoreBytes(end)
        raise ModelFileError(
            f"the header is truncated or damaged: it goes on to byte {end}, and the file ends at "
            f"byte {self.file_size}; fetch the file again"
        )

    def u32(self) -> int:
        return int.from_bytes(self.view[self.step(4) : self.position], "little")

    def u64(self) -> int:
        return int.from_bytes(self.view[self.step(8) : self.position], "little")

    def string(self) -> str:
        start = self.step(self.u64())
        return str(self.view[start : self.position], "utf-8", "replace")

    def count(self, things: str, smallest_bytes: int) -> int:
        """Read a number of things to come, none of which takes less than `smallest_bytes`."""
        number = self.u64()
        if number * smallest_bytes > self.file_size - self.position:
            raise ModelFileError(
                f"the header is damaged: it announces {number} {things}, more than a file of "
                f"{format_bytes(self.file_size)} can hold; fetch the file again"
            )
        return number

    def skip_strings(self, count: int) -> None:
        """Step over `count` strings, each after its length."""
        while count:
            at_once = min(count, _STRINGS_AT_ONCE)
            is_full = at_once == _STRINGS_AT_ONCE
            short = _SHORT_STRINGS.match(self.view, self.position) if is_full else None
            if short:
                self.position = short.end()
            else:
                self._skip_strings_singly(at_once)
            count -= at_once

    def _skip_strings_singly(self, count: int) -> None:
        position, last = self.position, len(self.view) - _LENGTH.size
        for _ in range(count):
            if position > last:
                self.fail_behind(position + _LENGTH.size)
            position += _LENGTH.size + _LENGTH.unpack_from(self.view, position)[0]
        self.position = position
        self.step(0)  # the last string may go on behind the bytes at hand


def _read_version(cursor: _Cursor) -> int:
    if cursor.file_size == 0:
        raise ModelFileError("it is empty")
    if not MAGIC.startswith(bytes(cursor.view[: len(MAGIC)])):
        raise ModelFileError(f"not a GGUF file: it looks like {likeness(bytes(cursor.view[:512]))}")
    cursor.step(len(MAGIC))
    version = cursor.u32()
    if version and version & 0xFFFF == 0:
        raise ModelFileError(
            "it is written for big-endian machines: convert it (gguf-convert-endian of the "
            "`gguf` package), or fetch the usual little-endian file"
        )
    if version not in VERSIONS:
        raise ModelFileError(
            f"GGUF version {version} cannot be read, only {' and '.join(map(str, VERSIONS))}: "
            "convert the model again, or update"
        )
    return version


def _read_pairs(cursor: _Cursor, count: int) -> tuple[dict[str, MetadataValue], dict[str, int]]:
    metadata: dict[str, MetadataValue] = {}
    array_lengths: dict[str, int] = {}
    for _ in range(count):
        key = cursor.string()
        if key in metadata or key in array_lengths:
            raise ModelFileError(f"the header is damaged: key '{key}' appears twice")
        value_type = cursor.u32()
        if value_type == _ARRAY:
            kept, array_lengths[key] = _read_array(cursor, key)
            if kept is not None:
                metadata[key] = kept
        elif value_type == _STRING:
            metadata[key] = cursor.string()
        else:
            metadata[key] = _read_numbers(cursor, _number_code(value_type, key), 1)[0]
    return metadata, array_lengths


def _read_array(cursor: _Cursor, key: str) -> tuple[tuple[int | float, ...] | None, int]:
    """Return the values where they are few numbers, else None; and the length in any case."""
    value_type = cursor.u32()
    if value_type == _STRING:
        length = cursor.count(f"strings under '{key}'", 8)
        cursor.skip_strings(length)
        return None, length
    code = _number_code(value_type, key)
    value_bytes = struct.calcsize(f"<{code}")
    length = cursor.count(f"numbers under '{key}'", value_bytes)
    if length > LONGEST_KEPT_ARRAY:
        cursor.step(length * value_bytes)
        return None, length
    return _read_numbers(cursor, code, length), length


def _read_numbers(cursor: _Cursor, code: str, length: int) -> tuple[int | float, ...]:
    layout = f"<{length}{code}"
    return struct.unpack_from(layout, cursor.view, cursor.step(struct.calcsize(layout)))


def _number_code(value_type: int, key: str) -> str:
    code = _NUMBER_CODES.get(value_type)
    if code is None:
        raise ModelFileError(
            f"the header is damaged: key '{key}' has unknown value type {value_type}"
        )
    return code


def _whole(metadata: Mapping[str, MetadataValue], key: str, *, default: int) -> int:
    value = metadata.get(key, default)
    if not isinstance(value, int):
        raise ModelFileError(f"the header is damaged: '{key}' is not a whole number")
    return value


def _alignment(metadata: Mapping[str, MetadataValue]) -> int:
    alignment = _whole(metadata, "general.alignment", default=DEFAULT_ALIGNMENT)
    if alignment <= 0 or alignment & (alignment - 1):
        raise ModelFileError(
            f"the header is damaged: general.alignment is {alignment}, not a power of two"
        )
    return alignment


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[TensorSummary, int]:
    """Read the tensor table; return its summary and the offset of the data, after the padding."""
    types: Counter[str] = Counter()
    parts = TensorParts()
    total_bytes = data_end = 0
    next_offset: int | None = 0  # None behind a tensor whose size is not known
    is_measured = True
    for _ in range(count):
        tensor = _read_tensor(cursor)
        types[tensor.type_name] += 1
        if next_offset not in {None, tensor.offset}:
            raise ModelFileError(
                f"the header is damaged: tensor '{tensor.name}' begins at byte {tensor.offset} "
                f"of the data instead of {next_offset}"
            )
        data_end = tensor.offset + (tensor.size_bytes or 0)
        next_offset = None if tensor.size_bytes is None else _padded(data_end, alignment)
        is_measured = is_measured and tensor.size_bytes is not None
        total_bytes += tensor.size_bytes or 0
        parts.add(tensor.name, tensor.size_bytes or 0)
    data_offset = _padded(cursor.position, alignment) if count else cursor.position
    if count and data_offset + data_end > cursor.file_size:
        raise ModelFileError(
            f"the tensor data is truncated: {format_bytes(data_offset + data_end)} announced, "
            f"{format_bytes(cursor.file_size)} in the file; fetch the file again"
        )
    if not is_measured:
        parts = TensorParts()
        total_bytes = cursor.file_size - data_offset
    return parts.summary(count=count, total_bytes=total_bytes, types=types), data_offset


class _Tensor(NamedTuple):
    """One line of the table. `size_bytes` is None for a type that came after this version."""

    name: str
    type_name: str
    size_bytes: int | None
    offset: int


def _read_tensor(cursor: _Cursor) -> _Tensor:
    start = cursor.position + _LENGTH.size
    name = cursor.string()
    if cursor.position - start >= _LONGEST_NAME_BYTES:
        raise ModelFileError(
            f"the header is damaged: the tensor name '{name[:32]}…' has {cursor.position - start} "
            f"bytes, and llama.cpp takes less than {_LONGEST_NAME_BYTES}; fetch the file again"
        )
    dimension_count = cursor.u32()
    if dimension_count > _MAX_DIMENSIONS:
        raise ModelFileError(
            f"the header is damaged: tensor '{name}' has {dimension_count} dimensions"
        )
    layout = _TENSOR_LAYOUTS[dimension_count]
    *shape, type_number, offset = layout.unpack_from(cursor.view, cursor.step(layout.size))
    ggml_type = GGML_TYPES.get(type_number)
    if ggml_type is None:
        if _FIRST_UNHEARD_TYPE <= type_number <= _LAST_BELIEVABLE_TYPE:
            return _Tensor(name, f"type {type_number}", None, offset)
        raise ModelFileError(
            f"tensor '{name}' has type {type_number}, which does not exist or was removed: "
            "quantise the model again, or fetch the file again"
        )
    row_values = shape[0] if shape else 1
    if row_values % ggml_type.block_values:
        raise ModelFileError(
            f"the header is damaged: tensor '{name}' has rows of {row_values} values, not whole "
            f"blocks of {ggml_type.name}"
        )
    return _Tensor(name, ggml_type.name, ggml_type.row_bytes(math.prod(shape)), offset)


def _padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
