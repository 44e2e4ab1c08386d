"""Two devices and some models for the property tests: little room, so that much gives way."""

from supervisor.core.machine.memory import MemoryPolicy
from supervisor.core.machine.values import Device, Limits, Mode, Target

TOTAL = 100
POLICY = MemoryPolicy(margin_bytes=5, tolerance_bytes=2, stable_samples=2, release_timeout_s=4.0)


def target(model: str, mode: Mode, device: str, profile: str = "default") -> Target:
    return Target(
        model=model,
        mode=mode,
        profile=profile,
        device=device,
        memory=POLICY,
        restart_on_stall=model in {"chat", "code"},
    )


def asked_for(model: str | None) -> Target | None:
    """Return what a request names that names a model, whatever profile of it is live."""
    return None if model is None else target(model, Mode.GENERATION, "alone")


TARGETS = (
    target("chat", Mode.GENERATION, "alone"),
    target("chat", Mode.GENERATION, "alone", profile="long"),
    target("embed", Mode.EMBEDDING, "alone"),
    target("embed", Mode.EMBEDDING, "shared", profile="small"),
    target("rerank", Mode.EMBEDDING, "shared"),
    target("code", Mode.GENERATION, "shared"),
    target("code", Mode.GENERATION, "shared", profile="long"),
)
DEVICES = (
    Device(name="alone", budget_bytes=TOTAL, is_exclusive=True),
    Device(name="shared", budget_bytes=90),
)
LIMITS = Limits(hold_max_requests=4, hold_max_bytes=60, hold_timeout_s=40.0)
