"""Reading a model's header, with the `gguf` package for a second opinion."""

import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.core.sizing.ggml_types import GGML_TYPES
from supervisor.core.sizing.gguf import LONGEST_KEPT_ARRAY, GgufHeader, NeedMoreBytes, read_header
from supervisor.errors import ModelFileError

KIND = gguf.GGMLQuantizationType
Writer = Callable[..., Path]

LLAMA = {
    ".general.name": "A small llama",
    "block_count": 2,
    "context_length": 2048,
    "attention.head_count_kv": [2, 4],
    "attention.layer_norm_rms_epsilon": 0.5,
    "attention.causal": True,
}
TENSORS = (("token_embd.weight", (64, 100)), ("output_norm.weight", (64,)))


def read(data: bytes) -> GgufHeader:
    return read_header(data, file_size=len(data))


def refusal(data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        read(data)
    return str(caught.value)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, values: bytes) -> bytes:
    return struct.pack("<IQ", kind, length) + values


def tensor(name: str, kind: int, *shape: int, offset: int = 0) -> bytes:
    layout = f"<I{len(shape)}QIQ"
    return text(name) + struct.pack(layout, len(shape), *shape, kind, offset)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def file_of(*pairs: bytes, tensors: tuple[bytes, ...] = (), data_bytes: int = 0) -> bytes:
    """Build a file by hand, with faults where the test puts them."""
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs))
    header = start + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % 32 + data_bytes)


def test_header_tells_what_the_model_is(write_gguf: Writer) -> None:
    header = read(write_gguf("llama", LLAMA, TENSORS).read_bytes())

    assert header.version == 3
    assert header.architecture == "llama"
    assert header.name == "A small llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.parameter("context_length") == 2048
    assert header.parameter("attention.head_count_kv") == (2, 4)
    assert header.parameter("attention.layer_norm_rms_epsilon") == 0.5
    assert header.parameter("attention.causal") is True
    assert header.parameter("attention.sliding_window") is None
    assert (header.split_no, header.split_count) == (0, 1)


def test_vocabulary_is_counted_and_not_kept(write_gguf: Writer) -> None:
    path = write_gguf("llama", LLAMA, TENSORS, tokens=[f"token {n}" for n in range(5000)])

    header = read(path.read_bytes())

    assert header.array_lengths["tokenizer.ggml.tokens"] == 5000
    assert "tokenizer.ggml.tokens" not in header.metadata


@given(lengths=st.lists(st.integers(0, 70) | st.just(300), max_size=400))
def test_reading_goes_on_behind_strings_of_any_length(lengths: list[int]) -> None:
    strings = b"".join(text("x" * length) for length in lengths)
    vocabulary = pair("tokens", 9, array(8, len(lengths), strings))

    header = read(file_of(ARCHITECTURE, vocabulary, pair("next", 8, text("here"))))

    assert header.array_lengths["tokens"] == len(lengths)
    assert header.metadata["next"] == "here"


@pytest.mark.parametrize("length", [LONGEST_KEPT_ARRAY, LONGEST_KEPT_ARRAY + 1])
def test_arrays_of_numbers_are_kept_up_to_a_length(write_gguf: Writer, length: int) -> None:
    path = write_gguf("llama", {"scores": [0.25] * length}, TENSORS)

    header = read(path.read_bytes())

    is_kept = length <= LONGEST_KEPT_ARRAY
    assert header.array_lengths["llama.scores"] == length
    assert header.parameter("scores") == ((0.25,) * length if is_kept else None)


@pytest.mark.parametrize(
    ("kind", "layout", "value"),
    [
        (0, "B", 200),
        (1, "b", -3),
        (2, "H", 60_000),
        (3, "h", -300),
        (4, "I", 4_000_000_000),
        (5, "i", -5),
        (6, "f", 0.5),
        (7, "?", True),
        (10, "Q", 2**63),
        (11, "q", -(2**40)),
        (12, "d", 0.1),
    ],
)
def test_every_kind_of_number_is_read(kind: int, layout: str, value: float) -> None:
    one = pair("one", kind, struct.pack(f"<{layout}", value))
    two = pair("two", 9, array(kind, 2, struct.pack(f"<2{layout}", value, value)))

    header = read(file_of(ARCHITECTURE, one, two))

    assert header.metadata["one"] == value
    assert header.metadata["two"] == (value, value)


def test_text_that_is_not_utf_8_is_read_nevertheless() -> None:
    name = pair("general.name", 8, struct.pack("<Q", 3) + b"a\xffb")

    assert read(file_of(ARCHITECTURE, name)).name == "a\N{REPLACEMENT CHARACTER}b"


def test_version_2_is_read() -> None:
    data = bytearray(file_of(ARCHITECTURE))
    data[4] = 2

    assert read(bytes(data)).version == 2


def test_type_sizes_agree_with_the_gguf_package() -> None:
    ours = {number: (kind.block_values, kind.block_bytes) for number, kind in GGML_TYPES.items()}
    theirs = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    theirs[KIND.Q8_1] = (32, 36)  # theirs is of a time when its two scales were f32

    assert {number: ours[number] for number in theirs} == theirs


@pytest.mark.parametrize("alignment", [None, 4096])
def test_tensor_table_agrees_with_the_gguf_package(
    write_gguf: Writer, alignment: int | None
) -> None:
    kinds = [kind for kind in gguf.GGML_QUANT_SIZES if kind != KIND.Q8_1]
    quantised = [(f"blk.{kind.name}.weight", (512, 3, 2), kind) for kind in kinds]
    path = write_gguf("llama", LLAMA, [*TENSORS, *quantised], alignment=alignment)

    header = read(path.read_bytes())

    theirs = gguf.GGUFReader(path)
    assert header.alignment == theirs.alignment == (alignment or 32)
    assert header.data_offset == theirs.data_offset
    assert header.tensors.count == len(theirs.tensors)
    assert header.tensors.total_bytes == sum(int(one.n_bytes) for one in theirs.tensors)
    types = Counter(one.tensor_type.name.lower() for one in theirs.tensors)
    assert {name.lower(): count for name, count in header.tensors.types.items()} == types


def test_bytes_of_a_type_to_come_are_counted_by_the_file_size() -> None:
    tensors = (tensor("new", 99, 64), tensor("old", 0, 8, offset=4096))

    header = read(file_of(ARCHITECTURE, tensors=tensors, data_bytes=4096 + 32))

    assert dict(header.tensors.types) == {"type 99": 1, "f32": 1}
    assert header.tensors.total_bytes == 4096 + 32


def test_later_shard_need_not_name_its_architecture() -> None:
    shard = file_of(
        pair("split.no", 2, struct.pack("<H", 1)), pair("split.count", 2, struct.pack("<H", 3))
    )

    header = read(shard)

    assert (header.architecture, header.split_no, header.split_count) == ("", 1, 3)


def test_tensor_data_need_not_be_at_hand(write_gguf: Writer) -> None:
    data = write_gguf("llama", LLAMA, TENSORS).read_bytes()
    whole = read(data)

    assert read_header(data[: whole.data_offset], file_size=len(data)) == whole


def test_every_beginning_asks_for_more_until_the_header_is_whole(write_gguf: Writer) -> None:
    tokens = ["x" * (n % 80) for n in range(200)]
    data = write_gguf("llama", LLAMA, TENSORS, tokens=tokens).read_bytes()
    whole = read(data)
    table_end = len(data[: whole.data_offset].rstrip(b"\0"))  # the last offset ends in zeros

    for length in range(table_end):
        with pytest.raises(NeedMoreBytes) as caught:
            read_header(memoryview(data)[:length], file_size=len(data))
        assert length < caught.value.wanted <= whole.data_offset


@pytest.mark.parametrize(
    ("start", "likeness"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "git lfs pull"),
        (b"PK\x03\x04\x14\x00\x08\x08", "zip archive, as PyTorch writes"),
        (b"\x80\x02}q\x00(X", "pickle"),
        (struct.pack("<Q", 40) + b'{"weight":{"dtype":"F32"}}', "safetensors"),
        (b"\n<!DOCTYPE html><html><body>Sign in", "HTML page"),
        (b"<html>404", "HTML page"),
        (b"tjgg\x03\x00\x00\x00", "format before GGUF"),
        (bytes(64), "zeros"),
        (b"once upon a time", "begins with b'once upo'"),
    ],
)
def test_other_file_is_refused_by_what_it_looks_like(start: bytes, likeness: str) -> None:
    message = refusal(start)

    assert message.startswith("not a GGUF file: it looks like")
    assert likeness in message


def test_empty_file_is_refused() -> None:
    assert refusal(b"") == "it is empty"


@pytest.mark.parametrize("version", [0, 1, 4])
def test_unknown_version_is_refused(version: int) -> None:
    data = b"GGUF" + struct.pack("<IQQ", version, 0, 0)

    assert f"GGUF version {version} cannot be read" in refusal(data)


def test_big_endian_file_is_refused() -> None:
    assert "big-endian" in refusal(b"GGUF" + struct.pack(">IQQ", 3, 0, 0))


@pytest.mark.parametrize("removed_bytes", [1, 40, 150])
def test_header_that_ends_too_early_is_refused(write_gguf: Writer, removed_bytes: int) -> None:
    path = write_gguf("llama", LLAMA, TENSORS)
    table_end = read(path.read_bytes()).data_offset - 32

    message = refusal(path.read_bytes()[: table_end - removed_bytes])

    assert "header is truncated or damaged" in message
    assert f"ends at byte {table_end - removed_bytes}" in message


def test_vocabulary_that_ends_too_early_is_refused() -> None:
    whole = file_of(ARCHITECTURE, pair("tokens", 9, array(8, 1, text("x" * 10))))

    assert "header is truncated or damaged" in refusal(whole.rstrip(b"\0")[:-1])


def test_file_that_is_smaller_than_its_tensors_is_refused(write_gguf: Writer) -> None:
    data = write_gguf("llama", LLAMA, TENSORS).read_bytes()

    assert "tensor data is truncated" in refusal(data[:-100])
    assert "tensor data is truncated" in refusal(data[: read(data).data_offset])


def test_padding_behind_the_last_tensor_may_be_missing() -> None:
    whole = file_of(ARCHITECTURE, tensors=(tensor("last", 0, 3),), data_bytes=12)

    assert read(whole).tensors.total_bytes == 12


@pytest.mark.parametrize(
    ("data", "announced"),
    [
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "1152921504606846976 key-value pairs"),
        (file_of(pair("few", 9, array(4, 2**40, b""))), "numbers under 'few'"),
        (file_of(pair("few", 9, array(8, 2**40, b""))), "strings under 'few'"),
    ],
)
def test_more_than_the_file_can_hold_is_refused(data: bytes, announced: str) -> None:
    message = refusal(data)

    assert announced in message
    assert "more than a file of" in message


@pytest.mark.parametrize(
    ("pairs", "tensors", "fault"),
    [
        ((), (), "names no architecture"),
        ((pair("general.architecture", 4, bytes(4)),), (), "names no architecture"),
        ((ARCHITECTURE, ARCHITECTURE), (), "'general.architecture' appears twice"),
        ((pair("odd", 13, bytes(8)),), (), "key 'odd' has unknown value type 13"),
        ((pair("nested", 9, array(9, 1, bytes(32))),), (), "'nested' has unknown value type 9"),
        ((pair("general.alignment", 4, bytes(4)),), (), "general.alignment is 0"),
        ((pair("general.alignment", 4, b"\x21\0\0\0"),), (), "general.alignment is 33"),
        ((pair("general.alignment", 8, text("32")),), (), "is not a whole number"),
        ((pair("split.no", 8, text("one")),), (), "'split.no' is not a whole number"),
        ((ARCHITECTURE,), (tensor("t", 0, 1, 1, 1, 1, 1),), "'t' has 5 dimensions"),
        ((ARCHITECTURE,), (tensor("n" * 64, 0, 8),), "has 64 bytes, and llama.cpp takes less"),
        ((ARCHITECTURE,), (tensor("blk." + "9" * 5000, 0, 8),), "name 'blk.9999"),
        ((ARCHITECTURE,), (tensor("t", 12, 255),), "rows of 255 values, not whole blocks of q4_K"),
        ((ARCHITECTURE,), (tensor("t", 4, 32),), "type 4, which does not exist or was removed"),
        ((ARCHITECTURE,), (tensor("t", 1 << 20, 32),), "type 1048576, which does not exist"),
        (
            (ARCHITECTURE,),
            (tensor("a", 0, 8), tensor("b", 0, 8, offset=64)),
            "tensor 'b' begins at byte 64 of the data instead of 32",
        ),
    ],
)
def test_damaged_header_is_refused_with_the_fault(
    pairs: tuple[bytes, ...], tensors: tuple[bytes, ...], fault: str
) -> None:
    assert fault in refusal(file_of(*pairs, tensors=tensors, data_bytes=4096))


def test_the_longest_tensor_name_that_llama_cpp_takes_is_read() -> None:
    longest = "blk." + "9" * 59
    data = file_of(ARCHITECTURE, tensors=(tensor(longest, 0, 8),), data_bytes=32)
    assert read(data).tensors.layer_bytes == {int("9" * 59): 32}


def assert_safe(data: bytes, file_size: int) -> None:
    """The bytes are read or refused, in memory that their number bounds."""
    tracemalloc.start()
    wanted: int | None = None
    try:
        read_header(data, file_size=file_size)
    except NeedMoreBytes as more:
        wanted = more.wanted
    except ModelFileError:
        pass
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert wanted is None or len(data) < wanted <= file_size
    assert peak_bytes < 200_000 + 50 * len(data)


@given(data=st.binary(max_size=2000), file_size=st.integers(0, 2**40))
def test_random_bytes_are_refused_without_harm(data: bytes, file_size: int) -> None:
    for start in (b"", b"GGUF\x03\0\0\0"):
        assert_safe(start + data, max(file_size, len(start + data)))


numbers = st.sampled_from([0, 1, 2**8, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
changes = st.lists(st.tuples(st.floats(0, 1), numbers, st.sampled_from("BIQ")), max_size=4)


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(changes=changes, kept=st.floats(0, 1), is_whole=st.booleans())
def test_damaged_and_truncated_files_are_read_or_refused_without_harm(
    write_gguf: Writer, changes: list[tuple[float, int, str]], kept: float, is_whole: bool
) -> None:
    path = write_gguf("llama", LLAMA, TENSORS, tokens=["ab"] * 100)
    data = bytearray(path.read_bytes())
    header_end = read(bytes(data)).data_offset
    for place, number, layout in changes:
        size = struct.calcsize(layout)
        struct.pack_into(
            f"<{layout}", data, int(place * (header_end - size)), number % 2 ** (8 * size)
        )
    start = bytes(data) if is_whole else bytes(data[: int(kept * len(data))])

    assert_safe(start, len(data))
    assert_safe(start, len(start))
