"""What a route of ours is: a method and a path, who answers it, what it takes and gives back."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, PiecewiseAnswer
from supervisor.gateway.error_responses import error_answer
from supervisor.gateway.parameters import NoParameters


class Scope(StrEnum):
    """Whom a route is for. Nothing asks for it as long as there are no keys."""

    PROBE = "probe"
    INFERENCE = "inference"
    READING = "reading"
    CONTROL = "control"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path of ours: who answers it, what it takes, and what it gives back.

    `handler` is a method of `owner`, called with the `parameters` as read; None: it is relayed. A
    path's last variable may be `{…:path}`, which takes slashes, too. `upload_limit` names the
    setting that bounds bodies that go to disk as they come (`uploads.py`); empty: all are JSON.
    `answers` are the statuses of success, `refusals` the codes of errors beyond those that every
    route may answer, and `error_answer` says how errors look to its callers.
    """

    method: str
    path: str
    purpose: str
    owner: type = object
    handler: Callable[[Any, Any], Awaitable[Answer | PiecewiseAnswer]] | None = None
    parameters: type[BaseModel] = NoParameters
    upload_limit: str = ""
    answers: tuple[int, ...] = (200,)
    refusals: tuple[str, ...] = ()
    error_answer: Callable[[RequestRefused], Answer] = error_answer
    scope: Scope = Scope.READING

    @property
    def takes_body(self) -> bool:
        """Whether a body is read."""
        return self.method == "POST"

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it takes: HEAD where there is a GET (RFC 9110, 9.1)."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)
