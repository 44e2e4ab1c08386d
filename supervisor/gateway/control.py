"""Switching, unloading and the history of switches over HTTP."""

import asyncio
import time
from typing import Any

import pydantic
from aiohttp import web
from msgspec.structs import replace

from supervisor.arbiter.arbiter import Arbiter, SwitchTicket, as_error
from supervisor.config.configuration import Configuration
from supervisor.config.profile import Profile
from supervisor.config.settings import SupervisorSettings
from supervisor.core.machine.events import DeviceFound
from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.values import Device, DrainPolicy, Mode, Target
from supervisor.errors import RequestRefused
from supervisor.gateway.error_responses import json_response
from supervisor.observability.descriptions import describe_report, describe_running
from supervisor.observability.history import SwitchHistory
from supervisor.telemetry.port import HOST, DeviceInfo
from supervisor.telemetry.telemetry import Telemetry


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
        configuration: Configuration,
        telemetry: Telemetry,
        history: SwitchHistory,
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._telemetry = telemetry
        self._history = history

    async def switch_backend(self, request: web.Request) -> web.Response:
        """Make a model live; 200 with the report, or 202 with `wait=false`."""
        order = await _read_order(request)
        target = self.target_of(order)
        policy = order.drain_policy or self._configuration.settings.switch.drain_policy
        ticket = self._arbiter.request_switch(target, "manual", policy)
        return await _answer(ticket, wait=order.wait)

    async def unload(self, request: web.Request) -> web.Response:
        """Stop every backend; answers when the memory is confirmed free."""
        wait = request.query.get("wait", "true").lower() not in {"false", "0"}
        policy = self._configuration.settings.switch.drain_policy
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

    def target_of(self, order: SwitchOrder) -> Target:
        """Find what an order means. Raises RequestRefused when it cannot mean anything."""
        name = self._configuration.model_name(order.model_name)
        if name is None:
            raise unknown_model(order.model_name, self._configuration)
        entry = self._configuration.catalogue.models[name]
        if order.model_type is not None and order.model_type is not entry.type:
            raise RequestRefused(
                "model_type_mismatch",
                f"'{name}' is a model for {entry.type}, not for {order.model_type}; leave "
                "model_type out, or correct the type in models.yaml",
            )
        return self.target(name, order.profile)

    def target(self, name: str, profile_name: str | None) -> Target:
        """Build the target for a catalogued model. Raises RequestRefused for a wrong profile."""
        entry = self._configuration.catalogue.models[name]
        chosen = profile_name or entry.profile_name
        profile = self._configuration.profiles.get(chosen)
        if profile is None or profile.mode is not entry.type:
            fitting = ", ".join(self._configuration.profiles_for(entry.type))
            raise RequestRefused(
                "unknown_profile",
                f"there is no profile '{chosen}' for {entry.type}; there are: {fitting}",
            )
        target = self._build_target(name, chosen)
        fallback = profile.fallback_profile
        if fallback is None or fallback == chosen:
            return target
        return replace(target, fallback=self._build_target(name, fallback))

    def _build_target(self, name: str, profile_name: str) -> Target:
        resolved = self._configuration.resolve(name, profile_name)
        profile = resolved.profile
        return Target(
            model=name,
            mode=resolved.mode,
            profile=profile_name,
            device=self._device_for(profile),
            start_timeout_s=profile.start_timeout_s,
            drain_timeout_s=profile.drain_timeout_s,
            stop_grace_s=profile.stop_grace_s,
            stall_timeout_s=profile.stall_timeout_s,
            restart_on_stall=profile.restart_on_stall,
            memory=profile.memory.policy(),
        )

    def _device_for(self, profile: Profile) -> str:
        """Name the device, and tell the arbiter of one that it does not know yet.

        Raises RequestRefused where the GPU's driver is here and does not work: the host's memory
        is no place for what was made for a GPU.
        """
        device = self._telemetry.device_for(profile.device)
        problems = self._telemetry.problems
        may_proceed = profile.memory.on_unconfirmed is OnUnconfirmed.PROCEED
        if profile.device == "gpu" and device == HOST and problems and not may_proceed:
            raise RequestRefused("telemetry_lost", "; ".join(problems))
        self._announce(device)
        return device

    def _announce(self, device: str) -> None:
        info = next(info for info in self._telemetry.devices() if info.device == device)
        known = self._arbiter.snapshot.devices.get(device)
        if info.total_bytes and (known is None or not known.budget_bytes):
            found = device_of(info, self._configuration.settings)
            self._arbiter.post(DeviceFound(at=time.monotonic(), device=found))


def device_of(info: DeviceInfo, settings: SupervisorSettings) -> Device:
    """Return what the arbiter needs to know of a device, with the operator's budget for it."""
    given = settings.devices.get(info.device)
    return Device(
        name=info.device,
        budget_bytes=settings.budget_bytes(info.device, info.total_bytes),
        is_exclusive=given.exclusive if given else False,
        pool=HOST if info.shares_host_memory else info.device,
        is_host_memory=info.shares_host_memory or info.device == HOST,
    )


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


def unknown_model(name: str, configuration: Configuration) -> RequestRefused:
    """Say that a name is not in the catalogue, and which names are."""
    known = sorted(configuration.catalogue.models)
    return RequestRefused(
        "model_not_found",
        f"there is no model '{name}'; there are: {', '.join(known) or 'none'}",
        {"known_models": known},
    )
