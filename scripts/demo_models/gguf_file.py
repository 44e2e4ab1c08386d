"""A model file appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGUFWriter


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield where to write a file, which gets its name `path` on leaving.

    It grows in a hidden folder beside `path`, on the same file system, so that the last step is a
    rename: whoever sees `path` sees a whole file, also when two runs race.

    Raises:
        OSError: the folder cannot be written or is full; `path` is untouched.

    """
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder, path.name)
        yield unfinished
        unfinished.replace(path)


@contextmanager
def new_gguf(path: Path, architecture: str) -> Iterator[GGUFWriter]:
    """Yield a writer; on leaving, write what it holds to `path`. Raises as `whole_file`."""
    with whole_file(path) as unfinished:
        writer = GGUFWriter(unfinished, architecture)
        yield writer
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
