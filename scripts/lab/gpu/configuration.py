"""The shipped configuration with the models of the check, and the profiles that it compares."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from lab.gpu.check import Check
from lab.harness.servers import Controller
from lab.harness.setting import Setting, with_changes
from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from supervisor.core.byte_size import MIB
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.needs.assessment import Candidate, DeviceEstimate, examine

GENERATION, EMBEDDING, LARGE_EMBEDDING = "check-generation", "check-embedding", "check-large"
EXPERTS = "check-experts"
TALKATIVE: Mapping[str, Any] = {"extra_args": ["-lv", "4"]}
"""At this verbosity llama-server tells the size of each buffer."""

TIGHT_SLACK_BYTES = 384 * MIB
"""What an empty device has beyond the need that tight profiles state, the margin included."""

SMALL_BATCH, LARGE_BATCH = "embedding-512-128", "embedding-2048-2048"
_SLOTS = 16
_BATCHES: Mapping[str, tuple[int, int]] = {SMALL_BATCH: (512, 128), LARGE_BATCH: (2048, 2048)}


def embedding_profiles() -> dict[str, dict[str, Any]]:
    """Return the two profiles whose batches are compared, as many slots in both."""
    return {
        name: {
            "extends": "embedding",
            "mode": "embedding",
            "batch_size": batch,
            "ubatch_size": ubatch,
            "parallel": _SLOTS,
        }
        for name, (batch, ubatch) in _BATCHES.items()
    }


def variants(name: str, fields: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a profile for each mode, `generation-NAME` and `embedding-NAME`, with these fields."""
    return {
        f"{mode}-{name}": {"extends": mode, "mode": mode, **fields}
        for mode in ("generation", "embedding")
    }


def tight_profiles(free_bytes: int) -> dict[str, dict[str, Any]]:
    """Return profiles that state a need of nearly all that an empty device has free.

    Then the gate cannot pass before the old server's memory is back, however large the device is.
    """
    need_bytes = free_bytes - TIGHT_SLACK_BYTES
    return variants("tight", {"memory": {"need_bytes": need_bytes}})


def setting_for(
    check: Check,
    profiles: Mapping[str, Mapping[str, Any]],
    switch: Mapping[str, Any] | None = None,
) -> Setting:
    """Write the configuration into the part's folder, and return what starts a controller on it.

    `switch` changes the settings of that name.
    """
    shipped = Setting(
        profiles=check.profiles,
        models=check.work_dir,
        work_dir=check.work_dir,
        engine="llama-server",
        seconds=check.embedding_seconds,
        rounds=1,
        starts=1,
        switches=check.switches,
    )
    changes = {
        "supervisor.yaml": {
            "server": {"log_format": "json"},
            "engines": {"llama_server_bin": str(check.server)},
            "switch": switch or {},
        },
        **{f"{name}.yaml": fields for name, fields in profiles.items()},
    }
    setting = with_changes(shipped, "profiles", changes)
    catalogue = yaml.safe_dump(_catalogue(check))  # in place of the shipped one
    (setting.profiles / "models.yaml").write_text(catalogue, encoding="utf-8")
    return setting


def _catalogue(check: Check) -> dict[str, Any]:
    models = check.models
    here = {"device": check.watch.info.device}  # where there are several, that is the one looked at
    generates = {"type": "generation", "overrides": here}
    bert = {"type": "embedding", "overrides": {**here, "ctx_size": 512}}
    return {
        "models": {
            GENERATION: {"path": str(models.generation), **generates},
            EXPERTS: {"path": str(models.experts), **generates},
            EMBEDDING: {"path": str(models.embedding), **bert},
            LARGE_EMBEDDING: {"path": str(models.large_embedding), **bert},
        }
    }


def look_at(check: Check, setting: Setting, model: str, profile: str | None = None) -> Candidate:
    """Return a model with a profile as the controller sees it. Raises SupervisorError."""
    configuration: Configuration = load(setting.profiles, setting.models, os.environ)
    engines = Engines(os.environ, check.server, "llama-server")
    resolved = configuration.resolve(model, profile)
    return examine(resolved, engines.choose(resolved.profile.engine))


def estimate(check: Check, candidate: Candidate, ctx_size: int | None = None) -> DeviceEstimate:
    """Estimate a need on the device under check, with another context where one is given."""
    if ctx_size is not None and candidate.settings is not None:
        larger = replace(candidate.settings, ctx_size_per_slot=ctx_size)
        candidate = replace(candidate, settings=larger)
    need = candidate.estimate_on(check.watch.info.device)
    assert need is not None
    return need


def log_of(setting: Setting) -> Path:
    """Return where the controller of a part writes its log."""
    return setting.work_dir / "controller.log"


def visit(controller: Controller, model: str, text: str = "What is measured here?") -> None:
    """Use a live model once, so that it has done what it is for."""
    if model in {GENERATION, EXPERTS}:
        message = {"role": "user", "content": text}
        body = {"model": model, "messages": [message], "max_tokens": 16}
        controller.call("POST", "/v1/chat/completions", body)
    else:
        controller.call("POST", "/v1/embeddings", {"model": model, "input": text})
