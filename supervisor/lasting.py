"""Whether what is written to a folder lasts: longer than the machine, the container or the pod."""

import re
from pathlib import Path

_MEMORY = frozenset({"tmpfs", "ramfs", "zram"})
_CONTAINER = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})
_EMPTY_DIR = "/kubernetes.io~empty-dir/"
"""In the path, on its node, of a Kubernetes volume that goes with its pod."""

_ESCAPE = re.compile(r"\\([0-7]{3})")

MOUNTS = Path("/proc/self/mountinfo")


def why_it_passes(folder: Path, mounts: str) -> str | None:
    """Say why what is written to a folder does not last; None where nothing speaks against it.

    `mounts`: what the kernel tells in `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    """
    best, found = -1, None
    for line in mounts.splitlines():
        words, _, more = line.partition(" - ")
        fields, (kind, *_) = words.split(), more.split()
        root, place = _unescaped(fields[3]), Path(_unescaped(fields[4]))
        depth = len(place.parts)
        if folder.is_relative_to(place) and depth >= best:  # of several, the last covers the others
            best, found = depth, (root, kind)
    if found is None:
        return None
    root, kind = found
    if kind in _MEMORY:
        return f"it is on a file system in memory ({kind}), which a restart of the machine empties"
    if kind in _CONTAINER:
        return f"it is in the container itself ({kind}), and goes with it"
    if _EMPTY_DIR in root:
        return "it is an emptyDir volume, which goes with its pod"
    return None


def _unescaped(path: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), path)
