"""How long a server's prompts may take to be saved or restored.

The engine room keeps to it, and what the core grants a release has it in.
"""

MIN_TIME_S = 10.0
BYTES_PER_S = 50e6
"""All slots together get the minimum, and as much more as their bytes take on a slow disk."""


def time_for_prompts_s(size_bytes: int, min_time_s: float = MIN_TIME_S) -> float:
    """Return the seconds that so many bytes of prompts may take."""
    return min_time_s + size_bytes / BYTES_PER_S
