"""llama-server's command line and environment, as llama.cpp of today takes them.

The embedded server takes the same, so that what an operator sees in `ps` reads the same. What each
flag is stands in `flag_table.py`, how other builds of llama-server spell them in `dialect.py`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from supervisor.config.profile import Profile
from supervisor.engine.kinds.arguments import MANY, Argument, read_arguments, spelled
from supervisor.engine.kinds.flag_table import FLAGS, SETTINGS
from supervisor.engine.kinds.refused_flags import instead_of
from supervisor.engine.port import ServerStart, TokenizeRoute

API_KEY_VARIABLE = "LLAMA_API_KEY"
"""The variable by which llama-server takes its API key; never an argument, which `ps` shows."""

TOKENIZE = TokenizeRoute(
    path="/tokenize",
    text_field="content",
    special_field="add_special",
    pieces_field="with_pieces",
    joins_lists=True,
)
"""How llama-server is asked for tokens (`tokenize_mixed()` in its server-common.cpp)."""

SERVER_FIELDS = frozenset(
    {*(flag.field for flag in SETTINGS if flag.field not in {"engine", "mode"}), "extra_args"}
)
"""The fields of a profile that speak to the server; all others but `command` are the controller's.

Each engine declares which of them it honours.
"""


def unhonoured(engine: str, profile: Profile, honoured: Collection[str]) -> dict[str, str]:
    """Return the fields that somebody wrote and that the engine cannot honour, with the reason."""
    written = profile.model_fields_set & (SERVER_FIELDS | {"command"})
    return {
        field: f"the engine {engine} cannot honour it; leave it out, or use another engine"
        for field in sorted(written - set(honoured))
        if getattr(profile, field) is not None
    }


def server_flags(start: ServerStart) -> tuple[str, ...]:
    """Return the arguments that follow the program's name."""
    words = (word for flag in FLAGS for word in flag.words(start))
    return (*words, *start.model.profile.extra_args)


class TakesServerFlags:
    """What engines share whose servers take llama-server's flags and variables."""

    honoured = SERVER_FIELDS

    def environment(self, start: ServerStart, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return what the child inherits, the profile's variables over it, and the key."""
        return {**inherited, **start.model.profile.env, API_KEY_VARIABLE: start.api_key}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentReading:
    """How a program reads further arguments, and which of them we cannot leave to an operator.

    `program`: its name in a sentence. `count_of` gives how many values follow a flag (None: it is
    not known), `instead` what to do instead of giving one that would take something from us (None:
    it may be given), `otherwise` what to do about unknown ones. `spell` turns a flag into the form
    that the program knows; `may_join`: whether it takes `--flag=value`.
    """

    program: str
    count_of: Callable[[str], int | None]
    instead: Callable[[str], str | None] = instead_of
    otherwise: str = "use another build"
    spell: Callable[[str], str] = spelled
    may_join: bool = True

    def problem(self, words: tuple[str, ...]) -> str | None:
        """Return all that is wrong with the words, in a sentence; None: nothing."""
        arguments = tuple(read_arguments(words, self.count_of, self.spell))
        refused = {each.written: self.instead(each.flag) for each in arguments}
        problems = [
            f"{written} cannot be given here: {instead}"
            for written, instead in refused.items()
            if instead is not None
        ]
        allowed = [each for each in arguments if refused[each.written] is None]
        unknown = [each.written for each in allowed if each.value_count is None]
        if unknown:
            listed = ", ".join(unknown)
            advice = f"correct it, or {self.otherwise}"
            if any(" " in each for each in unknown):
                advice = "write a flag and its value as two words of the list"
            problems.append(f"{self.program} does not know {listed}; {advice}")
        problems += filter(None, map(self._value_problem, allowed))
        return "; ".join(problems) or None

    def _value_problem(self, argument: Argument) -> str | None:
        count = argument.value_count
        if count is None:
            return None
        if argument.is_joined and not self.may_join:
            return f"write the value of {argument.written} as a word of its own, not behind ="
        if argument.is_joined and count == 0:
            return f"{argument.written} takes no value"
        if not argument.is_joined and count != MANY and len(argument.values) < count:
            return f"{argument.written} needs a value"
        return None
