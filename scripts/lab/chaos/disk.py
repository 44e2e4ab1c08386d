"""The disk of the data folder, which can be full for a while."""

import contextlib
import errno
import os
import shutil
import subprocess
from pathlib import Path

_SIZE = "256m"  # more than a run writes, and what the store of vectors wants to stay free
_BLOCK = bytes(64 * 1024)


class Disk:
    """A file system of its own for the folder, where this user may mount one: root, with tmpfs.

    Anybody else gets the same refusal of new files by another error: the folder is made read-only.
    Root who may not mount (a container) cannot have it full: `can_be_full` is False.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._filler = folder / "filler"
        mount = ("mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=0700", "chaos", str(folder))
        self._is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        self.can_be_full = self._is_mounted or os.geteuid() != 0

    def fill(self) -> None:
        """Leave no room, from now on until `free()`."""
        if not self._is_mounted:
            self._folder.chmod(0o500)
            return
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(_BLOCK)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)
        self._folder.chmod(0o700)

    def sweep_sockets(self) -> None:
        """Remove the folders with the servers' sockets, as who cleans temporary folders does."""
        for path in self._folder.glob("run-*"):
            shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Unmount it; what was in it is gone."""
        if self._is_mounted:
            with contextlib.suppress(OSError):
                subprocess.run(("umount", "-l", str(self._folder)), check=False)
            self._is_mounted = False
