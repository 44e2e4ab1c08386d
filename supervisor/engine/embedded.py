"""The embedded engine: llama.cpp's HTTP server out of the `xllamacpp` wheel, as a child process."""

import argparse
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from supervisor.config.configuration import ResolvedModel
from supervisor.engine.embedded_server import flag_parser
from supervisor.engine.flags import server_flags
from supervisor.engine.port import Address, EngineIdentity
from supervisor.errors import EngineError

NAME = "embedded"


class EmbeddedEngine:
    """Runs `python -m supervisor.engine.embedded_server`, which takes llama-server's flags."""

    has_unix_socket = True

    @staticmethod
    def is_installed() -> bool:
        """Whether the wheel is there, without loading its 30 MB library into the controller."""
        return find_spec("xllamacpp") is not None

    @property
    def identity(self) -> EngineIdentity:
        """The wheel's name and version."""
        try:
            wheel_version = version("xllamacpp")
        except PackageNotFoundError:
            wheel_version = "not installed"
        return EngineIdentity(name=NAME, location="xllamacpp", version=wheel_version)

    def check(self, resolved: ResolvedModel) -> None:
        """Raise EngineError when the wheel is missing or cannot honour the profile."""
        if not self.is_installed():
            raise EngineError("the embedded engine is not installed: pip install xllamacpp")
        parser = flag_parser()
        parser.exit_on_error = False
        try:
            _, unknown = parser.parse_known_args(server_flags(resolved, Address(port=0)))
        except argparse.ArgumentError as error:
            raise EngineError(
                f"the embedded engine cannot read {error.argument_name}: {error.message} (profile "
                f"'{resolved.profile_name}'): correct extra_args"
            ) from error
        if unknown:
            raise EngineError(
                f"the embedded engine does not know {' '.join(unknown)} (profile "
                f"'{resolved.profile_name}'): correct extra_args, or use engine: llama-server"
            )

    def argv(self, resolved: ResolvedModel, address: Address) -> tuple[str, ...]:
        """Return the command line that serves the model at the address."""
        module = "supervisor.engine.embedded_server"
        return (sys.executable, "-P", "-m", module, *server_flags(resolved, address))
