"""The estimated need against what a server took, where parts of its model stay on the host."""

import time
from collections.abc import Mapping
from typing import Any

from lab.gpu.check import Check, PartResult
from lab.gpu.configuration import EXPERTS, TALKATIVE, log_of, setting_for, visit
from lab.gpu.log_reading import marks
from lab.gpu.needs import compare_need
from lab.gpu.switches import SETTLE_S
from lab.harness.servers import Controller
from supervisor.engine.models.model_file import inspect_model_file

NAME = "offload"
LIMIT_S = 90.0


def measure(check: Check) -> PartResult:
    """Serve a mixture of experts, all of it on the device, and with parts of it on the host."""
    idle_bytes = check.watch.sample().used_bytes
    layers = inspect_model_file(check.models.experts).header.count_parameter("block_count")
    profiles = offload_profiles(layers or 1)
    setting = setting_for(check, profiles)
    figures: dict[str, Any] = {}
    with Controller(setting) as controller:
        controller.wait_until_settled()
        for profile in profiles:
            controller.switch_to(EXPERTS, profile)
            visit(controller, EXPERTS)
            time.sleep(SETTLE_S)
            used_bytes = check.watch.sample().used_bytes - idle_bytes
            figures[profile] = compare_need(check, setting, EXPERTS, profile, used_bytes)
    sentences = [f"{profile}: {each['sentence']}" for profile, each in figures.items()]
    return PartResult(figures=figures, sentences=sentences, marks=marks(log_of(setting)))


def offload_profiles(layers: int) -> dict[str, dict[str, Any]]:
    """Return the profiles of a model with so many layers, from the most on the device down."""
    half = layers // 2
    changes: Mapping[str, Mapping[str, Any]] = {
        "all-on-device": {},
        "half-of-the-experts": {"extra_args": ["--n-cpu-moe", str(half)]},
        "no-experts": {"extra_args": ["--cpu-moe"]},
        "half-of-the-layers": {"n_gpu_layers": half},
    }
    return {
        name: {
            "extends": "generation",
            "mode": "generation",
            **change,
            "extra_args": [*TALKATIVE["extra_args"], *change.get("extra_args", ())],
        }
        for name, change in changes.items()
    }
