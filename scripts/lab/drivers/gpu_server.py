"""A program that takes memory of the simulated GPUs, and then becomes the server that it is given.

    python -I -S gpu_server.py llama-server --model ...

The driver's books know a holder by its process id, which stays.
"""

import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lab.drivers.holding import take_memory


def write_gpu_server(place: Path, binary: Path) -> None:
    """Write a program in front of `binary`, which takes memory where it serves a model."""
    taking = shlex.join([sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(binary)])
    place.write_text(
        "#!/bin/sh\n"
        f'case " $* " in *" --model "*) exec {taking} "$@" ;; esac\n'
        f'exec {shlex.quote(str(binary))} "$@"\n',
        encoding="utf-8",
    )
    place.chmod(0o755)


if __name__ == "__main__":
    take_memory(sys.argv)
    os.execv(sys.argv[1], sys.argv[1:])
