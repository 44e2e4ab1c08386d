"""Reads a YAML file written by hand: its values, and the line on which each of them stands.

PyYAML composes the nodes; they are turned into values here, because its constructor keeps the last
of two equal keys, forgets where a value stood, and expands anchors without bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from supervisor.errors import ConfigError

FieldPath = tuple[str | int, ...]
"""The way to a value: names of fields and positions in lists."""

MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_REPEATED_VALUES = 100_000
"""Values that anchors may add by being repeated: a billion laughs ends here."""

_Composer = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file's values, and the line of each value's name by its place.

    `problems` are faults of form that left the rest readable, such as a field given twice.
    """

    path: Path
    content: dict[str, Any]
    lines: Mapping[FieldPath, int]
    problems: tuple[str, ...] = ()

    def at(self, place: FieldPath) -> str:
        """Return `file:line` of a value, or of what encloses it where it is not written."""
        for length in range(len(place), -1, -1):
            line = self.lines.get(place[:length])
            if line is not None:
                return f"{self.path}:{line}"
        return f"{self.path}:1"


def dotted(place: FieldPath) -> str:
    """Write a place as operators read it: `models.chat.path`."""
    return ".".join(str(part) for part in place) or "file"


def read_source(path: Path) -> Source:
    """Read a file of fields. Raises ConfigError, with the line, when it cannot be read at all."""
    text = _decode(path, _read(path))
    try:
        node = yaml.compose(text, Loader=_Composer)
    except yaml.MarkedYAMLError as error:
        raise ConfigError((_describe_syntax(path, text, error),)) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError((f"{path}:1: file: is not YAML: {reason}",)) from error
    if node is None:
        raise ConfigError((f"{path}:1: file: is empty; write fields as `name: value`",))
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError((f"{path}:1: file: holds no fields; write them as `name: value`",))
    builder = _Builder(path)
    content = builder.build(node, ())
    return Source(path=path, content=content, lines=builder.lines, problems=tuple(builder.problems))


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(
                (f"{path}:1: file: is larger than {MAX_FILE_BYTES} bytes; is it the right file?",)
            )
        return path.read_bytes()
    except OSError as error:
        raise ConfigError((f"{path}:1: file: cannot be read: {error.strerror}",)) from error


def _decode(path: Path, raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise ConfigError(
            (f"{path}:{line}: file: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8",)
        ) from error


def _describe_syntax(path: Path, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    lines = text.splitlines()
    if 0 < line <= len(lines) and "\t" in lines[line - 1][: _indent(lines[line - 1])]:
        return f"{path}:{line}: file: a tab indents this line; YAML takes spaces only"
    begun = error.context_mark.line + 1 if error.context_mark else line
    since = f" (begun on line {begun})" if error.context and begun != line else ""
    context = f"{error.context}{since}" if error.context else None
    problem = " ".join(part for part in (context, error.problem) if part)
    return f"{path}:{line}: file: is not YAML: {problem}"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


class _Builder:
    """Turns composed nodes into values, noting lines and problems on the way."""

    def __init__(self, path: Path) -> None:
        self.lines: dict[FieldPath, int] = {}
        self.problems: list[str] = []
        self._path = path
        self._scalars = SafeConstructor()
        self._built: set[int] = set()
        self._open: set[int] = set()
        self._repeated = 0

    def build(self, node: yaml.Node, place: FieldPath) -> Any:
        """Return the node's value; what cannot be a value is noted and stands as None."""
        self.lines.setdefault(place, node.start_mark.line + 1)
        if id(node) in self._open:
            self._note(node, place, "refers to itself through an anchor; write it out")
            return None
        if not self._may_repeat(node, place):
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, place)
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*place, i)) for i, item in enumerate(node.value)]
            return self._mapping(node, place)
        finally:
            self._open.discard(id(node))

    def _may_repeat(self, node: yaml.Node, place: FieldPath) -> bool:
        if id(node) not in self._built:
            self._built.add(id(node))
            return True
        self._repeated += 1
        if self._repeated == MAX_REPEATED_VALUES:
            self._note(
                node, place, f"anchors repeat more than {MAX_REPEATED_VALUES} values; write less"
            )
        return self._repeated < MAX_REPEATED_VALUES

    def _scalar(self, node: yaml.ScalarNode, place: FieldPath) -> Any:
        try:
            return self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error)
            self._note(node, place, f"cannot be read: {reason}; put it in quotes")
            return None

    def _mapping(self, node: yaml.Node, place: FieldPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                merged |= self._merged(value, place)
                continue
            name = self._scalar(key, place) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                self._note(key, place, f"a field's name must be text, not {name!r}; quote it")
                continue
            line = key.start_mark.line + 1
            if name in first_line:
                self._note(
                    key,
                    (*place, name),
                    f"is given twice, first on line {first_line[name]}; keep one",
                )
                continue
            first_line[name] = self.lines[*place, name] = line
            values[name] = self.build(value, (*place, name))
        return merged | values

    def _merged(self, value: yaml.Node, place: FieldPath) -> dict[str, Any]:
        """Read `<<: *anchor` or `<<: [*one, *other]`, where the first one wins."""
        nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
        merged: dict[str, Any] = {}
        for node in nodes:
            part = self.build(node, place)
            if isinstance(part, dict):
                merged = part | merged
            else:
                self._note(node, place, "`<<` merges mappings only")
        return merged

    def _note(self, node: yaml.Node, place: FieldPath, problem: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append(f"{self._path}:{line}: {dotted(place)}: {problem}")
