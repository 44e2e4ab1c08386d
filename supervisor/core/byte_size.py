"""Sizes in bytes: the unit we count in, and how a person reads them."""

MIB = 1024 * 1024


def format_bytes(count: int) -> str:
    """Write a size for a person, in binary units: `1.5 GiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
