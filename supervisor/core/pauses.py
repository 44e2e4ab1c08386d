"""How long to wait before another attempt: the one place where pauses grow."""

_MAX_DOUBLINGS = 30


def doubled_pause_s(failures: int, first_s: float, longest_s: float) -> float:
    """Seconds to wait after so many failures: `first_s` after one, doubled with each further one.

    Never more than `longest_s`.
    """
    return min(longest_s, first_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
