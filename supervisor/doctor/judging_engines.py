"""Findings about engines: whether one runs, and whether its build computes on the device here."""

import re
from collections.abc import Iterator

from supervisor.doctor.facts import Facts
from supervisor.doctor.findings import Finding, error, warning
from supervisor.doctor.judging_devices import devices_of
from supervisor.engine.kinds.cached_build import miscompiles_amx
from supervisor.engine.port import EngineIdentity
from supervisor.telemetry.vendor import EngineBuild
from supervisor.telemetry.vendors import VENDORS

_BACKEND_WORD = re.compile(r"[A-Za-z]+")
_ON_THE_CPU = frozenset({"cpu", "blas", "rpc"})


def judge_engines(facts: Facts) -> Iterator[Finding]:
    """Judge every engine that was found; the one that `auto` means must run."""
    engines = facts.engines
    if engines.problem is not None:
        yield error(
            f"no engine can be used: {engines.problem}",
            "set engines.llama_server_bin or LLAMA_SERVER_BIN to a llama-server that runs here, "
            "or pip install xllamacpp",
        )
    for identity in engines.found:
        if identity.problem is not None and identity.problem != engines.problem:
            yield warning(
                f"{identity.name} {identity.version}".rstrip() + f": {identity.problem}",
                "run it by hand to see why; until then, do not name it in a profile's `engine`",
            )
        breaks_amx = facts.host.has_amx and identity.location in engines.with_amx
        if breaks_amx and miscompiles_amx(identity.build):
            yield warning(
                f"{identity.name} ({identity.location}) was compiled by "
                f"{identity.build.partition(';')[0]}, which breaks its code for AMX: on this "
                "processor it dies of quantised weights that are computed on the CPU",
                "remove its folder and build it again (scripts/build_llama_server.py), or compile "
                "it by GCC 12.4, 13.3 or later; until then `extra_args: [--no-repack]` in the "
                "profiles of such models",
            )
        if identity.name == engines.chosen:
            yield from _judge_build(facts, identity)


def _judge_build(facts: Facts, chosen: EngineIdentity) -> Iterator[Finding]:
    """Hold what the engine computes on against what is here."""
    backends = backends_of(chosen)
    watched = " and ".join(f"{name}'s" for name in VENDORS)
    for vendor in VENDORS.values():
        devices = devices_of(facts, vendor.name)
        if devices and chosen.problem is None and not backends & vendor.build.backends:
            yield warning(
                f"{chosen.name} ({chosen.location}) computes on the CPU only, beside "
                f"{devices[0].name} ({devices[0].device})",
                _build_remedy(facts, vendor.build),
            )
    if backends - _ON_THE_CPU and not devices_of(facts, "*"):
        yield warning(
            f"{chosen.name} computes on {', '.join(chosen.devices)}, whose memory telemetry "
            "cannot see: starts are not gated by it",
            f"see the other findings, if there are any; only {watched} devices are watched",
        )


def _build_remedy(facts: Facts, build: EngineBuild) -> str:
    other = next((e for e in facts.engines.found if backends_of(e) & build.backends), None)
    if other is not None:
        return f"use the engine that can: --engine {other.name}, or `engine:` in the profiles"
    return (
        f"build llama.cpp with {build.flag}, or take it from the image "
        f"ghcr.io/ggml-org/llama.cpp:{build.image}, and name it in LLAMA_SERVER_BIN; to stay on "
        "the CPU, set `device: cpu` in the profiles"
    )


def backends_of(identity: EngineIdentity) -> frozenset[str]:
    """Return the words by which ggml names its backends, as in `CUDA0: NVIDIA H200`."""
    words = (_BACKEND_WORD.match(device) for device in identity.devices)
    return frozenset(word[0].lower() for word in words if word)
