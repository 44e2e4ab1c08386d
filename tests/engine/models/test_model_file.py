"""Looking at model files on disk: whole, in shards, and in every way that they can be wrong."""

import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gguf
import numpy as np
import pytest

from supervisor.engine.models.model_file import (
    FIRST_READ_BYTES,
    LARGEST_HEADER_BYTES,
    FileIdentity,
    inspect_model_file,
    is_unchanged,
)
from supervisor.errors import ModelFileError

VOCABULARY_SIZE = 150_000


def write_model(path: Path, *, split: tuple[int, int] | None = None) -> Path:
    """Write a model of one tensor, or shard `split[0]` (from 0) of `split[1]`."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("A small llama")
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shard_name(number: int, count: int = 3) -> str:
    return f"big-{number:05d}-of-{count:05d}.gguf"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def write_vocabulary(path: Path, tokens: Sequence[str]) -> Path:
    """Write a header that is little but a vocabulary."""
    path.write_bytes(
        b"GGUF"
        + struct.pack("<IQQ", 3, 0, 2)
        + (text("general.architecture") + struct.pack("<I", 8) + text("llama"))
        + (text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, len(tokens)))
        + b"".join(map(text, tokens))
    )
    return path


def refusal(path: Path) -> str:
    """The reason for which a file is refused, behind its path."""
    with pytest.raises(ModelFileError) as caught:
        inspect_model_file(path)
    named, _, reason = str(caught.value).partition(": ")
    assert Path(named).parent == path.parent
    return reason


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of one model. The path of the first."""
    for number in range(3):
        write_model(tmp_path / shard_name(number + 1), split=(number, 3))
    return tmp_path / shard_name(1)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Be nobody for a while, where the tests run as root, who may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_whole_model_is_described(tmp_path: Path) -> None:
    path = write_model(tmp_path / "small.gguf")

    file = inspect_model_file(path)

    status = path.stat()
    assert file.path == path
    assert file.size_bytes == status.st_size
    assert file.header.name == "A small llama"
    assert file.headers == (file.header,)
    assert file.identity == (
        FileIdentity(
            device=status.st_dev,
            inode=status.st_ino,
            size_bytes=status.st_size,
            mtime_ns=status.st_mtime_ns,
        ),
    )


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    path = write_model(tmp_path / "small.gguf")
    before = inspect_model_file(path)

    write_model(tmp_path / "new.gguf").replace(path)

    assert inspect_model_file(path).header == before.header
    assert inspect_model_file(path).identity != before.identity


def test_model_has_changed_once_any_of_its_shards_has(shards: Path) -> None:
    file = inspect_model_file(shards)
    assert is_unchanged(file)
    last = shards.with_name(shard_name(3))
    os.utime(last, ns=(0, 0))
    assert not is_unchanged(file)
    last.unlink()
    assert not is_unchanged(file)


def test_link_to_a_model_is_followed(tmp_path: Path) -> None:
    write_model(tmp_path / "small.gguf")
    (tmp_path / "link.gguf").symlink_to("small.gguf")

    assert inspect_model_file(tmp_path / "link.gguf").header.name == "A small llama"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling.gguf").symlink_to("nowhere.gguf")

    assert refusal(tmp_path / "missing.gguf") == "there is no such file"
    assert refusal(tmp_path / "dangling.gguf") == "there is no such file"


def test_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    assert refusal(tmp_path / "model") == "it is a folder; name the model's .gguf file"


def test_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")

    assert "it is not a regular file" in refusal(tmp_path / "pipe.gguf")


def test_path_through_a_file_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "small.gguf")

    assert "cannot be read: Not a directory" in refusal(tmp_path / "small.gguf" / "model.gguf")


def test_unreadable_file_is_refused_with_the_user_who_may_not_read_it(tmp_path: Path) -> None:
    path = write_model(tmp_path / "secret.gguf")
    path.chmod(0)

    with unprivileged():
        reason = refusal(path)
        assert reason.startswith(f"this user (uid {os.geteuid()}) may not read it")


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.gguf").touch()

    assert refusal(tmp_path / "empty.gguf") == "it is empty"


def test_faulty_content_is_refused_with_the_path(tmp_path: Path) -> None:
    path = write_model(tmp_path / "small.gguf")
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html><title>Sign in</title>")
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:-64])

    assert "it looks like an HTML page" in refusal(tmp_path / "page.gguf")
    assert "tensor data is truncated" in refusal(tmp_path / "cut.gguf")


def test_file_that_holds_less_than_its_size_says_is_refused() -> None:
    """As when somebody cuts it while it is read. Files of sysfs always claim a whole page."""
    path = Path("/sys/devices/system/cpu/online")
    if not path.is_file():
        pytest.skip("there is no sysfs")

    assert "became shorter while it was read" in refusal(path)


def test_header_larger_than_the_first_read_is_read_whole(tmp_path: Path) -> None:
    count = 2 * FIRST_READ_BYTES // 100
    path = write_vocabulary(tmp_path / "large.gguf", ["x" * 100] * count)
    assert path.stat().st_size > 2 * FIRST_READ_BYTES

    lengths = inspect_model_file(path).header.array_lengths

    assert lengths["tokenizer.ggml.tokens"] == count


def test_header_that_claims_to_be_huge_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    key_length = 2 * LARGEST_HEADER_BYTES
    path.write_bytes(b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, key_length))
    os.truncate(path, 2 * key_length)

    assert "header would be larger than 128.0 MiB" in refusal(path)


def test_look_at_a_vocabulary_takes_no_call_for_each_token(tmp_path: Path) -> None:
    """Which would be 150,000, and a tenth of a second."""
    tokens = ["é" * (number % 8) + "x" * (number % 5) for number in range(VOCABULARY_SIZE)]
    path = write_vocabulary(tmp_path / "wordy.gguf", tokens)
    calls: Counter[str] = Counter()
    sys.setprofile(lambda _frame, event, _argument: calls.update([event]))
    try:
        inspect_model_file(path)
    finally:
        sys.setprofile(None)

    assert calls["call"] + calls["c_call"] < VOCABULARY_SIZE / 20


def test_shards_are_found_and_counted_together(shards: Path) -> None:
    file = inspect_model_file(shards)

    paths = [shards.with_name(shard_name(number)) for number in (1, 2, 3)]
    assert [header.split_no for header in file.headers] == [0, 1, 2]
    assert [one.inode for one in file.identity] == [path.stat().st_ino for path in paths]
    assert file.size_bytes == sum(path.stat().st_size for path in paths)
    assert file.header.split_count == 3


def test_missing_shards_are_named(shards: Path) -> None:
    shards.with_name(shard_name(2)).unlink()
    assert refusal(shards) == f"1 of 3 shards are missing beside it: {shard_name(2)}"

    shards.with_name(shard_name(3)).unlink()
    assert refusal(shards).endswith(f"missing beside it: {shard_name(2)}, {shard_name(3)}")


def test_later_shard_is_refused_and_the_first_is_named(shards: Path) -> None:
    reason = refusal(shards.with_name(shard_name(2)))

    assert reason == f"it is not the first shard; name {shard_name(1)}"


@pytest.mark.parametrize("name", ["renamed.gguf", shard_name(1, count=4)])
def test_shard_under_a_name_that_hides_the_others_is_refused(shards: Path, name: str) -> None:
    renamed = shards.rename(shards.with_name(name))

    assert "its name must end in -00001-of-00003.gguf" in refusal(renamed)


def test_shards_in_the_wrong_order_are_refused(shards: Path) -> None:
    second, third = (shards.with_name(shard_name(number)) for number in (2, 3))
    second.write_bytes(third.read_bytes())

    reason = refusal(shards)

    assert "by its name it is shard 2 of 3, by its header 3 of 3" in reason


def test_damage_in_a_later_shard_is_refused_with_its_path(shards: Path) -> None:
    third = shards.with_name(shard_name(3))
    os.truncate(third, third.stat().st_size - 32)

    with pytest.raises(ModelFileError, match=re.escape(f"{third}: the tensor data is truncated")):
        inspect_model_file(shards)


def test_whole_model_may_be_named_like_a_shard(tmp_path: Path) -> None:
    path = write_model(tmp_path / shard_name(1, count=1))

    assert inspect_model_file(path).header.split_count == 1


def test_demo_models_are_whole(models_dir: Path) -> None:
    names = {path.stem: inspect_model_file(path).header for path in models_dir.glob("*.gguf")}

    assert names["minilm"].architecture == "bert"
    assert names["bench-chat"].architecture == "llama"
