"""Gives a copy of a shard an index, in a process of its own: the engine lets nothing else run then.

    python -m supervisor.vector_store.index_builder SHARD COPY PARENT_PID

It has the lowest priority, for it takes every core for as long as it runs.
"""

import os
import shutil
import sys
from pathlib import Path

from supervisor.own_process import end_with_parent
from supervisor.vector_store.shard import build_index

_NICEST = 19


def main(source: Path, copy: Path) -> None:
    """Make the copy, with an index."""
    os.nice(_NICEST)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(source, copy)
    build_index(copy)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[3]))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
