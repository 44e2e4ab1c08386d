"""Switching, unloading and the history of switches over HTTP."""

import asyncio
from typing import Any

from pydantic import StrictBool

from supervisor.arbiter.arbiter import Arbiter, SwitchTicket, as_error
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.rules import DrainPolicy
from supervisor.core.machine.values import Mode, Target
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.parameters import NoParameters, Parameters
from supervisor.observability.descriptions import (
    describe_report,
    describe_running,
    describe_waiting,
)
from supervisor.observability.history import SwitchHistory


class SwitchParameters(Parameters):
    """The body, or the query, of `POST /switch-backend`."""

    model_name: str | None = None
    model_type: Mode | None = None
    profile: str | None = None
    wait: StrictBool = True
    drain_policy: DrainPolicy | None = None


class UnloadParameters(Parameters):
    """The body, or the query, of `POST /unload`."""

    model_name: str | None = None
    wait: StrictBool = True


class SwitchReportParameters(Parameters):
    """Which switch `GET /switches/{switch_id}` asks for."""

    switch_id: str


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

    async def switch_backend(self, asked: SwitchParameters) -> Answer:
        """Make a model live; 200 with the report, or 202 with `wait=false`."""
        target = self._target_of(asked)
        policy = asked.drain_policy or self._configuration.current.settings.switch.drain_policy
        ticket = self._arbiter.request_switch(target, "manual", policy)
        return await _answer(ticket, wait=asked.wait)

    async def unload(self, asked: UnloadParameters) -> Answer:
        """Stop one model, or all that are not pinned; answers when the memory is confirmed free."""
        policy = self._configuration.current.settings.switch.drain_policy
        name = None if asked.model_name is None else self._targets.named(asked.model_name)
        ticket = self._arbiter.request_switch(None, "manual", policy, unloads=name)
        return await _answer(ticket, wait=asked.wait)

    async def restart(self, _: NoParameters) -> Answer:
        """Bring back what died; answers when it serves again, or with the reason."""
        return await _answer(self._arbiter.request_restart(), wait=True)

    async def switches(self, _: NoParameters) -> Answer:
        """List the switches, the newest first; what waits and what runs before all."""
        return json_answer({"switches": [*self._under_way(), *self._history.newest_first()]})

    async def switch_by_id(self, asked: SwitchReportParameters) -> Answer:
        """Show one switch: waiting, running or ended."""
        switch_id = asked.switch_id
        for described in self._under_way():
            if described["switch_id"] == switch_id:
                return json_answer(described)
        record = self._history.get(switch_id)
        if record is None:
            raise RequestRefused(
                "switch_not_found", f"there is no switch '{switch_id}'; GET /switches lists them"
            )
        return json_answer(record)

    def _under_way(self) -> list[dict[str, Any]]:
        """Describe the switch by hand that waits, and the one that runs, for whose end it waits."""
        snapshot = self._arbiter.snapshot
        pending, running = snapshot.scheduling.pending, snapshot.switch
        waiting = [describe_waiting(pending)] if pending else []
        return [*waiting, *([describe_running(running)] if running else [])]

    def _target_of(self, asked: SwitchParameters) -> Target:
        """Return the target that the parameters mean. Raises RequestRefused where there is none."""
        target = self._targets.target(self._model_of(asked), asked.profile)
        if asked.model_type not in {None, target.mode}:
            raise RequestRefused(
                "model_type_mismatch",
                f"'{target.model}' is a model for {target.mode}, not for {asked.model_type}; leave "
                "model_type out, or correct the type in models.yaml",
            )
        self._targets.require_device(target)
        return target

    def _model_of(self, asked: SwitchParameters) -> str:
        """Return the model that is named, or meant by its type. Raises RequestRefused."""
        if asked.model_name is not None:
            return asked.model_name
        if asked.model_type is None:
            raise RequestRefused(
                "bad_request", "model_name and model_type are missing; give at least one of them"
            )
        return self._targets.default_for(ModelTask(asked.model_type))


async def _answer(ticket: SwitchTicket, *, wait: bool) -> Answer:
    """Answer with the switch's report when it has ended, or at once with where to poll it."""
    switch_id, result = ticket
    if not wait:
        location = f"/switches/{switch_id}"
        return json_answer(
            {"switch_id": switch_id, "location": location},
            status=202,
            headers=((b"Location", location.encode()),),
        )
    report = await asyncio.shield(result)  # the switch goes on when its caller leaves
    if report.refusal is not None:
        error = as_error(report.refusal)
        described = describe_report(report)
        del described["error"]  # what it says stands in the error that it is part of
        error.details["switch"] = described
        raise error
    return json_answer(describe_report(report))
