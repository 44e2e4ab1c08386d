"""The estimated need of each model against what its server really took on the device."""

from collections.abc import Mapping
from typing import Any

from lab.gpu.check import Check
from lab.gpu.configuration import GENERATION, estimate, log_of, look_at
from lab.gpu.log_reading import device_buffers, learned_peaks
from lab.harness.setting import Setting
from supervisor.core.byte_size import MIB, format_bytes


def compare_needs(
    check: Check, setting: Setting, plateaus: Mapping[str, int], idle_bytes: int
) -> dict[str, Any]:
    """Return, by model, each part as estimated and as told by the server, in bytes.

    `plateaus` are the device's use while a model served. What is used beyond the server's own
    buffers is the driver's context.
    """
    learned = learned_peaks(log_of(setting))
    return {
        model: {
            **compare_need(
                check, setting, model, talkative_profile(model), used_bytes - idle_bytes
            ),
            "learned_bytes": learned.get(model),
        }
        for model, used_bytes in plateaus.items()
    }


def talkative_profile(model: str) -> str:
    """Name the profile with which a model's server tells the size of each buffer."""
    return f"{'generation' if model == GENERATION else 'embedding'}-talkative"


def compare_need(
    check: Check, setting: Setting, model: str, profile: str, used_bytes: int
) -> dict[str, Any]:
    """Return each part as estimated and as the model's last server told it, in bytes.

    `used_bytes` is what the device had in use beyond that of the idle device.
    """
    need = estimate(check, look_at(check, setting, model, profile))
    told = {
        kind: round(size_mib * MIB)
        for kind, size_mib in device_buffers(log_of(setting), model).items()
    }
    # What llama-server calls output stands in host memory.
    buffers_bytes = sum(size for kind, size in told.items() if kind != "output")
    parts = {
        "weights": (need.memory.weights_bytes, told.get("model", 0)),
        "kv": (need.memory.kv_bytes, told.get("KV", 0)),
        "compute": (need.memory.compute_bytes, told.get("compute", 0)),
        "context": (need.context_bytes, used_bytes - buffers_bytes),
        "total": (need.total_bytes, used_bytes),
    }
    sentence = "; ".join(
        f"{part} {format_bytes(estimated)} estimated, {format_bytes(used)} used"
        for part, (estimated, used) in parts.items()
    )
    return {
        "parts": {
            part: {"estimated_bytes": estimated, "used_bytes": used}
            for part, (estimated, used) in parts.items()
        },
        "sentence": f"{model}: {sentence}.",
    }
