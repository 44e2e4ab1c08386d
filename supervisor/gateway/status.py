"""Health, readiness, the catalogue and the full snapshot over HTTP."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supervisor import __version__
from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.snapshot import BackendExit, Snapshot
from supervisor.core.machine.values import Backend, Recovery
from supervisor.embedding.batching.batcher import Batcher
from supervisor.embedding.twins import Twins
from supervisor.engine.kinds.engines import Engines
from supervisor.errors import SupervisorError, TelemetryError
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.devices import backends_on
from supervisor.gateway.parameters import AnyParameters, NoParameters, Parameters
from supervisor.observability.descriptions import describe_memory, describe_running
from supervisor.observability.impairments import Impairments
from supervisor.observability.readiness import Readiness
from supervisor.observability.residents_description import describe_idle_model, describe_stay
from supervisor.observability.schedule_description import describe_schedule
from supervisor.observability.scheduling_description import describe_scheduling
from supervisor.telemetry.port import TelemetryState
from supervisor.telemetry.telemetry import Telemetry


class ModelParameters(Parameters, extra="ignore"):
    """Which model `GET /v1/models/{model}` asks for, by name or alias; as in `AnyParameters`."""

    model: str


class Status:
    """Handlers of the routes that only tell."""

    def __init__(  # noqa: PLR0913 - what there is to show
        self,
        *,
        arbiter: Arbiter,
        configuration: ConfigurationHolder,
        telemetry: Telemetry,
        engines: Engines,
        warnings: tuple[str, ...] = (),
        impairments: Impairments,
        readiness: Readiness,
        batcher: Batcher,
        twins: Twins,
        describe_jobs: Callable[[], Awaitable[dict[str, Any]]],
    ) -> None:
        self._arbiter = arbiter
        self._configuration = configuration
        self._telemetry = telemetry
        self._engines = engines
        self._warnings = warnings
        self._impairments = impairments
        self._readiness = readiness
        self._batcher = batcher
        self._twins = twins
        self._describe_jobs = describe_jobs
        self._clock = time.monotonic
        self._started_at = time.monotonic()

    async def health(self, _: AnyParameters) -> Answer:
        """Answer as long as the event loop turns."""
        return json_answer({"status": "healthy"})

    async def ready(self, _: AnyParameters) -> Answer:
        """Answer 200 from the first model on, also while a switch runs; 503 at start and end."""
        state = self._readiness.state(self._arbiter.snapshot)
        return json_answer({"status": state}, status=200 if state == "ready" else 503)

    async def management_health(self, _: AnyParameters) -> Answer:
        """Show health, mode, model and the devices' memory; 503 when unhealthy."""
        snapshot = self._arbiter.snapshot
        live = snapshot.live_models()
        health = self._readiness.health(snapshot, is_impaired=bool(self._impairments.describe()))
        return json_answer(
            {
                "status": health,
                "server_mode": snapshot.server_mode(),
                "loaded_model": live[0] if live else None,
                "gpu_memory_usage": await self._memory(),
                "impairments": self._impairments.describe(),
                **self._telemetry_health(),
            },
            status=503 if health == "unhealthy" else 200,
        )

    async def models(self, _: AnyParameters) -> Answer:
        """List the catalogue."""
        names = self._configuration.current.catalogue.models
        return json_answer({"object": "list", "data": [self._describe_model(n) for n in names]})

    async def model(self, asked: ModelParameters) -> Answer:
        """Show one model of the catalogue. Raises RequestRefused for an unknown one."""
        return json_answer(self._describe_model(self._configuration.current.named(asked.model)))

    def _describe_model(self, name: str) -> dict[str, Any]:
        configuration = self._configuration.current
        entry = configuration.catalogue.models[name]
        return {
            "id": name,
            "object": "model",
            "created": _written_at(configuration.models_dir / entry.path),
            "owned_by": "llama-supervisor",
            "type": entry.type,
            "profile": entry.profile_name,
            "aliases": entry.aliases,
            "max_input_tokens": entry.max_input_tokens,
            "state": model_state(self._arbiter.snapshot, name),
        }

    async def status(self, _: NoParameters) -> Answer:
        """Show the whole snapshot."""
        snapshot = self._arbiter.snapshot
        live, failure = snapshot.live_models(), snapshot.endings.failure
        return json_answer(
            {
                "state": overall_state(snapshot),
                "server_mode": snapshot.server_mode(),
                "loaded_model": live[0] if live else None,
                "backends": [
                    describe_backend(b, self._clock()) | describe_stay(snapshot, b, self._clock())
                    for b in snapshot.backends
                ],
                "switch": describe_running(snapshot.switch) if snapshot.switch else None,
                "requests": {
                    "in_flight": sum(b.in_flight for b in snapshot.backends),
                    "waiting": snapshot.requests.waiting,
                },
                "scheduling": describe_scheduling(snapshot, self._clock()),
                "idle_model": describe_idle_model(snapshot, self._clock()),
                "schedule": describe_schedule(snapshot.agenda, self._clock()),
                "embedding": self._batcher.describe(),
                "twins": self._twins.describe(snapshot),
                "jobs": await self._describe_jobs(),
                "last_exit": describe_exit(snapshot.endings.exit, self._clock()),
                "recoveries": [describe_recovery(r) for r in snapshot.recoveries],
                "last_failure": failure.message if failure else None,
                "impairments": self._impairments.describe(),
                "memory": await self._memory(),
                **self._telemetry_health(),
                "warnings": self._warnings,
                "engine": await asyncio.to_thread(self._engine),
                "version": __version__,
                "uptime_s": round(self._clock() - self._started_at, 1),
            }
        )

    async def _memory(self) -> list[dict[str, Any]]:
        """Read every device; one that cannot be read says so in its place."""
        described = []
        for info in self._telemetry.devices():
            backends = backends_on(info.device, self._arbiter.snapshot)
            pids = [backend.pid for backend in backends if backend.pid is not None]
            try:
                memory = describe_memory(await self._telemetry.sample(info.device, pids)) or {}
                state = self._telemetry.health(info.device).state
            except TelemetryError as error:
                memory = {"device": info.device, "error": str(error)}
                state = TelemetryState.LOST
            described.append({"name": info.name, "state": state.value, **memory})
        return described

    def _telemetry_health(self) -> dict[str, Any]:
        """Say whether everything that is here can be read; ask after what has just been read."""
        problems = self._telemetry.problems
        state = TelemetryState.LOST if problems else TelemetryState.OK
        return {"telemetry_state": state.value, "telemetry_problems": problems}

    def _engine(self) -> dict[str, Any]:
        """Tell what `auto` means, and every engine found. Blocks when they have to be asked."""
        try:
            chosen = asdict(self._engines.choose("auto").identity)
        except SupervisorError as error:
            chosen = {"error": str(error)}
        return {**chosen, "found": [asdict(each) for each in self._engines.identities()]}


def _written_at(path: Path) -> int:
    """Return when a model's file was written, in Unix seconds; 0 for one that is not here."""
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def overall_state(snapshot: Snapshot) -> str:
    """Return one word: shutting_down, switching, ready, failed (and being retried), or idle."""
    if snapshot.is_closing:
        return "shutting_down"
    if snapshot.switch is not None:
        return "switching"
    if snapshot.ready_backends():
        return "ready"
    return "failed" if snapshot.recoveries else "idle"


def model_state(snapshot: Snapshot, name: str) -> str:
    """Return where a catalogued model stands: `live`, a backend's state, or `available`."""
    for backend in snapshot.backends:
        if backend.target.model == name:
            return "live" if backend in snapshot.ready_backends() else backend.state.value
    return "available"


def describe_backend(backend: Backend, now: float) -> dict[str, Any]:
    """Write a backend as JSON."""
    return {
        "epoch": backend.epoch,
        "model": backend.target.catalogue_name,
        "twin": backend.target.is_twin,
        "mode": backend.target.mode,
        "profile": backend.target.profile,
        "device": backend.target.device,
        "devices": backend.target.devices,
        "state": backend.state.value,
        "pid": backend.pid,
        "address": backend.address,
        "in_flight": backend.in_flight,
        "retiring": backend.departure.is_retiring,
        "stalled_s": backend.stalled_s,
        "need_bytes": backend.footprint.total_bytes,
        "parked": describe_parked(backend, now),
        "age_s": round(now - backend.started_at, 1),
    }


def describe_parked(backend: Backend, now: float) -> dict[str, Any] | None:
    """Write what a parked server keeps, and since when, as JSON; None for one that is not."""
    parked = backend.parked
    if parked is None:
        return None
    kept_bytes = backend.footprint.total_bytes
    return {
        "since_s": round(now - parked.since, 1),
        "host_bytes": parked.host_bytes,
        "device_bytes": kept_bytes - parked.host_bytes,
    }


def describe_recovery(recovery: Recovery) -> dict[str, Any]:
    """Write a model that is down, and what is done about it, as JSON."""
    return {
        "model": recovery.target.model,
        "attempt": recovery.attempt,
        "breaker_open": recovery.is_open,
        "reason": recovery.reason,
    }


def describe_exit(record: BackendExit | None, now: float) -> dict[str, Any] | None:
    """Write how the last backend ended as JSON."""
    if record is None:
        return None
    return {
        "epoch": record.epoch,
        "model": record.model,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "was_wanted": record.was_wanted,
        "ago_s": round(now - record.at, 1),
        "last_lines": record.last_lines[-30:],
    }
