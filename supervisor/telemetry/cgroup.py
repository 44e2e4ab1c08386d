"""What the container may use of host memory: the limits of its memory cgroup, v1 and v2."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from supervisor.errors import TelemetryError


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupLimit:
    """A limit that holds for this process, and the use that counts against it. In bytes."""

    limit_bytes: int
    used_bytes: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How one cgroup version names its files, and the page cache it can reclaim."""

    name: str
    limit_file: str
    usage_file: str
    page_cache: tuple[str, ...]


_V1 = _Layout(
    name="cgroup v1",
    limit_file="memory.limit_in_bytes",
    usage_file="memory.usage_in_bytes",
    page_cache=("total_inactive_file", "total_active_file"),
)
_V2 = _Layout(
    name="cgroup v2",
    limit_file="memory.max",
    usage_file="memory.current",
    page_cache=("inactive_file", "active_file"),
)


class MemoryCgroup:
    """The memory cgroup of this process and its ancestors, as far as they can be seen.

    Page cache does not count as used, on either list. MemAvailable counts in the same way, and it
    must be so here: mapped weights are page cache, and much of it is on the active list (all of
    it where the kernel ages pages in generations), where it stays after the server has exited.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._layout, self._folders = _find_folders(root)

    def limits(self, *, below_bytes: int) -> Iterator[CgroupLimit]:
        """Yield each limit below `below_bytes`, the innermost first.

        Raises TelemetryError when a limit is set and what it counts cannot be read.
        """
        for folder in self._folders:
            limit = _read_limit(folder / self._layout.limit_file)
            if limit is not None and limit < below_bytes:
                yield CgroupLimit(
                    limit_bytes=limit,
                    used_bytes=self._read_used(folder),
                    source=self._layout.name,
                )

    def _read_used(self, folder: Path) -> int:
        try:
            usage = int((folder / self._layout.usage_file).read_bytes())
            counters = dict(
                line.split() for line in (folder / "memory.stat").read_bytes().splitlines()
            )
            page_cache = sum(int(counters[name.encode()]) for name in self._layout.page_cache)
        except (OSError, ValueError, KeyError) as exc:
            raise TelemetryError(
                f"host memory: {folder} sets a limit, but its use cannot be read ({exc!r}); "
                "mount /sys/fs/cgroup readable"
            ) from exc
        return max(0, usage - page_cache)


def _read_limit(file: Path) -> int | None:
    try:
        content = file.read_bytes().strip()
    except OSError:  # the root of the hierarchy has no limit file
        return None
    return None if content == b"max" else int(content)


def _find_folders(root: Path) -> tuple[_Layout, tuple[Path, ...]]:
    """Find the process's folder and those above it, up to the mount.

    In a container the path in /proc/self/cgroup may be the host's, with only the container's own
    folder mounted: what does not exist is left out, and the mount itself is always looked at.
    """
    mount = root / "sys/fs/cgroup"
    layout, path = _V2, PurePosixPath("/")
    for line in _read_lines(root / "proc/self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if "memory" in controllers.split(","):
            layout, path, mount = _V1, PurePosixPath(name), mount / "memory"
            break
        if not controllers:
            path = PurePosixPath(name)
    inner = () if ".." in path.parts else (path, *path.parents)
    folders = (mount / level.relative_to("/") for level in inner)
    return layout, tuple(dict.fromkeys([*filter(Path.is_dir, folders), mount]))


def _read_lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # a kernel without cgroups
        return []
