"""The HTTP application: reserved routes from the table, everything else to the relay."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from secrets import token_hex

import structlog
from aiohttp import web, web_response

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.holder import ConfigurationHolder
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.gateway import relay
from supervisor.gateway.control import Control
from supervisor.gateway.devices import Devices
from supervisor.gateway.early_answer import Forward, answer_early, describe_wait
from supervisor.gateway.error_responses import error_response
from supervisor.gateway.request_reading import (
    acts_on_slot_files,
    is_safe_to_repeat,
    mode_hint,
    model_in_body,
    read_body,
    wants_stream,
)
from supervisor.gateway.routes import RESERVED_ROUTES, Route
from supervisor.gateway.status import Status
from supervisor.observability.request_log import request_log

log = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REQUEST_ID = web.RequestKey("request_id", str)
_EPOCH = web.RequestKey("epoch", int)
_WAITED_S = web.RequestKey("waited_s", float)
_REQUEST_ID_PREFIX = token_hex(4)
_request_numbers = count(1)


class Gateway:
    """Answers every request: by a reserved route, or by the backend that it leases."""

    def __init__(  # noqa: PLR0913 - the parts that the routes and the relay stand on
        self,
        *,
        arbiter: Arbiter,
        configuration: ConfigurationHolder,
        targets: Targets,
        control: Control,
        status: Status,
        devices: Devices,
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets
        self._control = control
        self._status = status
        self._devices = devices

    def application(self) -> web.Application:
        """Build the aiohttp application."""
        application = web.Application(
            client_max_size=self._max_body_bytes, middlewares=[answer_errors]
        )
        for route in RESERVED_ROUTES:
            handler = self._handler(route.handler)
            for method in methods_of(route):
                application.router.add_route(method, route.path, handler)
            if route.method != "*":
                application.router.add_route("*", route.path, refuse_method)
        application.router.add_route("*", "/{tail:.*}", self.relay)
        return application

    def _handler(self, name: str) -> Handler:
        owners = (self, self._control, self._status, self._devices)
        owner = next(o for o in owners if hasattr(o, name))
        handler: Handler = getattr(owner, name)
        return handler

    async def relay(self, request: web.Request) -> web.StreamResponse:
        """Send the request to the backend of the model it names, or to the live one."""
        body = await read_body(request, self._max_body_bytes)
        named = model_in_body(body, request.headers, self._max_body_bytes)
        model = self._known(named) if named is not None else None
        return await self._forward(request, model, request.raw_path, body)

    async def upstream(self, request: web.Request) -> web.StreamResponse:
        """Send the request to the backend of the model in its path, whatever the rest of it."""
        body = await read_body(request, self._max_body_bytes)
        model = self._known(request.match_info["model"])
        _, _, _, rest = request.raw_path.split("/", 3)
        return await self._forward(request, model, f"/{rest}", body)

    async def _forward(
        self, request: web.Request, model: str | None, path: str, body: bytes
    ) -> web.StreamResponse:
        request_id = given_request_id(request) or new_request_id()
        request[_REQUEST_ID] = request_id
        after_s = self._configuration.current.settings.queue.early_answer_after_s
        if after_s is None or not wants_stream(request, path, body, self._max_body_bytes):
            return await self._serve(request, model, path, body, relay.forward)
        return await answer_early(
            request,
            partial(self._serve, request, model, path, body),
            request_id=request_id,
            after_s=after_s,
            what_is_awaited=lambda: describe_wait(self._arbiter.snapshot, model),
        )

    async def _serve(
        self, request: web.Request, model: str | None, path: str, body: bytes, forward: Forward
    ) -> web.StreamResponse:
        """Lease a backend and forward to it, once more where it died before its first byte."""
        request_id = request[_REQUEST_ID]
        repeats_left = MAX_REPEATS if self._may_repeat(request.method, path) else 0
        hint = mode_hint(request.path)
        target = self._targets.target(model) if model is not None else None
        while True:
            async with self._arbiter.lease(target, hint, len(body)) as lease:
                if lease.backend.launch.prompt_files is not None and acts_on_slot_files(path):
                    raise _slot_files_reserved()
                request[_EPOCH] = lease.backend.epoch
                request[_WAITED_S] = request.get(_WAITED_S, 0.0) + lease.waited_s
                try:
                    return await forward(request, lease.backend, path, body, request_id)
                except RequestRefused:  # the client has not got a byte yet
                    if not repeats_left or not await lease.backend.is_found_dead():
                        raise
            repeats_left -= 1
            log.info("request.repeated", request_id=request_id, epoch=lease.backend.epoch)

    def _may_repeat(self, method: str, path: str) -> bool:
        """Whether a request whose server died may be served once more by its successor."""
        may_generate = self._configuration.current.settings.queue.retry_generation
        return is_safe_to_repeat(method, path) or may_generate

    def _known(self, name: str) -> str:
        return self._configuration.current.named(name)

    @property
    def _max_body_bytes(self) -> int:
        return self._configuration.current.settings.server.max_body_bytes


MAX_REPEATS = 3
"""Servers that one request may see die before its client is told."""

LAST_ANSWERS_S = 2.0
"""Seconds that open handlers get once every backend is stopped; what is left cannot be answered."""


def _slot_files_reserved() -> RequestRefused:
    return RequestRefused(
        "slot_files_reserved",
        "this model's prompts are kept over switches by the controller (keep_prompt_cache), and "
        "its slots are saved and restored by nobody else; set keep_prompt_cache: false to do it "
        "yourself",
    )


def make_runner(application: web.Application) -> web.AppRunner:
    """Return what serves the application: clients that leave cancel, bodies stay as they came."""
    # aiohttp's names its own version and Python's, also in what it answers before any handler.
    web_response.SERVER_SOFTWARE = "llama-supervisor"  # type: ignore[attr-defined]
    return web.AppRunner(
        application,
        handler_cancellation=True,
        auto_decompress=False,
        access_log=None,
        shutdown_timeout=LAST_ANSWERS_S,
    )


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into answers, and write the closing line of each request."""
    started_at = time.monotonic()
    status = 499  # the client left; nginx's number, for want of a standard one
    try:
        try:
            response = await handler(request)
        except RequestRefused as error:
            response = error_response(error)
        except web.HTTPRequestEntityTooLarge:
            response = error_response(
                RequestRefused("body_too_large", "the body is larger than server.max_body_bytes")
            )
        except ConnectionResetError as error:
            # The client left in the middle of the answer, and the cancellation is on its way.
            raise asyncio.CancelledError from error
        except Exception:
            log.exception("request.failed", path=request.path)
            response = error_response(
                RequestRefused("internal_error", "the controller failed; its log tells why")
            )
        status = response.status
        if not response.prepared and _REQUEST_ID in request:
            response.headers[relay.REQUEST_ID] = request[_REQUEST_ID]
        return response
    finally:
        request_log.done(
            request.method,
            request.path,
            status,
            request_id=request.get(_REQUEST_ID),
            epoch=request.get(_EPOCH),
            waited_s=request.get(_WAITED_S, 0.0),
            took_s=time.monotonic() - started_at,
            client=request.remote,
        )


async def refuse_method(request: web.Request) -> web.Response:
    """Answer a reserved path that was called with another method."""
    resource = request.match_info.route.resource
    path = resource.canonical if resource is not None else request.path
    allowed = [m for r in RESERVED_ROUTES if r.path == path for m in methods_of(r)]
    error = RequestRefused("method_not_allowed", f"{path} takes {' or '.join(allowed)}")
    response = error_response(error)
    response.headers["Allow"] = ", ".join(allowed)
    return response


def methods_of(route: Route) -> tuple[str, ...]:
    """Return the methods that a route takes: HEAD where there is a GET (RFC 9110, 9.1)."""
    return ("GET", "HEAD") if route.method == "GET" else (route.method,)


def given_request_id(request: web.Request) -> str | None:
    """Return the id that the client gave, if it can be sent on as it is."""
    given = request.headers.get(relay.REQUEST_ID, "")
    return given if given.isprintable() and given.isascii() else None


def new_request_id() -> str:
    """Make an id that is unique over this run and unlikely to repeat over others."""
    return f"{_REQUEST_ID_PREFIX}-{next(_request_numbers)}"
