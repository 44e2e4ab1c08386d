"""Which engine runs a profile: the one it names, or the first that is there."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from supervisor.engine.kinds import command, embedded, llama_cpp_python, llama_server
from supervisor.engine.kinds.command import CommandEngine
from supervisor.engine.kinds.embedded import EmbeddedEngine
from supervisor.engine.kinds.llama_cpp_python import LlamaCppPython
from supervisor.engine.kinds.llama_server import LlamaServer, find_binary
from supervisor.engine.kinds.program_output import package_file
from supervisor.engine.port import Engine, EngineIdentity
from supervisor.errors import EngineError

log = structlog.get_logger()


class Engines:
    """The engines found on this machine. `preferred` (the command line's) replaces `auto`."""

    def __init__(
        self, environ: Mapping[str, str], configured: Path | None, preferred: str = "auto"
    ) -> None:
        """Look for them. Raises EngineError when a named binary is not there, or none is."""
        self._found: dict[str, Engine] = {}
        binary = find_binary(environ, configured)
        if binary is not None:
            self._found[llama_server.NAME] = LlamaServer(binary)
        if package_file(embedded.PACKAGE):
            self._found[embedded.NAME] = EmbeddedEngine()
        if package_file(llama_cpp_python.PACKAGE):
            self._found[llama_cpp_python.NAME] = LlamaCppPython(environ)
        self._command = CommandEngine(environ)
        self._preferred = preferred
        self.choose("auto")

    def choose(self, name: str) -> Engine:
        """Return the engine for a profile's `engine` field. Raises EngineError with the remedy."""
        wanted = self._preferred if name == "auto" else name
        if wanted == "auto" and self._found:
            return next(iter(self._found.values()))
        if wanted == command.NAME:
            return self._command
        if wanted in self._found:
            return self._found[wanted]
        raise EngineError(_REMEDIES[wanted])

    def identities(self) -> Iterator[EngineIdentity]:
        """Yield the identity of each engine that was found; one that cannot tell says why.

        Blocks the first time: the programs are asked.
        """
        for name, engine in self._found.items():
            try:
                yield engine.identity
            except EngineError as error:
                yield EngineIdentity(name=name, location="", version="", problem=str(error))

    def announce(self) -> None:
        """Say once which engine `auto` means, and what the wheel costs on a CPU."""
        identity = self.choose("auto").identity
        log.info(
            "engine.chosen",
            engine=identity.name,
            location=identity.location,
            version=identity.version,
            devices=list(identity.devices),
        )
        if identity.name == embedded.NAME:
            log.info(
                "engine.hint",
                hint="the native llama-server is about 1.6 times as fast as the wheel on a CPU; "
                "scripts/build_llama_server.py builds it",
            )


_REMEDIES = {
    "auto": "no engine is here: pip install xllamacpp, or set LLAMA_SERVER_BIN to a llama-server",
    llama_server.NAME: "no llama-server was found: set engines.llama_server_bin or "
    "LLAMA_SERVER_BIN, put it on PATH, or run scripts/build_llama_server.py",
    embedded.NAME: "the embedded engine is not installed: pip install xllamacpp",
    llama_cpp_python.NAME: f"{llama_cpp_python.NAME} is not installed: {llama_cpp_python.REMEDY}",
}
