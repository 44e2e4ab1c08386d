"""How one build of llama-server spells the flags that another build spells differently.

Builds differ in the flags that their help lists. A build that lacks a flag behaves as all builds
did before the flag came: a profile that wants just that needs no words, another one cannot be had,
which is said with the field's name. What nobody wrote into the profile is left to the build. What
older builds do stands with each flag in `flag_table.py`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

from supervisor.config.profile import Profile
from supervisor.engine.kinds.flag_table import Flag
from supervisor.engine.kinds.flags import ArgumentReading
from supervisor.engine.kinds.program_output import HelpEntry
from supervisor.engine.kinds.refused_flags import instead_of
from supervisor.engine.port import ServerStart
from supervisor.errors import EngineError


def lists_slots(entries: Mapping[str, HelpEntry]) -> bool:
    """Whether a build answers on `/slots` by default."""
    slots = entries.get("--slots")
    return slots is not None and "default: enabled" in slots.text


class Dialect:
    """The flags of one build, which stands at `binary` and printed `entries` as its help."""

    def __init__(self, binary: Path, entries: Mapping[str, HelpEntry]) -> None:
        self._binary = binary
        self._entries = entries

    def words(self, flag: Flag, start: ServerStart) -> tuple[str, ...]:
        """Return a flag in this build's words. Raises EngineError when it has none for it."""
        wanted = flag.words(start)
        if not wanted:
            return ()
        if flag.name == "--slot-save-path" and not lists_slots(self._entries):
            raise EngineError(
                f"{self._binary} does not list its slots by default; leave the field out, or use "
                "a newer build"
            )
        name, *values = wanted
        spellings = (name, *flag.synonyms) if name == flag.name else (name,)
        spelling = next((each for each in spellings if self._has_long(each)), name)
        value = values[0] if values else None
        if self._takes(flag, spelling, value):
            return (spelling, *values)
        older = _older_words(flag, spelling, value)
        missing = [each for each in older or () if each[0] == "-" and each not in self._entries]
        if older is not None and not missing:
            return older
        return self._without(flag, start.model.profile, value, dict.fromkeys((spelling, *missing)))

    def _has_long(self, spelling: str) -> bool:
        """Whether this build lists a long form; a short one may mean something else in it."""
        return spelling.startswith("--") and spelling in self._entries

    def _takes(self, flag: Flag, spelling: str, value: str | None) -> bool:
        """Whether this build takes the flag with this value, as builds of today do."""
        entry = self._entries.get(spelling)
        if entry is None or (flag.older and value is not None and not entry.has_value):
            return False
        return (flag.since or {}).get(value or "", "") in entry.text

    def _without(
        self, flag: Flag, profile: Profile, value: str | None, names: Collection[str]
    ) -> tuple[str, ...]:
        """Leave out what changes nothing, or what nobody wrote; else say that it cannot be had."""
        is_written = flag.field in profile.model_fields_set
        if any(name in self._entries for name in names):
            if not is_written:
                return ()
            raise EngineError(
                f"{self._binary} does not take {value} for {flag.name}; write {flag.older_values}, "
                "or use a newer build"
            )
        unknown = f"{self._binary} does not know {' and '.join(names)}"
        if flag.is_old_way is None:
            raise EngineError(f"{unknown}; use another build")
        if is_written and not flag.is_old_way(profile):
            raise EngineError(f"{unknown}; leave the field out, or use another build")
        return ()

    def further(self, words: tuple[str, ...]) -> tuple[str, ...]:
        """Return `extra_args` as they are. Raises EngineError for what must not be given there."""

        def instead(flag: str) -> str | None:
            entry = self._entries.get(flag)
            return instead_of(flag, entry.text if entry else "")

        reading = ArgumentReading(
            program=str(self._binary), count_of=self._value_count, instead=instead, may_join=False
        )
        if (problem := reading.problem(words)) is not None:
            raise EngineError(problem)
        return words

    def _value_count(self, flag: str) -> int | None:
        entry = self._entries.get(flag)
        return None if entry is None else entry.value_count

    def refuse_variables(self, names: Collection[str]) -> None:
        """Raise EngineError for variables by which a profile's `env` would give such a flag."""
        problems = [
            f"{name} stands for {flag}, which cannot be given: {remedy}"
            for name in names
            for flag, entry in self._entries.items()
            if entry.variable == name and (remedy := instead_of(flag, entry.text)) is not None
        ]
        if problems:
            raise EngineError("; ".join(problems))


def _older_words(flag: Flag, spelling: str, value: str | None) -> tuple[str, ...] | None:
    words = (flag.older or {}).get(value or "")
    if words is None:
        return None
    return tuple(spelling if word == flag.name else word for word in words)
