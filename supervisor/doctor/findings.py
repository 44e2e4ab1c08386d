"""What a finding is: how bad, what is wrong, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """`error`: work will stop or not begin. `warning`: it goes on, and worse than it could."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong."""

    severity: Severity
    what: str
    remedy: str


def error(what: str, remedy: str) -> Finding:
    """Find something that stops work."""
    return Finding(severity=Severity.ERROR, what=what, remedy=remedy)


def warning(what: str, remedy: str) -> Finding:
    """Find something that work goes on with."""
    return Finding(severity=Severity.WARNING, what=what, remedy=remedy)
