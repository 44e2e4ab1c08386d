"""The table of reserved routes: everything else is relayed to a backend.

The doors, the reading of parameters and the generated reference all work from it.
"""

import re
from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from supervisor.gateway.control import (
    Control,
    SwitchParameters,
    SwitchReportParameters,
    UnloadParameters,
)
from supervisor.gateway.devices import Devices, HistoryParameters
from supervisor.gateway.document_routes import DOCUMENT_ROUTES
from supervisor.gateway.forms.tei import tei_error
from supervisor.gateway.forms.tei_info import InfoParameters, TeiInfo
from supervisor.gateway.job_routes import JOB_ROUTES
from supervisor.gateway.parameters import AnyParameters
from supervisor.gateway.route import Route, Scope
from supervisor.gateway.status import ModelParameters, Status
from supervisor.gateway.vector_routes import VECTOR_ROUTES

RESERVED_ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/health",
        purpose="Liveness: the controller's event loop turns. Says nothing about models.",
        owner=Status,
        handler=Status.health,
        parameters=AnyParameters,
        scope=Scope.PROBE,
    ),
    Route(
        method="GET",
        path="/management/health",
        purpose="Status (`healthy`, `degraded`, or 503 with `unhealthy`: the last switch failed "
        "and nothing serves), `server_mode`, `loaded_model`, and memory and state of each device.",
        owner=Status,
        handler=Status.management_health,
        parameters=AnyParameters,
        answers=(200, 503),
    ),
    Route(
        method="GET",
        path="/api/management/health",
        purpose="The same, for gateways that prefix `/api`.",
        owner=Status,
        handler=Status.management_health,
        parameters=AnyParameters,
        answers=(200, 503),
    ),
    Route(
        method="GET",
        path="/ready",
        purpose="Readiness: 200 from the first model that serves (at once, where no default is "
        "named) until the shutdown, also while a switch runs; 503 before and after.",
        owner=Status,
        handler=Status.ready,
        parameters=AnyParameters,
        answers=(200, 503),
        scope=Scope.PROBE,
    ),
    Route(
        method="GET",
        path="/status",
        purpose="The full snapshot: backends, switch, requests, last exit, impairments, memory.",
        owner=Status,
        handler=Status.status,
    ),
    Route(
        method="GET",
        path="/v1/models",
        purpose="The catalogue with type and state, in OpenAI's list form.",
        owner=Status,
        handler=Status.models,
        parameters=AnyParameters,
        scope=Scope.INFERENCE,
    ),
    Route(
        method="GET",
        path="/models",
        purpose="The same.",
        owner=Status,
        handler=Status.models,
        parameters=AnyParameters,
        scope=Scope.INFERENCE,
    ),
    Route(
        method="GET",
        path="/v1/models/{model:path}",
        purpose="One model of the catalogue, by name or alias.",
        owner=Status,
        handler=Status.model,
        parameters=ModelParameters,
        refusals=("model_not_found",),
        scope=Scope.INFERENCE,
    ),
    Route(
        method="GET",
        path="/info",
        purpose="What a model for embeddings is and takes, in text-embeddings-inference's form, as "
        "its errors are.",
        owner=TeiInfo,
        handler=TeiInfo.info,
        parameters=InfoParameters,
        refusals=("model_not_found", "model_type_mismatch", "target_cannot_start"),
        error_answer=tei_error,
        scope=Scope.INFERENCE,
    ),
    Route(
        method="POST",
        path="/switch-backend",
        purpose="Make a model live: `model_name`, or `model_type` for its default model; optional "
        "`profile`, `wait`, `drain_policy`.",
        owner=Control,
        handler=Control.switch_backend,
        parameters=SwitchParameters,
        answers=(200, 202),
        refusals=(
            "model_not_named",
            "model_not_found",
            "model_type_mismatch",
            "unknown_profile",
            "profile_conflict",
            "target_cannot_start",
            "target_does_not_fit",
            "switch_in_progress",
            "drain_refused",
            "switch_failed",
        ),
        scope=Scope.CONTROL,
    ),
    Route(
        method="POST",
        path="/unload",
        purpose="Stop a model (`model_name`), or all that are not pinned, and confirm that the "
        "memory is free.",
        owner=Control,
        handler=Control.unload,
        parameters=UnloadParameters,
        answers=(200, 202),
        refusals=(
            "model_not_found",
            "switch_in_progress",
            "memory_not_released",
            "backend_not_reaped",
        ),
        scope=Scope.CONTROL,
    ),
    Route(
        method="POST",
        path="/backend/restart",
        purpose="Bring back a model that died, even if its breaker is open.",
        owner=Control,
        handler=Control.restart,
        refusals=("nothing_is_down", "switch_failed"),
        scope=Scope.CONTROL,
    ),
    Route(
        method="GET",
        path="/switches",
        purpose="The last switches that changed something, newest first.",
        owner=Control,
        handler=Control.switches,
    ),
    Route(
        method="GET",
        path="/switches/{switch_id}",
        purpose="One switch, running or ended; for a while also one that changed nothing.",
        owner=Control,
        handler=Control.switch_by_id,
        parameters=SwitchReportParameters,
        refusals=("switch_not_found",),
    ),
    Route(
        method="GET",
        path="/gpu",
        purpose="Each device: memory (ours, foreign, unattributed), load, processes, budget.",
        owner=Devices,
        handler=Devices.list_devices,
    ),
    Route(
        method="GET",
        path="/gpu/{device}/history",
        purpose="A device's last hour, a point a second: `since` seconds of it.",
        owner=Devices,
        handler=Devices.device_history,
        parameters=HistoryParameters,
        refusals=("device_not_found",),
    ),
    *JOB_ROUTES,
    Route(
        method="*",
        path="/upstream/{model}/{target:path}",
        purpose="The raw server of a live model, whatever the path.",
        scope=Scope.INFERENCE,
    ),
    *DOCUMENT_ROUTES,
    *VECTOR_ROUTES,
)
"""Ours. A path that stands here never reaches a backend, whatever the method."""


NO_VALUES: Mapping[str, str] = {}
"""Those of a path without variables."""


def find_routes(request_target: str) -> tuple[Sequence[Route], Mapping[str, str]]:
    """Return the reserved routes of a request target's path, with the path's values, decoded.

    They differ by their methods. None for what is relayed.
    """
    raw_path = request_target.partition("?")[0]
    path = unquote(raw_path) if "%" in raw_path else raw_path
    routes = _BY_PATH.get(path)
    if routes is not None:
        return routes, NO_VALUES
    for candidates, beginning, pattern in _PATTERNS:
        found = pattern.fullmatch(raw_path) if raw_path.startswith(beginning) else None
        if found is not None:
            return candidates, {name: unquote(value) for name, value in found.groupdict().items()}
    return (), NO_VALUES


def _pattern(path: str) -> re.Pattern[str]:
    whole = re.sub(r"\{(\w+):path\}", r"(?P<\1>.*)", path)
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", whole), re.DOTALL)


def _grouped() -> Mapping[str, Sequence[Route]]:
    groups: dict[str, list[Route]] = {}
    for route in RESERVED_ROUTES:
        groups.setdefault(route.path, []).append(route)
    return groups


_BY_PATH = _grouped()
_PATTERNS = tuple(
    (routes, path.partition("{")[0], _pattern(path))
    for path, routes in _BY_PATH.items()
    if "{" in path
)
