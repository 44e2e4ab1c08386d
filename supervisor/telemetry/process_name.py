"""What a process is called."""


def read_process_name(pid: int) -> str | None:
    """Read the name from /proc, or None where no such process is seen from here."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:  # noqa: PTH123 - at 1 to 20 Hz
            return file.read().strip()
    except OSError:
        return None
