"""Devices and models for the property tests: little room, so that much gives way."""

from typing import Any

from msgspec.structs import replace

from supervisor.core.machine.agenda import Period
from supervisor.core.machine.footprint import Footprint
from supervisor.core.machine.memory import MemoryPolicy
from supervisor.core.machine.rules import Limits
from supervisor.core.machine.values import Backend, Device, Mode, Patience, Target

TOTAL = 100
POLICY = MemoryPolicy(margin_bytes=5, tolerance_bytes=2, stable_samples=2, release_timeout_s=4.0)


def target(model: str, mode: Mode, device: str, profile: str = "default") -> Target:
    return Target(
        model=model,
        mode=mode,
        profile=profile,
        device=device,
        memory=POLICY,
        patience=Patience(restart_on_stall=model in {"chat", "code"}),
        parks=model != "rerank",
    )


def taking(size_bytes: int, device: str = "gpu0") -> Footprint:
    """Return the footprint of what is on one device."""
    return Footprint.of({device: size_bytes})


def used_before(backend: Backend) -> int | None:
    """Return the use of a backend's own device from before it started."""
    baseline = backend.baseline(backend.target.device)
    return baseline.used_bytes if baseline else None


def asked_for(model: str | None) -> Target | None:
    """Return what a request names that names a model, whatever profile of it is live."""
    mode = Mode.EMBEDDING if model in {"embed", "rerank"} else Mode.GENERATION
    return None if model is None else target(model, mode, "alone")


TWIN = replace(target("embed~", Mode.EMBEDDING, "shared", profile="twin"), twin_of="embed")
WITH_TWIN = replace(target("embed", Mode.EMBEDDING, "alone"), spill=TWIN)

TARGETS = (
    target("chat", Mode.GENERATION, "alone"),
    target("chat", Mode.GENERATION, "alone", profile="long"),
    WITH_TWIN,
    target("embed", Mode.EMBEDDING, "shared", profile="small"),
    target("rerank", Mode.EMBEDDING, "shared"),
    target("code", Mode.GENERATION, "shared"),
    replace(
        target("code", Mode.GENERATION, "shared", profile="long"), candidates=("shared", "alone")
    ),
)
DEVICES = (
    Device(name="alone", budget_bytes=TOTAL, is_exclusive=True),
    Device(name="shared", budget_bytes=90),
    Device(name="host", budget_bytes=80, pool="host", is_host_memory=True),
)
LIMITS = Limits(hold_max_requests=4, hold_max_per_model=3, hold_timeout_s=40.0)
ALONE = frozenset({"chat"})
"""Models that run on the exclusive device only."""


def period(starts_at: float, target: Target | None = None, **facts: Any) -> Period:
    """A period of its target's mode; without one, of all."""
    return Period(
        starts_at=starts_at,
        began=starts_at,
        local=f"{starts_at:g} o'clock",
        **{"mode": target.mode if target else None, "target": target} | facts,
    )
