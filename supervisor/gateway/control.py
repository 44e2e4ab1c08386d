"""Switching, unloading and the history of switches over HTTP."""

import asyncio
from typing import Any

import pydantic
from aiohttp import web

from supervisor.arbiter.arbiter import Arbiter, SwitchTicket, as_error
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import DrainPolicy, Mode, Target
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.gateway.error_responses import json_response
from supervisor.observability.descriptions import describe_report, describe_running
from supervisor.observability.history import SwitchHistory


class SwitchOrder(pydantic.BaseModel):
    """The body, or the query, of `POST /switch-backend`."""

    model_config = pydantic.ConfigDict(extra="forbid")

    model_name: str
    model_type: Mode | None = None
    profile: str | None = None
    wait: bool = True
    drain_policy: DrainPolicy | None = None


class Control:
    """Handlers of the control routes."""

    def __init__(
        self,
        *,
        arbiter: Arbiter,
        configuration: ConfigurationHolder,
        targets: Targets,
        history: SwitchHistory,
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._targets = targets
        self._history = history

    async def switch_backend(self, request: web.Request) -> web.Response:
        """Make a model live; 200 with the report, or 202 with `wait=false`."""
        order = await _read_order(request)
        target = self._target_of(order)
        policy = order.drain_policy or self._configuration.current.settings.switch.drain_policy
        ticket = self._arbiter.request_switch(target, "manual", policy)
        return await _answer(ticket, wait=order.wait)

    async def unload(self, request: web.Request) -> web.Response:
        """Stop every backend; answers when the memory is confirmed free."""
        wait = request.query.get("wait", "true").lower() not in {"false", "0"}
        policy = self._configuration.current.settings.switch.drain_policy
        return await _answer(self._arbiter.request_switch(None, "manual", policy), wait=wait)

    async def restart(self, request: web.Request) -> web.Response:
        """Bring back what died; answers when it serves again, or with the reason."""
        _ = request
        return await _answer(self._arbiter.request_restart(), wait=True)

    async def switches(self, request: web.Request) -> web.Response:
        """List the switches, the newest first, the running one before all."""
        _ = request
        running = self._arbiter.snapshot.switch
        now = [describe_running(running)] if running else []
        return json_response({"switches": [*now, *self._history.newest_first()]})

    async def switch_by_id(self, request: web.Request) -> web.Response:
        """Show one switch, running or ended."""
        switch_id = request.match_info["switch_id"]
        running = self._arbiter.snapshot.switch
        if running is not None and running.switch_id == switch_id:
            return json_response(describe_running(running))
        record = self._history.get(switch_id)
        if record is None:
            raise RequestRefused(
                "switch_not_found", f"there is no switch '{switch_id}'; GET /switches lists them"
            )
        return json_response(record)

    def _target_of(self, order: SwitchOrder) -> Target:
        """Find what an order means. Raises RequestRefused when it cannot mean anything."""
        target = self._targets.target(order.model_name, order.profile)
        if order.model_type not in {None, target.mode}:
            raise RequestRefused(
                "model_type_mismatch",
                f"'{target.model}' is a model for {target.mode}, not for {order.model_type}; leave "
                "model_type out, or correct the type in models.yaml",
            )
        self._targets.require_device(target)
        return target


async def _answer(ticket: SwitchTicket, *, wait: bool) -> web.Response:
    """Answer with the switch's report when it has ended, or at once with where to poll it."""
    switch_id, result = ticket
    if not wait:
        location = f"/switches/{switch_id}"
        return json_response(
            {"switch_id": switch_id, "location": location},
            status=202,
            headers={"Location": location},
        )
    report = await asyncio.shield(result)  # the switch goes on when its caller leaves
    if report.refusal is not None:
        error = as_error(report.refusal)
        error.details["switch"] = describe_report(report)
        raise error
    return json_response(describe_report(report))


async def _read_order(request: web.Request) -> SwitchOrder:
    """Read the order from the JSON body, or from the query where there is no body."""
    fields: dict[str, Any] = dict(request.query)
    body = await request.read()
    if body:
        try:
            content = pydantic.TypeAdapter(dict[str, Any]).validate_json(body)
        except pydantic.ValidationError as error:
            raise RequestRefused(
                "bad_request", 'the body must be a JSON object such as {"model_name": "…"}'
            ) from error
        fields |= content
    try:
        return SwitchOrder.model_validate(fields)
    except pydantic.ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors()
        )
        raise RequestRefused("bad_request", problems) from error
