"""Every error this product raises on purpose.

    SupervisorError
    ├── ConfigError          what an operator wrote cannot be used; carries every problem
    ├── ModelFileError       a model file cannot be used; nothing was touched
    ├── NeedMoreBytes        no error: a GGUF header goes on behind the bytes read (core/sizing)
    ├── EngineError          an engine is missing or does not know a setting
    │   └── UnfitProfile     fields of a profile that the engine cannot honour, each with the reason
    ├── TelemetryError       a device cannot be read
    │   └── VendorAbsentError  nothing of this vendor is here (telemetry/port.py)
    ├── InvalidTransition    a bug of ours; carries the recent history
    └── RequestRefused       a request or a switch gets an answer other than the one hoped for
        └── BackendUnreachable  a server does not answer, or breaks off its answer

`gateway/error_responses.py` alone maps these to HTTP.
"""

from collections.abc import Mapping
from typing import Any


class SupervisorError(Exception):
    """Root of the tree: catch it to catch everything that is ours."""


class ConfigError(SupervisorError):
    """The configuration cannot be used. `problems` names every fault at once."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class ModelFileError(SupervisorError):
    """A model's file is missing, unreadable or not what it should be."""


class EngineError(SupervisorError):
    """An engine is not installed, or cannot honour a setting."""


class UnfitProfile(EngineError):
    """An engine cannot honour fields of a profile.

    `problems` names them, dotted where they stand in a section, each with what is wrong with it and
    what would be right.
    """

    def __init__(self, profile_name: str, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        named = "; ".join(f"{field}: {problem}" for field, problem in problems.items())
        super().__init__(f"profile '{profile_name}': {named}")


class TelemetryError(SupervisorError):
    """A device's memory cannot be read. The message carries the reason and the remedy."""


class InvalidTransition(SupervisorError):
    """An event arrived that the state forbids: a bug. The message carries the history."""


class RequestRefused(SupervisorError):
    """A request or a switch is answered with an error. `code` is stable, `message` for people."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        self.code = code
        self.message = message
        self.details = dict(details or {})
        super().__init__(message)


class BackendUnreachable(RequestRefused):
    """A server does not answer, or its answer broke off.

    `may_repeat`: it cannot have read the request, so whatever that asks for, it may be sent again.
    """

    def __init__(
        self, message: str, details: Mapping[str, Any] | None = None, *, may_repeat: bool
    ) -> None:
        self.may_repeat = may_repeat
        super().__init__("backend_unreachable", message, details)
