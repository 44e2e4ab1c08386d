"""A model file appears whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from gguf import GGUFWriter


@contextmanager
def new_gguf(path: Path, architecture: str) -> Iterator[GGUFWriter]:
    """Yield a writer; on leaving, write what it holds and give the file its name `path`.

    The file grows in a hidden folder beside `path`, on the same file system, so that the last
    step is a rename: whoever sees `path` sees a whole model, also when two runs race.

    Raises:
        OSError: the folder cannot be written or is full; `path` is untouched.

    """
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        unfinished = Path(folder, path.name)
        writer = GGUFWriter(unfinished, architecture)
        yield writer
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        unfinished.replace(path)
