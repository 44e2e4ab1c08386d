"""A target that cannot fit is refused, with the arithmetic, and what serves goes on."""

import yaml

from lab.gpu.check import Check, PartResult
from lab.gpu.configuration import (
    EMBEDDING,
    GENERATION,
    estimate,
    log_of,
    look_at,
    setting_for,
    variants,
    visit,
)
from lab.gpu.log_reading import marks
from lab.harness.command import LabError
from lab.harness.servers import Controller
from lab.harness.setting import Setting

NAME = "fit"
LIMIT_S = 60.0
TOO_LARGE = "generation-too-large"
_MAX_DOUBLINGS = 40


def measure(check: Check) -> PartResult:
    """Ask for a context that the device cannot hold, while another model serves."""
    setting = setting_for(check, variants("plain", {}))
    ctx_size = _write_too_large(check, setting)
    order = {"model_name": GENERATION, "profile": TOO_LARGE}
    with Controller(setting) as controller:
        controller.load(EMBEDDING)
        pid = controller.child_pid()
        status, answer = controller.ask("POST", "/switch-backend", order)
        visit(controller, EMBEDDING)
        goes_on = controller.child_pid() == pid
    error = answer.get("error", {})
    figures = {
        "ctx_size": ctx_size,
        "status": status,
        "code": error.get("code"),
        "message": error.get("message"),
        "details": {key: error.get(key) for key in ("need_bytes", "available_bytes", "fits_with")},
        "live_model_went_on": goes_on,
    }
    went_on = "went on" if goes_on else "did NOT go on"
    return PartResult(
        figures=figures,
        sentences=[
            f"Asked for {ctx_size} tokens a slot: {status} {figures['code']}: {figures['message']}",
            f"What was live {went_on}.",
        ],
        marks=marks(log_of(setting)),
    )


def _write_too_large(check: Check, setting: Setting) -> int:
    """Write the profile: the smallest context, of doubled ones, that needs more than there is."""
    candidate = look_at(check, setting, GENERATION)
    ctx_size = 4096
    for _ in range(_MAX_DOUBLINGS):
        if estimate(check, candidate, ctx_size).total_bytes > check.watch.info.total_bytes:
            break
        ctx_size *= 2
    else:
        raise LabError("no context is too large for this device")
    fields = {"extends": "generation", "mode": "generation", "ctx_size": ctx_size}
    path = setting.profiles / f"{TOO_LARGE}.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return ctx_size
