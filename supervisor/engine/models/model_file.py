"""Look at a model file before a server is started for it: that it is whole, and what it holds.

Only the header is read. It comes first, and all but the largest vocabularies fit into the first
read, so that a look takes some milliseconds however large the model is.
"""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from supervisor.core.byte_size import MIB, format_bytes
from supervisor.core.sizing.gguf import GgufHeader, NeedMoreBytes, read_header
from supervisor.core.sizing.gguf_faults import find_fault
from supervisor.errors import ModelFileError

FIRST_READ_BYTES = 8 * MIB
READ_GROWTH = 4
LARGEST_HEADER_BYTES = 128 * MIB
"""Ten times what the largest vocabularies take. What claims more must not fill the memory."""

_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


class FileIdentity(NamedTuple):
    """What shows whether a path still means the same file with the same content."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that is whole on disk. `size_bytes`: all shards; the tuples: one item per shard."""

    path: Path
    paths: tuple[Path, ...]
    size_bytes: int
    headers: tuple[GgufHeader, ...]
    identity: tuple[FileIdentity, ...]

    @property
    def header(self) -> GgufHeader:
        """The header of the first shard, which says what the model is."""
        return self.headers[0]


def is_unchanged(file: ModelFile) -> bool:
    """Whether every shard is still the file that was looked at, and readable. Reads no header."""
    try:
        return all(os.access(path, os.R_OK) for path in file.paths) and file.identity == tuple(
            identify(path.stat()) for path in file.paths
        )
    except OSError:
        return False


def inspect_model_file(path: Path) -> ModelFile:
    """Read the headers of a model and of its further shards, `…-00002-of-0000N.gguf` and so on.

    Raises ModelFileError, which names the path: it is missing, a folder, unreadable, empty, no
    GGUF file, damaged or cut short; it is not the first shard; further shards are missing.
    """
    header, identity = _inspect_one(path)
    headers, identities = [header], [identity]
    further = _further_shards(path, header)
    for number, shard in enumerate(further, start=2):
        shard_header, shard_identity = _inspect_one(shard)
        if (shard_header.split_no, shard_header.split_count) != (number - 1, header.split_count):
            raise ModelFileError(
                f"{shard}: by its name it is shard {number} of {header.split_count}, by its "
                f"header {shard_header.split_no + 1} of {shard_header.split_count}; "
                "fetch all shards of one model again"
            )
        headers.append(shard_header)
        identities.append(shard_identity)
    return ModelFile(
        path=path,
        paths=(path, *further),
        size_bytes=sum(one.size_bytes for one in identities),
        headers=tuple(headers),
        identity=tuple(identities),
    )


def require_loadable(file: ModelFile) -> None:
    """Raise ModelFileError where the headers show that llama.cpp could not load the model."""
    fault = find_fault(file.headers)
    if fault is not None:
        raise ModelFileError(f"{file.path}: {fault}")


def _inspect_one(path: Path) -> tuple[GgufHeader, FileIdentity]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            what = "a folder" if path.is_dir() else "not a regular file"
            raise ModelFileError(f"{path}: it is {what}; name the model's .gguf file")
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            header = _read_header(path, file, status.st_size)
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file") from error
    except PermissionError as error:
        raise ModelFileError(
            f"{path}: this user (uid {os.geteuid()}) may not read it; "
            "change its permissions, or those of its folder"
        ) from error
    except OSError as error:
        raise ModelFileError(f"{path}: it cannot be read: {error.strerror}") from error
    return header, identify(status)


def identify(status: os.stat_result) -> FileIdentity:
    """Take from a file's status what distinguishes it from other files, and from itself changed."""
    return FileIdentity(
        device=status.st_dev,
        inode=status.st_ino,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _read_header(path: Path, file: BinaryIO, file_size: int) -> GgufHeader:
    """Read beginnings of growing length until the header is whole."""
    wanted_bytes = FIRST_READ_BYTES
    while wanted_bytes <= LARGEST_HEADER_BYTES:
        file.seek(0)
        start = file.read(min(wanted_bytes, file_size))
        if len(start) < min(wanted_bytes, file_size):
            raise ModelFileError(f"{path}: it became shorter while it was read; is it complete?")
        try:
            return read_header(start, file_size=file_size)
        except NeedMoreBytes as more:
            wanted_bytes = max(more.wanted, READ_GROWTH * wanted_bytes)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
    raise ModelFileError(
        f"{path}: its header would be larger than {format_bytes(LARGEST_HEADER_BYTES)}: damaged; "
        "fetch the file again"
    )


def _further_shards(path: Path, header: GgufHeader) -> tuple[Path, ...]:
    """Return the paths of shards 2 to N; raise when one is missing, or `path` is not the first."""
    if header.split_count == 1:
        return ()
    name = _SHARD_NAME.fullmatch(path.name)
    if name is None or int(name["count"]) != header.split_count:
        raise ModelFileError(
            f"{path}: its header says that it is one of {header.split_count} shards, so its name "
            f"must end in -00001-of-{header.split_count:05d}.gguf; give all shards their names back"
        )
    names = [
        f"{name['stem']}-{number:05d}-of-{header.split_count:05d}.gguf"
        for number in range(1, header.split_count + 1)
    ]
    if header.split_no != 0 or path.name != names[0]:
        raise ModelFileError(f"{path}: it is not the first shard; name {names[0]}")
    missing = [one for one in names if not path.with_name(one).exists()]
    if missing:
        raise ModelFileError(
            f"{path}: {len(missing)} of {len(names)} shards are missing beside it: "
            f"{', '.join(missing)}"
        )
    return tuple(path.with_name(one) for one in names[1:])
