"""Checks whether a target can start, and starts it: catalogue, engine, file and process together.

Everything that can be known before the live backend is touched is checked in `check()`.
"""

import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
from pydantic import ValidationError

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.core.kv_cache import keeps_no_kv
from supervisor.core.need import NeedSettings, estimate_need
from supervisor.core.values import Mode, Target
from supervisor.engine.backend import Backend, OnLine, choose_address
from supervisor.engine.engines import Engines
from supervisor.engine.model_file import ModelFile
from supervisor.engine.model_source import look_at_model, require_stated_need
from supervisor.engine.port import Abilities, Launch
from supervisor.engine.process import inherited_environment
from supervisor.errors import EngineError
from supervisor.telemetry.port import HOST

log = structlog.get_logger()


class Launcher:
    """Turns targets into running backends.

    `run_dir` is our private folder for sockets; `device_env` tells the variables that show a
    child its device and no other.
    """

    def __init__(
        self,
        *,
        configuration: Configuration,
        engines: Engines,
        run_dir: Path,
        device_env: Callable[[str], Mapping[str, str]],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._configuration = configuration
        self._engines = engines
        self._run_dir = run_dir
        self._device_env = device_env
        self._environ = environ

    def check(self, target: Target) -> int:
        """Return the bytes that the target will need on its device.

        Blocks for some milliseconds (it reads the file's header, and asks a new binary for its
        flags). Raises EngineError or ModelFileError when the target cannot start.
        """
        resolved = self._resolve(target)
        engine = self._engines.choose(resolved.profile.engine)
        engine.check(resolved)
        abilities = engine.abilities(resolved)
        file = look_at_model(resolved, abilities)
        if file is None:
            return require_stated_need(resolved)
        _refuse_uneven_slots(resolved, file)
        return _need_bytes(resolved, file, abilities, target.device)

    def launch(self, target: Target, epoch: int) -> Backend:
        """Spawn the target's server. Raises EngineError when it cannot be executed."""
        resolved = self._resolve(target)
        engine = self._engines.choose(resolved.profile.engine)
        abilities = engine.abilities(resolved)
        address = choose_address(self._run_dir, epoch, has_unix_socket=abilities.has_unix_socket)
        key = secrets.token_urlsafe(32)
        inherited = inherited_environment(self._environ, self._device_env(target.device))
        launch = Launch(
            argv=engine.argv(resolved, address, key),
            env=engine.environment(resolved, inherited, address, key),
            address=address,
            api_key=key,
            model=target.model,
            epoch=epoch,
            abilities=abilities,
        )
        return Backend(launch, _log_output(target.model, epoch))

    def _resolve(self, target: Target) -> ResolvedModel:
        try:
            return self._configuration.resolve(target.model, target.profile)
        except ValidationError as error:
            problem = error.errors()[0]
            field = ".".join(str(part) for part in problem["loc"])
            raise EngineError(
                f"'{target.model}' cannot run with profile '{target.profile}': {field}: "
                f"{problem['msg']}"
            ) from error


def _need_bytes(resolved: ResolvedModel, file: ModelFile, abilities: Abilities, device: str) -> int:
    """Return what the profile states, else an estimate from the file's header."""
    profile = resolved.profile
    if profile.memory.need_bytes is not None:
        return profile.memory.need_bytes
    settings = NeedSettings(
        ctx_size_per_slot=profile.ctx_size,
        parallel=profile.parallel,
        kv_unified=profile.kv_unified,
        cache_type_k=profile.cache_type_k,
        cache_type_v=profile.cache_type_v,
        ubatch_size=min(profile.ubatch_size, profile.batch_size),
        flash_attention=profile.flash_attn == "on"
        or (profile.flash_attn == "auto" and abilities.chooses_flash_attention),
        is_embedding=resolved.mode is Mode.EMBEDDING,
    )
    need = estimate_need(file.headers, settings)
    # Results are handed over in host memory, whatever device computes them.
    return need.total_bytes + (need.host_output_bytes if device == HOST else 0)


def _refuse_uneven_slots(resolved: ResolvedModel, file: ModelFile) -> None:
    """Refuse what makes llama-server abort while it loads (GGML_ASSERT in its pooling)."""
    profile = resolved.profile
    is_encoder = keeps_no_kv(file.header.architecture)
    if resolved.mode is Mode.EMBEDDING and is_encoder and profile.ubatch_size % profile.parallel:
        raise EngineError(
            f"'{resolved.name}' ({file.header.architecture}) needs a ubatch_size that is a "
            f"multiple of parallel; {profile.ubatch_size} is none of {profile.parallel}"
        )


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
