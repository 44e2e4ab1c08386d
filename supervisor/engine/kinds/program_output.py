"""Asks programs about themselves, and reads the flags out of the help that they print."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from supervisor.engine.kinds.arguments import MANY
from supervisor.engine.kinds.environment import inherited_environment
from supervisor.errors import EngineError

ANSWER_TIMEOUT_S = 60.0
"""A first start reads libraries of some hundred MB from a slow disk."""

_HEAD = re.compile(r"^ {0,2}(-\S.*?)(?:(?<![,\s])\s{2,}|$)")
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_TWO_VALUES = re.compile(r"[A-Z]+ [A-Z]+")  # `START END`; other hints with spaces are one value
_ANY_VALUES = re.compile(r"\[\w+ \.\.\.\]")  # argparse's `[NAME ...]`
_VARIABLE = re.compile(r"\(env: (\w+)\)")
_REMOVED = "argument has been removed"  # llama.cpp lists such flags only to say so, and exits


def package_file(name: str) -> Path | None:
    """Return the file of a Python package, without loading it; None where it is not installed."""
    spec = find_spec(name)
    return Path(spec.origin) if spec and spec.origin else None


@dataclass(frozen=True, slots=True, kw_only=True)
class HelpEntry:
    """What the help says of a flag: how many values follow it, and the words that explain it.

    `variable`: the environment variable that stands for it.
    """

    value_count: int
    text: str
    variable: str | None = None

    @property
    def has_value(self) -> bool:
        """Whether a value follows it."""
        return self.value_count > 0


@lru_cache(maxsize=16)
def read_help(printed: str) -> Mapping[str, HelpEntry]:
    """Return the entries of a printed help by flag, short ones and long ones.

    It reads llama.cpp's form and argparse's: an entry begins in the first columns with its flags,
    and whatever follows the last flag, up to two spaces, names its value.
    """
    blocks: list[list[str]] = []
    for line in printed.splitlines():
        if _HEAD.match(line):
            blocks.append([line])
        elif blocks:
            blocks[-1].append(line)
    entries: dict[str, HelpEntry] = {}
    for block in blocks:
        text = " ".join(" ".join(block).split())
        head = _HEAD.match(block[0])
        flags = list(_FLAG.finditer(head[1])) if head else []
        if flags and head and _REMOVED not in text:
            entry = HelpEntry(
                value_count=_value_count(head[1][flags[-1].end() :].strip()),
                text=text,
                variable=variable[1] if (variable := _VARIABLE.search(text)) else None,
            )
            entries |= dict.fromkeys((flag[0] for flag in flags), entry)
    return MappingProxyType(entries)


def _value_count(hint: str) -> int:
    if _ANY_VALUES.fullmatch(hint):
        return MANY
    return 2 if _TWO_VALUES.fullmatch(hint) else int(bool(hint))


@dataclass(frozen=True, slots=True)
class ProgramOutputs:
    """What programs have answered, kept as long as the file that answers for them is the same."""

    _answers: dict[tuple[object, ...], str] = field(default_factory=dict)

    def of(
        self, argv: tuple[str, ...], file: Path, environ: Mapping[str, str] | None = None
    ) -> str:
        """Run a program to its end and return all that it prints.

        `file` is the program's identity. `environ` replaces what a server inherits from us. Raises
        EngineError when the file is gone, or the program fails or does not end.
        """
        try:
            status = file.stat()
        except OSError as error:
            raise EngineError(f"{file} is gone: {error.strerror}") from error
        key = (argv, status.st_dev, status.st_ino, status.st_mtime_ns)
        if key not in self._answers:
            self._answers[key] = _run(argv, environ)
        return self._answers[key]


def _run(argv: tuple[str, ...], environ: Mapping[str, str] | None) -> str:
    try:
        with subprocess.Popen(
            argv,
            env=inherited_environment(os.environ, {}) if environ is None else environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                stdout, stderr = process.communicate(timeout=ANSWER_TIMEOUT_S)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
                raise
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineError(f"{' '.join(argv)} failed: {error}") from error
    if process.returncode:
        problem = subprocess.CalledProcessError(process.returncode, argv)
        reason = ": ".join([str(problem), *(stderr or stdout).strip().splitlines()[-1:]])
        raise EngineError(f"{' '.join(argv)} failed: {reason}")
    return stdout + stderr
