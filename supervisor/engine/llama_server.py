"""The native engine: llama.cpp's own `llama-server` binary."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.cached_build import cached_llama_server
from supervisor.engine.flags import flag_names, server_flags
from supervisor.engine.port import Address, EngineIdentity
from supervisor.errors import EngineError

NAME = "llama-server"

_HELP_HEAD = re.compile(r"^(-\S.*?)(?:(?<![,\s])\s{2,}|$)", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


def find_binary(environ: Mapping[str, str], configured: Path | None = None) -> Path | None:
    """Find llama-server: the configured path, LLAMA_SERVER_BIN, PATH, then the cached build.

    Raises EngineError when a path that somebody named is not an executable file.
    """
    for source, named in (
        ("engines.llama_server_bin", str(configured) if configured else None),
        ("LLAMA_SERVER_BIN", environ.get("LLAMA_SERVER_BIN")),
    ):
        if named:
            path = Path(named)
            if not (path.is_file() and os.access(path, os.X_OK)):
                raise EngineError(f"{source}: {path} is not an executable file")
            return path
    on_path = shutil.which(NAME, path=environ.get("PATH"))
    return Path(on_path) if on_path else cached_llama_server()


@dataclass(frozen=True)
class LlamaServer:
    """Runs a llama-server binary in place, beside its libraries."""

    binary: Path
    _probes: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> EngineIdentity:
        """Name, path and the version that `--version` prints."""
        lines = self._ask("--version").splitlines()
        version = next((line for line in lines if line.startswith("version:")), "unknown")
        return EngineIdentity(
            name=NAME, location=str(self.binary), version=version.removeprefix("version:").strip()
        )

    @property
    def has_unix_socket(self) -> bool:
        """Whether this build's help mentions socket paths for `--host`."""
        return ".sock" in self._ask("--help")

    @property
    def known_flags(self) -> frozenset[str]:
        """All flags, short and long, that this build's help lists."""
        heads = _HELP_HEAD.findall(self._ask("--help"))
        return frozenset(flag for head in heads for flag in _FLAG.findall(head))

    def check(self, resolved: ResolvedModel) -> None:
        """Raise EngineError, naming the flags, when this build does not know one of them."""
        known = self.known_flags
        flags = flag_names(server_flags(resolved, Address(port=0)))
        unknown = [flag for flag in flags if flag not in known]
        if unknown:
            raise EngineError(
                f"{self.binary} does not know {', '.join(unknown)} (profile "
                f"'{resolved.profile_name}'): correct extra_args, or use another build"
            )

    def argv(self, resolved: ResolvedModel, address: Address) -> tuple[str, ...]:
        """Return the command line that serves the model at the address."""
        return (str(self.binary), *server_flags(resolved, address))

    def _ask(self, flag: str) -> str:
        """Run the binary with one flag; each answer is kept while the binary is the same file."""
        try:
            status = self.binary.stat()
        except OSError as error:
            raise EngineError(f"{self.binary} is gone: {error.strerror}") from error
        key = f"{flag} {status.st_ino} {status.st_mtime_ns}"
        if key not in self._probes:
            try:
                answer = subprocess.run(
                    [str(self.binary), flag],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=20,
                    check=True,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise EngineError(f"{self.binary} {flag} failed: {error}") from error
            self._probes[key] = answer.stdout + answer.stderr
        return self._probes[key]
