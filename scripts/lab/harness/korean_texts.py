"""Korean texts of two lengths: what people type into a search, and what documents say."""

from pathlib import Path

_SHORT, _LONG = (
    Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").rstrip().split("\n\n")
)

SHORT = tuple(_SHORT.splitlines())
"""Ten to fifteen syllables each."""

LONG = tuple(_LONG.splitlines())
"""About 130 characters each."""
