"""The embedded engine: llama.cpp's HTTP server out of the `xllamacpp` wheel, as a child process."""

import argparse
import json
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.kinds.embedded_server import flag_parser, joined, value_count
from supervisor.engine.kinds.flag_table import requests_at_once
from supervisor.engine.kinds.flags import (
    API_KEY_VARIABLE,
    TOKENIZE,
    ArgumentReading,
    TakesServerFlags,
    server_flags,
    unhonoured,
)
from supervisor.engine.kinds.program_output import ProgramOutputs, package_file
from supervisor.engine.port import Abilities, EngineIdentity, ServerStart
from supervisor.errors import EngineError, UnfitProfile

NAME = "embedded"
PACKAGE = "xllamacpp"

_DESCRIBE = """
import json
import xllamacpp

print(json.dumps({
    "build": xllamacpp.BUILD_INFO,
    "system": xllamacpp.get_system_info(),
    "devices": [[device["name"], device["description"]] for device in xllamacpp.get_device_info()],
}))
"""


class EmbeddedEngine(TakesServerFlags):
    """Runs our module `embedded_server`, which takes llama-server's flags."""

    def __init__(self) -> None:
        self._outputs = ProgramOutputs()

    @property
    def identity(self) -> EngineIdentity:
        """The wheel's name and version, and what a process that loads it says of its build."""
        try:
            wheel_version = version(PACKAGE)
        except PackageNotFoundError:
            return EngineIdentity(name=NAME, location=PACKAGE, version="not installed")
        known = EngineIdentity(name=NAME, location=PACKAGE, version=wheel_version)
        try:
            said = self._description()
        except EngineError as error:  # a driver's fault, or an older wheel
            return replace(known, problem=str(error))
        build = said["build"]
        return replace(
            known,
            build=f"{build['compiler']} for {build['build_target']}; {said['system'].rstrip(' |')}",
            devices=tuple(": ".join(device) for device in said["devices"]),
        )

    def _description(self) -> dict[str, Any]:
        file = package_file(PACKAGE) or Path(PACKAGE)
        printed = self._outputs.of((sys.executable, "-P", "-c", _DESCRIBE), file)
        try:
            said: dict[str, Any] = json.loads(printed.splitlines()[0])
        except (IndexError, ValueError) as error:
            raise EngineError(
                f"xllamacpp does not say how it was built: {printed[:200]}"
            ) from error
        return said

    def abilities(self, resolved: ResolvedModel) -> Abilities:
        """Return what the wheel's server can do."""
        return Abilities(
            has_unix_socket=True,
            slots_path="/slots",
            saves_slots=True,
            tokenize=TOKENIZE,
            takes_token_ids=True,
            splits_inputs=True,
            embeds_base64=True,
            takes_embd_normalize=True,
            metrics_path="/metrics",
            requests_at_once=requests_at_once(resolved.profile),
            keeps_checkpoints=True,
            runs_gguf_only=True,
            api_key_variable=API_KEY_VARIABLE,
        )

    def check(self, resolved: ResolvedModel) -> None:
        """Raise UnfitProfile for what the wheel's server cannot honour, EngineError without it."""
        if package_file(PACKAGE) is None:
            raise EngineError("the embedded engine is not installed: pip install xllamacpp")
        problems = unhonoured(NAME, resolved.profile, self.honoured)
        if resolved.projector_path is not None:
            problems["engine"] = (
                f"embedded cannot take a multimodal projector ({resolved.projector_path}); use "
                "engine: llama-server"
            )
        problems |= _argument_problems(resolved)
        if problems:
            raise UnfitProfile(resolved.profile_name, problems)

    def argv(self, start: ServerStart) -> tuple[str, ...]:
        """Return the command line that serves the model at the address."""
        self.check(start.model)
        module = "supervisor.engine.kinds.embedded_server"
        return (sys.executable, "-P", "-m", module, *server_flags(start))


@cache
def _parser() -> argparse.ArgumentParser:
    parser = flag_parser()
    parser.exit_on_error = False
    return parser


_ARGUMENTS = ArgumentReading(
    program="the embedded engine", count_of=value_count, otherwise="use engine: llama-server"
)


def _argument_problems(resolved: ResolvedModel) -> dict[str, str]:
    """Return what is wrong with extra_args; every field is taken, so it can be these only."""
    words = resolved.profile.extra_args
    problem = _ARGUMENTS.problem(words)
    if problem is None:
        try:
            _parser().parse_args(["--model=m", "--host=h", *joined(words)])
        except argparse.ArgumentError as error:
            problem = f"the embedded engine cannot read {error.argument_name}: {error.message}"
    return {} if problem is None else {"extra_args": problem}
