"""Reads further arguments (`extra_args`) as llama-server does: which words are flags, which values.

How a word looks does not tell: `-1e-5`, `-END-` and `--flag=-x` are values where they follow a flag
that takes one. The embedded server's process reads it, too, so it imports nothing that takes time
to load.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MANY = 1000
"""Stands for any number of values, up to the next word that looks like a flag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """A flag and its values, or a stray word.

    `written`: the flag as it stands there; `flag`: as the program knows it, without `=value`.
    `value_count`: how many values it takes; None: the program does not know it. There may be fewer
    `values` at the end of a command line. `is_joined`: its value stands behind a `=`.
    """

    written: str
    flag: str
    values: tuple[str, ...]
    value_count: int | None
    is_joined: bool = False


def spelled(flag: str) -> str:
    """Return a flag with `-` for `_`, which llama.cpp takes for the same in long ones."""
    return flag.replace("_", "-") if flag.startswith("--") else flag


def read_arguments(
    words: Sequence[str],
    count_of: Callable[[str], int | None],
    spell: Callable[[str], str] = spelled,
) -> Iterator[Argument]:
    """Yield the arguments of a command line.

    `count_of` gives how many values follow a flag; None: there is no such flag. What follows an
    unknown one and does not look like a flag is taken for its values. `spell` turns a flag into
    the form that the program knows.
    """
    rest = list(words)
    while rest:
        written = rest.pop(0)
        name, equals, joined = written.partition("=") if written[:1] == "-" else (written, "", "")
        flag = spell(name)
        count = count_of(flag)
        if equals:
            yield Argument(
                written=name, flag=flag, values=(joined,), value_count=count, is_joined=True
            )
            continue
        taken = _up_to_a_flag(rest) if count in {None, MANY} else count
        yield Argument(written=name, flag=flag, values=tuple(rest[:taken]), value_count=count)
        del rest[:taken]


def _up_to_a_flag(words: Sequence[str]) -> int:
    return next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
