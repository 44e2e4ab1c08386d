"""The native engine: llama.cpp's own `llama-server` binary."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.cached_build import CMAKE_FLAGS, cached_llama_server
from supervisor.engine.kinds.dialect import Dialect, lists_slots
from supervisor.engine.kinds.flag_table import PLACE, SETTINGS, requests_at_once
from supervisor.engine.kinds.flags import (
    API_KEY_VARIABLE,
    TOKENIZE,
    TakesServerFlags,
    unhonoured,
)
from supervisor.engine.kinds.program_output import HelpEntry, ProgramOutputs, read_help
from supervisor.engine.port import Abilities, Address, EngineIdentity, ServerStart
from supervisor.errors import EngineError, UnfitProfile

NAME = "llama-server"

_PLACE_NAMES = {flag.name for flag in PLACE}
_DEVICE = re.compile(r"^\s+(\w+: .*?)(?:, \d+ MiB free)?(\)?)$", re.MULTILINE)


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
                raise EngineError(
                    f"{source}: {path} is not an executable file; name a llama-server that is, or "
                    "leave it out, and one is looked for"
                )
            return path
    on_path = shutil.which(NAME, path=environ.get("PATH"))
    return Path(on_path) if on_path else cached_llama_server()


@dataclass(frozen=True)
class LlamaServer(TakesServerFlags):
    """Runs a llama-server binary in place, beside its libraries.

    What it is able to do, and how its flags are spelled, is read from its own help.
    """

    binary: Path
    _outputs: ProgramOutputs = field(default_factory=ProgramOutputs, compare=False)

    @property
    def identity(self) -> EngineIdentity:
        """Name, path, and what `--version` and `--list-devices` print."""
        lines = self._ask("--version").splitlines()
        problem: str | None = None
        devices: tuple[str, ...] = ()
        try:
            devices = self._devices()
        except EngineError as error:  # a driver's fault, which says nothing of the binary
            problem = str(error)
        return EngineIdentity(
            name=NAME,
            location=str(self.binary),
            version=_after("version:", lines) or "unknown",
            build=self._build(_after("built with", lines)),
            devices=devices,
            problem=problem,
        )

    def _build(self, compiler: str) -> str:
        """Return with what it was compiled; the flags are known of the cached build only."""
        is_ours = self.binary == cached_llama_server()
        return " ".join((f"{compiler};", *CMAKE_FLAGS)) if is_ours else compiler

    def _devices(self) -> tuple[str, ...]:
        """Return the devices that it lists, without what was free on them when it was asked."""
        if "--list-devices" not in self.help_entries:
            return ()
        _, _, listed = self._ask("--list-devices").partition("Available devices:")
        return tuple(name + bracket for name, bracket in _DEVICE.findall(listed))

    @property
    def help_entries(self) -> Mapping[str, HelpEntry]:
        """All flags, short and long, that this build's help lists, with what it says of them."""
        return read_help(self._ask("--help"))

    def abilities(self, resolved: ResolvedModel) -> Abilities:
        """Return what this build can do."""
        entries = self.help_entries
        flash = entries.get("--flash-attn")
        has_slots = lists_slots(entries)
        return Abilities(
            has_unix_socket=".sock" in self._ask("--help"),
            slots_path="/slots" if has_slots else None,
            saves_slots=has_slots and "--slot-save-path" in entries,
            tokenize=TOKENIZE,
            takes_token_ids=True,
            splits_inputs=True,
            embeds_base64=True,
            takes_embd_normalize=True,
            metrics_path="/metrics" if "--metrics" in entries else None,
            requests_at_once=requests_at_once(resolved.profile),
            chooses_flash_attention=flash is not None and flash.has_value,
            keeps_checkpoints=not {"--ctx-checkpoints", "--swa-checkpoints"}.isdisjoint(entries),
            runs_gguf_only=True,
            api_key_variable=API_KEY_VARIABLE,
        )

    def check(self, resolved: ResolvedModel) -> None:
        """Raise UnfitProfile, naming fields and flags, for what this build does not know."""
        slots_dir = Path() if resolved.profile.keep_prompt_cache else None
        self.argv(ServerStart(model=resolved, address=Address(port=0), slots_dir=slots_dir))

    def argv(self, start: ServerStart) -> tuple[str, ...]:
        """Return the command line that serves the model at the address, in this build's words."""
        entries, profile = self.help_entries, start.model.profile
        words = [str(self.binary), *(word for flag in PLACE for word in flag.words(start))]
        strange = [word for word in words if word in _PLACE_NAMES and word not in entries]
        if strange:
            raise EngineError(
                f"{self.binary} is not a llama-server that can be used: it does not know "
                f"{', '.join(strange)}"
            )
        dialect = Dialect(self.binary, entries)
        problems = unhonoured(NAME, profile, self.honoured)
        for flag in SETTINGS:
            with _noting(problems, flag.field):
                words += dialect.words(flag, start)
        with _noting(problems, "extra_args"):
            words += dialect.further(profile.extra_args)
        with _noting(problems, "env"):
            dialect.refuse_variables(profile.env.keys())
        if problems:
            raise UnfitProfile(start.model.profile_name, problems)
        return tuple(words)

    def _ask(self, flag: str) -> str:
        return self._outputs.of((str(self.binary), flag), self.binary)


@contextmanager
def _noting(problems: dict[str, str], field: str) -> Iterator[None]:
    """Add an EngineError to the field's problems."""
    try:
        yield
    except EngineError as error:
        before = problems.get(field)
        problems[field] = f"{before}; {error}" if before else str(error)


def _after(words: str, lines: list[str]) -> str:
    """Return what follows the words in the first line that begins with them; else nothing."""
    found = (line.removeprefix(words).strip() for line in lines if line.startswith(words))
    return next(found, "")
