"""Run the check on this machine's GPU; `scripts/gpu_check` makes everything ready and runs this.

Each part is bounded in time and fails alone: its reason stands in the report then, which is
written after each part. The exit status is 0 unless a part failed.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.gpu import embedding, fit, foreign, offload, parked_switches, parking, switches
from lab.gpu.building import FoundServer, find_server
from lab.gpu.check import Check, Models, NotHereError, PartResult, time_limit
from lab.gpu.drawing import draw
from lab.gpu.models import experts_model, generation_model, large_embedding_model
from lab.gpu.report import Folder, folder_for, placed, thinned
from lab.gpu.watch import Watch
from lab.harness import command
from lab.harness.command import MODELS, PROFILES, ROOT, LabError, say
from lab.harness.machine import describe_machine
from supervisor import __version__
from supervisor.core.byte_size import MIB
from supervisor.engine.cuda.libcuda import DEFAULT_LIBRARY
from supervisor.errors import SupervisorError

PARTS: Mapping[str, ModuleType] = {
    part.NAME: part
    for part in (switches, offload, fit, foreign, embedding, parking, parked_switches)
}
PARKING_PARTS = (parking.NAME, parked_switches.NAME)
USUAL_PARTS = tuple(name for name in PARTS if name not in PARKING_PARTS)

BUILD_LIMIT_S = 1800.0
MODELS_LIMIT_S = 300.0
MIN_REMAINING_S = 15.0
"""What must be left of --minutes for a part to begin."""

NEAR_BYTES = 64 * MIB
SETTLE_TIMEOUT_S = 10.0
"""How long the memory of the part before may take to be back, before the next begins anyway.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What a run consists of; `ends_at` is when all of its time is over."""

    asked: argparse.Namespace
    watch: Watch
    server: FoundServer
    models: Models
    ends_at: float

    @property
    def folder(self) -> Folder:
        """Where its report goes."""
        return folder_for(self.asked.out, self.watch.info)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for. Returns the exit status."""
    asked = _parse(arguments)
    return command.run("gpu_check", lambda: _check(asked))


def _check(asked: argparse.Namespace) -> int:
    began_at = time.monotonic()
    ends_at = began_at + 60 * asked.minutes
    with _limited(BUILD_LIMIT_S, ends_at, "the build"):
        server = find_server(os.environ, asked.source)
    say(f"llama-server: {server.origin}, {server.identity.version}")
    if asked.build_only:
        return 0
    with _limited(MODELS_LIMIT_S, ends_at, "making the models"):
        models = _models(asked)
    with Watch() as watch:
        run = _Run(asked=asked, watch=watch, server=server, models=models, ends_at=ends_at)
        failed = _measure_parts(run)
    draw(run.folder)
    say(f"written to {run.folder.path}; {time.monotonic() - began_at:.0f} s in all")
    return 1 if failed else 0


def _limited(limit_s: float, ends_at: float, what: str) -> AbstractContextManager[None]:
    """Bound a step by its own limit and by the time for everything."""
    return time_limit(max(0.1, min(limit_s, ends_at - time.monotonic())), what)


def _measure_parts(run: _Run) -> bool:
    """Measure what is asked for, and write each part down; return whether any failed."""
    asked, report = run.asked, _begin_report(run)
    names = asked.only or (*USUAL_PARTS, *(PARKING_PARTS if asked.parking else ()))
    failed, idle_bytes = False, run.watch.sample().used_bytes
    for name in names:
        part = PARTS[name]
        limit_s = min(part.LIMIT_S, run.ends_at - time.monotonic())
        say(f"{name}: at most {max(0.0, limit_s):.0f} s …")
        run.watch.wait_until_used(idle_bytes + NEAR_BYTES, SETTLE_TIMEOUT_S)
        # Short: a socket's path has about a hundred bytes.
        with tempfile.TemporaryDirectory(prefix="gpu-") as work_dir:
            check = Check(
                watch=run.watch,
                server=run.server.binary,
                models=run.models,
                profiles=asked.profiles,
                work_dir=Path(work_dir),
                switches=asked.switches,
                embedding_seconds=asked.embedding_seconds,
                libcuda=asked.libcuda,
                ends_at=time.monotonic() + limit_s,
            )
            outcome = _measure(part.measure, check, name)
        report["parts"][name] = outcome
        failed = failed or outcome["outcome"] == "failed"
        told = outcome["sentences"] if "sentences" in outcome else [outcome["reason"]]
        say("\n".join(f"  {outcome['outcome']}: {sentence}" for sentence in told))
        run.folder.write(report)
    return failed


def _measure(measure: Callable[[Check], PartResult], check: Check, name: str) -> dict[str, Any]:
    """Run one part; return its result, or why there is none."""
    if check.remaining_s < MIN_REMAINING_S:
        return {"outcome": "skipped", "reason": "no time was left"}
    began_at = time.monotonic()
    try:
        with time_limit(check.remaining_s, name):
            result = measure(check)
    except NotHereError as error:
        return {"outcome": "skipped", "reason": f"{error}: skipped"}
    except (LabError, SupervisorError, OSError) as error:
        return {"outcome": "failed", "reason": str(error), **_timeline(check, began_at, ())}
    except Exception as error:  # noqa: BLE001 - the other parts shall still run
        reason = f"{type(error).__name__}: {error}"
        return {"outcome": "failed", "reason": reason, **_timeline(check, began_at, ())}
    return {
        "outcome": "measured",
        "sentences": list(result.sentences),
        "figures": result.figures,
        **_timeline(check, began_at, result.marks),
    }


def _timeline(check: Check, began_at: float, marks: Any) -> dict[str, Any]:
    ended_at = time.monotonic()
    return {
        "took_s": round(ended_at - began_at, 1),
        "telemetry_failures": list(check.watch.failures),
        "marks": placed(marks, began_at),
        "timeline": thinned(check.watch.between(began_at, ended_at), began_at),
    }


def _begin_report(run: _Run) -> dict[str, Any]:
    """Describe what is measured; parts that were measured before stay."""
    identity, info = run.server.identity, run.watch.info
    return {
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": __version__,
        "device": {key: value for key, value in asdict(info).items() if key != "visible_as"},
        "machine": describe_machine(),
        "llama_server": {
            "origin": run.server.origin,
            "version": identity.version,
            "build": identity.build,
            "devices": list(identity.devices),
        },
        "models": {
            name: f"{path.name}, {path.stat().st_size / 1e9:.2f} GB"
            for name, path in asdict(run.models).items()
        },
        "parts": run.folder.read().get("parts", {}),
    }


def _models(asked: argparse.Namespace) -> Models:
    """Return the models that are named, else make them."""
    large = asked.large_embedding_model or large_embedding_model()
    small = asked.embedding_model or asked.models / "minilm.gguf"
    return Models(
        generation=(asked.generation_model or generation_model(asked.model_gb)).absolute(),
        embedding=(small if small.exists() else large).absolute(),
        large_embedding=large.absolute(),
        experts=(asked.experts_model or experts_model()).absolute(),
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--only", type=_names, metavar="PART,…", help=f"of {', '.join(PARTS)}")
    add("--parking", action="store_true", help="measure the parts of parking, too")
    add("--switches", type=int, default=50, metavar="N", help="tight ones (%(default)s)")
    add("--minutes", type=float, default=60.0, metavar="N", help="for everything (%(default)g)")
    add("--model-gb", type=float, default=8.0, metavar="N", help="to generate with (%(default)g)")
    add("--embedding-seconds", type=float, default=8.0, metavar="N", help="a side (%(default)g)")
    for name in ("generation", "embedding", "large-embedding", "experts"):
        add(f"--{name}-model", type=Path, metavar="FILE", help="instead of the one that is made")
    add("--models", type=Path, default=MODELS, metavar="DIR", help="with minilm.gguf")
    add("--profiles", type=Path, default=PROFILES, metavar="DIR")
    add("--out", type=Path, default=ROOT / "docs" / "hardware", metavar="DIR")
    add("--source", type=Path, metavar="FILE", help="archive to build from (the pinned one)")
    add("--libcuda", default=DEFAULT_LIBRARY, metavar="FILE", help="%(default)s")
    add("--build-only", action="store_true", help="find or build the llama-server, no more")
    return parser.parse_args(arguments)


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
