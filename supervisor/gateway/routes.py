"""The table of reserved routes: everything else goes to the live backend unchanged."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A path of ours, with the method it takes and what it is for (shown in the docs)."""

    method: str
    path: str
    handler: str
    purpose: str


RESERVED_ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/health",
        handler="health",
        purpose="Liveness: the controller's event loop turns. Says nothing of models.",
    ),
    Route(
        method="GET",
        path="/management/health",
        handler="management_health",
        purpose="Status, `server_mode`, `loaded_model`, and memory and state of each device.",
    ),
    Route(
        method="GET",
        path="/api/management/health",
        handler="management_health",
        purpose="The same, for gateways that prefix `/api`.",
    ),
    Route(
        method="GET",
        path="/ready",
        handler="ready",
        purpose="Readiness: 200 also while a switch runs; 503 only while shutting down.",
    ),
    Route(
        method="GET",
        path="/status",
        handler="status",
        purpose="The full snapshot: backends, switch, requests, last exit, memory, versions.",
    ),
    Route(
        method="GET",
        path="/v1/models",
        handler="models",
        purpose="The catalogue with type and state, in OpenAI's list form.",
    ),
    Route(
        method="POST",
        path="/switch-backend",
        handler="switch_backend",
        purpose="Make a model live: `model_name`, optional `model_type`, `profile`, `wait`.",
    ),
    Route(
        method="POST",
        path="/unload",
        handler="unload",
        purpose="Stop every backend and confirm that the device is free.",
    ),
    Route(
        method="POST",
        path="/backend/restart",
        handler="restart",
        purpose="Bring back a model that died, also when its breaker is open.",
    ),
    Route(
        method="GET",
        path="/switches",
        handler="switches",
        purpose="The last switches, newest first.",
    ),
    Route(
        method="GET",
        path="/switches/{switch_id}",
        handler="switch_by_id",
        purpose="One switch, running or ended.",
    ),
    Route(
        method="GET",
        path="/gpu",
        handler="list_devices",
        purpose="Each device: memory (ours, foreign, unattributed), load, processes, budget.",
    ),
    Route(
        method="GET",
        path="/gpu/{device}/history",
        handler="device_history",
        purpose="A device's last hour, a point a second: `since` seconds of it.",
    ),
    Route(
        method="*",
        path="/upstream/{model}/{tail:.*}",
        handler="upstream",
        purpose="The raw server of a live model, whatever the path.",
    ),
)
"""Ours. A path that stands here never reaches a backend, whatever the method."""
