"""Checks whether a target can start, and starts it: catalogue, engine, file and process together.

Everything that can be known before the live backend is touched is checked in `check()`.
"""

import os
import re
import secrets
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import structlog

from supervisor.config.configuration import ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.byte_size import MIB
from supervisor.core.machine.values import Target, TargetNeed
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.environment import inherited_environment
from supervisor.engine.models.model_file import (
    ModelFile,
    inspect_model_file,
    is_unchanged,
)
from supervisor.engine.models.page_cache import FileWarmer, mapped_file_bytes
from supervisor.engine.needs.assessment import (
    Assessment,
    assess,
    examine,
    memory_settings,
    slot_kv_bytes,
)
from supervisor.engine.needs.learned_store import LearnedStore
from supervisor.engine.needs.prompt_identity import prompt_identity
from supervisor.engine.port import Abilities, Launch, ServerStart
from supervisor.engine.prompts.prompt_cache import PromptCache, PromptFiles, identity_of
from supervisor.engine.servers.addresses import choose_address
from supervisor.engine.servers.backend import Backend, OnLine
from supervisor.engine.targets import revision_of
from supervisor.errors import RequestRefused, SupervisorError
from supervisor.telemetry.host import HostMemory
from supervisor.telemetry.port import HOST

log = structlog.get_logger()

WARMING_RESERVE_BYTES = 512 * MIB
"""Host memory that warming leaves free, for what servers and others ask for meanwhile."""


class Launcher:
    """Turns targets into running backends.

    `run_dir` is our private folder for sockets; `device_env` returns the variables that show a
    child its devices and no others. `prompt_cache` is where prompts are kept, `learned_store` what
    servers were seen to take; None: they are not.
    """

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        *,
        configuration: ConfigurationHolder,
        engines: Engines,
        run_dir: Path,
        folder: str = "",
        device_env: Callable[[Sequence[str]], Mapping[str, str]],
        prompt_cache: PromptCache | None = None,
        learned_store: LearnedStore | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._configuration = configuration
        self._engines = engines
        self._run_dir = run_dir
        self._folder = folder
        self._device_env = device_env
        self._prompt_cache = prompt_cache
        self._learned_store = learned_store
        self._environ = environ
        self._seen_files: dict[Path, ModelFile] = {}
        self._assessed: dict[tuple[str, ...], Assessment] = {}

    def check(self, target: Target) -> TargetNeed:
        """Return what the target will need on its device, and what would make it smaller.

        Blocks for some milliseconds (it reads the file's header, and asks a new binary for its
        flags). Raises EngineError, ModelFileError or RequestRefused when the target cannot start.
        """
        resolved = self._resolve(target)
        engine = self._engines.choose(resolved.profile.engine)
        candidate = examine(resolved, engine, self._known_file(resolved))
        if candidate.file is not None:
            self._seen_files[resolved.path] = candidate.file
        assessment = assess(candidate, target.device, self._learned_store, target.split_over)
        self._assessed[_key(target)] = assessment
        return assessment.need()

    def _known_file(self, resolved: ResolvedModel) -> ModelFile | None:
        """Return the model as it was looked at, while it is still the same.

        The header of one with a large vocabulary takes 15 ms to read over.
        """
        file = self._seen_files.get(resolved.path)
        return file if file is not None and is_unchanged(file) else None

    def assessed(self, target: Target) -> Assessment | None:
        """Return what a target was checked with last; None before its first check."""
        return self._assessed.get(_key(target))

    def warm(
        self, target: Target, child_pids: Collection[int], should_stop: threading.Event
    ) -> None:
        """Read the target's file into the page cache; blocks, raises nothing.

        What live servers (`child_pids`) have mapped, and a reserve, are left alone. Nothing is
        read where the server goes around that cache (`load_mode: dio`), or loads no single file.
        """
        host = HostMemory()

        def available_bytes() -> int:
            return host.sample(HOST).free_bytes - mapped_file_bytes(child_pids)

        resolved = self._resolve(target)
        file = self._known_file(resolved)
        if file is not None and resolved.profile.load_mode != "dio":
            warmer = FileWarmer(available_bytes, WARMING_RESERVE_BYTES)
            warmed = warmer.warm(file.paths, should_stop)
            log.info("model.warmed", model=target.model, **asdict(warmed))

    def launch(self, target: Target, epoch: int) -> Backend:
        """Spawn the target's server. Raises EngineError when it cannot be executed."""
        resolved = self._resolve(target)
        engine = self._engines.choose(resolved.profile.engine)
        abilities = engine.abilities(resolved)
        inherited = inherited_environment(
            self._environ, self._device_env(target.devices), resolved.profile.env_passthrough
        )
        prompt_files = self._prompt_files(target, resolved, abilities)
        start = ServerStart(
            model=resolved,
            address=choose_address(self._run_dir, epoch, has_unix_socket=abilities.has_unix_socket),
            api_key=secrets.token_urlsafe(32),
            slots_dir=prompt_files.path if prompt_files else None,
        )
        launch = Launch(
            argv=engine.argv(start),
            env=engine.environment(start, inherited),
            address=start.address,
            api_key=start.api_key,
            model=target.catalogue_name,
            profile=target.profile,
            epoch=epoch,
            folder=self._folder,
            model_path=resolved.path,
            abilities=abilities,
            prompt_files=prompt_files,
            may_checkpoint=self._configuration.current.settings.switch.cuda_checkpoint
            and resolved.profile.engine != "command",
        )
        return Backend(launch, _log_output(target.model, epoch))

    def _prompt_files(
        self, target: Target, resolved: ResolvedModel, abilities: Abilities
    ) -> PromptFiles | None:
        """Return where its prompts are kept, if they are to be; a start never fails of it.

        The engine is not asked for its build again: a driver that hangs may keep it a minute.
        """
        cache, is_wanted = self._prompt_cache, resolved.profile.keep_prompt_cache
        if cache is None or not (is_wanted and abilities.saves_slots):
            return None
        checked = self._assessed.get(_key(target))
        build = checked.candidate.build if checked else None
        if build is None:
            reason = "the engine did not say which build it is when the model was checked"
            log.warning("prompts.not_kept", model=resolved.name, reason=reason)
            return None
        try:
            file = self._known_file(resolved) or inspect_model_file(resolved.path)
            server = prompt_identity(resolved, file, build)
            return cache.files_for(
                identity_of({"server": server, "program": _content_of(Path(build.location))}),
                slot_kv_bytes=slot_kv_bytes(file, memory_settings(resolved, abilities)),
            )
        except (OSError, SupervisorError) as error:
            log.warning("prompts.not_kept", model=resolved.name, reason=str(error))
            return None

    def _resolve(self, target: Target) -> ResolvedModel:
        """Return the target's model and profile, as they are written now.

        Where the configuration has changed since it was checked, it is what it was then: a rollback
        and a restart bring back what ran.
        """
        checked = self._assessed.get(_key(target))
        try:
            current = self._configuration.current.resolve(target.catalogue_name, target.profile)
        except RequestRefused:
            if checked is None:
                raise
            return checked.candidate.resolved
        if checked is None or revision_of(current) == target.revision:
            return current
        return checked.candidate.resolved


def _key(target: Target) -> tuple[str, ...]:
    return target.model, target.profile, target.device, target.revision


def _content_of(program: Path) -> tuple[int, ...]:
    """Return what changes where a program was replaced since its build was asked for.

    Nothing that is another in each container: kept prompts outlive them. Empty for a package.
    """
    if not program.is_file():
        return ()
    found = program.stat()
    return found.st_size, found.st_mtime_ns


def _log_output(model: str, epoch: int) -> OnLine:
    """Return what writes a server's lines to the log.

    While it loads, every line may matter. Once it serves it writes several for each request: they
    are kept for error messages, and logged where `server.log_level` is debug.
    """
    output = log.bind(model=model, epoch=epoch)

    def write(line: str, is_ready: bool) -> None:
        if _WARNING.match(line):
            output.warning("backend.output", line=line)
        elif is_ready:
            output.debug("backend.output", line=line)
        else:
            output.info("backend.output", line=line)

    return write


_WARNING = re.compile(r"[\d.]+ [WE] ")
"""A warning or an error in llama.cpp's log: `0.00.400.132 W srv …`."""
