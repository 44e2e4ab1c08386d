"""The clock on the wall beside the one that only goes on: where they stand to each other."""

import time


class WallClock:
    """Reads the wall clock. It may be set, and goes on in a suspend: ask anew, now and then."""

    def now(self) -> float:
        """Return the time in Unix seconds."""
        return time.time()

    def moment_of(self, unix_s: float) -> float:
        """Return when `time.monotonic()` will show that the wall clock has come to a time."""
        return time.monotonic() + unix_s - time.time()
