"""The check on a machine with a GPU, where the driver is simulated and everything else is real."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from lab.drivers.nvidia import DeviceState, MachineState, SimulatedGpu, build_library
from lab.drivers.shared import C_FLAGS
from lab.gpu import building, check, models, packing, switches
from lab.gpu.watch import Point

from supervisor.core.machine.memory import (
    GateState,
    MemoryPolicy,
    MemorySample,
    ReleaseQuestion,
    judge_release,
)
from supervisor.engine.kinds.cached_build import CMAKE_FLAGS
from supervisor.engine.models.model_file import inspect_model_file

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
SVG = "{http://www.w3.org/2000/svg}"
FAKE_LIBCUDA = Path(__file__).with_name("fake_libcuda.c")

RELEASE_S = 0.2
LOAD_PERCENT = 70
HELD_BYTES = 700 * 1024 * 1024
PARKING_STEPS = ["Lock", "Checkpoint", "Restore", "Unlock"]

LLAMA_SERVER_WITH_VRAM = """#!{python}
import os
import sys

sys.path.insert(0, {root!r})

if "--model" in sys.argv:
    from lab.drivers.nvidia import SimulatedGpu

    gpu = SimulatedGpu.attached({state!r})
    gpu.allocate(os.getpid(), {held}, release_after_s={release_s}, release_steps=3)
    # A CPU with AMX would keep a second copy of some weights; a GPU does not.
    sys.argv.append("--no-repack")
# The name of this file stays that of the program: whoever starts the same again starts this.
os.execv({binary!r}, sys.argv)
"""
"""The real server on the CPU; the simulated driver takes it for one that holds device memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine with a simulated driver, and what runs the check on it."""

    folder: Path
    libcuda: Path
    environment: dict[str, str]
    models: dict[str, Path]

    @property
    def calls(self) -> list[str]:
        """What was called of libcuda."""
        return (self.folder / "calls").read_text().splitlines()

    def checkpoint_steps(self) -> dict[str, list[str]]:
        """What was asked of libcuda for each process, in order, beside its state."""
        steps: dict[str, list[str]] = {}
        for name, *pid in map(str.split, self.calls):
            step = name.removeprefix("cuCheckpointProcess")
            if step in PARKING_STEPS:
                steps.setdefault(pid[0], []).append(step)
        return steps

    def check(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        named = [word for name, path in self.models.items() for word in (f"--{name}-model", path)]
        return subprocess.run(
            [
                *(sys.executable, "-m", "lab.gpu"),
                *("--out", self.folder / "hardware", *named, "--libcuda", self.libcuda, *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment | environment,
            timeout=600,
        )

    def report(self) -> dict[str, Any]:
        (path,) = self.folder.glob("hardware/*/report.json")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content


def build_libcuda(folder: Path, *flags: str) -> Path:
    library = folder / "libcuda.so.1"
    subprocess.run(["cc", *C_FLAGS, *flags, "-o", library, FAKE_LIBCUDA], check=True)
    return library


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated driver's libraries: NVML and libcuda."""
    folder = tmp_path_factory.mktemp("driver")
    build_library(folder)
    build_libcuda(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the large embedding model's architecture, and as small as can be."""
    path = tmp_path_factory.mktemp("models") / "bert.gguf"
    return write_model(path, "write_bert", "context_tokens=512, layers=1, feed_forward=64")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts of two layers."""
    path = tmp_path_factory.mktemp("models") / "experts.gguf"
    return write_model(path, "write_experts", "context_tokens=2048, layers=2, feed_forward=512")


def write_model(path: Path, writer: str, measures: str) -> Path:
    """Have one of the check's writers make a model of these measures, with one head."""
    write = (
        f"import sys; from pathlib import Path; from lab.gpu.models import LlamaShape, {writer}"
        f"; {writer}(Path(sys.argv[1]), LlamaShape({measures}, width=64, heads=1, head_size=64))"
    )
    subprocess.run([sys.executable, "-c", write, path], check=True, env=with_scripts())
    return path


def with_scripts() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SCRIPTS)}


@pytest.fixture(scope="module")
def make_machine(
    libraries: Path, llama_server_bin: Path, models_dir: Path, bert: Path, mixture: Path
) -> Callable[[Path], Machine]:
    def make(folder: Path) -> Machine:
        gpu = SimulatedGpu(folder, library=libraries / "libnvidia-ml.so.1")
        gpu.devices[0].utilisation_percent = LOAD_PERCENT
        server = folder / "llama-server"
        server.write_text(
            LLAMA_SERVER_WITH_VRAM.format(
                python=sys.executable,
                root=str(SCRIPTS),
                binary=str(llama_server_bin),
                held=HELD_BYTES,
                release_s=RELEASE_S,
                state=gpu.environment(),
            )
        )
        server.chmod(0o755)
        embedding = folder / "small-bert.gguf"
        embedding.symlink_to(bert)
        (folder / "parked").write_bytes(bytes(16))
        processes = MachineState.devices.offset + DeviceState.processes.offset
        environment = gpu.full_environment(
            LLAMA_SERVER_BIN=str(server),
            PYTHONPATH=str(SCRIPTS),
            FAKE_CUDA_LAYOUT=f"{ctypes.sizeof(MachineState)} {processes}",
            FAKE_CUDA_STATE=str(folder / "parked"),
            FAKE_CUDA_CALLS=str(folder / "calls"),
        )
        models = {
            "generation": models_dir / "demo-chat.gguf",
            "embedding": embedding,
            "large-embedding": bert,
            "experts": mixture,
        }
        return Machine(
            folder=folder,
            libcuda=libraries / "libcuda.so.1",
            environment=environment,
            models=models,
        )

    return make


@pytest.fixture
def machine(make_machine: Callable[[Path], Machine], tmp_path: Path) -> Machine:
    return make_machine(tmp_path)


@pytest.fixture(scope="module")
def finished(
    make_machine: Callable[[Path], Machine], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Machine, dict[str, Any]]:
    """A whole run, as short as it can be, parking with it."""
    machine = make_machine(tmp_path_factory.mktemp("machine"))
    run = machine.check("--parking", "--switches", "5", "--embedding-seconds", "1")
    assert run.returncode == 0, run.stderr
    return machine, machine.report()


def figures_of(finished: tuple[Machine, dict[str, Any]], part: str) -> dict[str, Any]:
    figures: dict[str, Any] = finished[1]["parts"][part]["figures"]
    return figures


def test_whole_run_measures_every_part_and_says_so_for_people(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    machine, report = finished
    assert {name: part["outcome"] for name, part in report["parts"].items()} == dict.fromkeys(
        ("switches", "offload", "fit", "foreign", "embedding", "parking", "parked_switches"),
        "measured",
    )
    (summary,) = machine.folder.glob("hardware/nvidia-h200-580.65.06/README.md")
    text = summary.read_text(encoding="utf-8")
    for part in report["parts"].values():
        assert all(sentence in text for sentence in part["sentences"])
    assert str(machine.folder) not in text + json.dumps(report)


def test_release_is_told_from_the_reap_for_each_switch_that_leaves_no_room(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    figures = figures_of(finished, "switches")
    tight = figures["switches"][-5:]
    assert figures["done"] == 7
    for switch in tight:
        assert switch["is_held_after_reap"]
        assert RELEASE_S * 0.5 < switch["released_s"] <= switch["phases_s"]["confirming"]
        assert {"stopping", "confirming", "starting", "total"} <= switch["phases_s"].keys()
        assert switch["samples"] >= 3
    assert figures["reap_to_released_s"]["count"] >= 5
    assert figures["rules"] == {"free ≥ need + margin": 7}
    assert figures["baseline_bytes"] == {"before": 0, "after": 0}
    assert figures["sampling"]["samples_per_s"] > 20
    assert figures["sampling"]["helper_resident_bytes"] > 0


def test_need_is_compared_part_by_part_with_what_the_server_told(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    needs = figures_of(finished, "switches")["needs"]
    assert needs.keys() == {"check-generation", "check-large", "check-embedding"}
    parts = needs["check-generation"]["parts"]
    # The server computes on the CPU, where the tables of tokens count, too.
    tables_bytes = inspect_model_file(finished[0].models["generation"]).header.tensors.input_bytes
    for part, beside_bytes in (("weights", tables_bytes), ("kv", 0)):
        estimated_bytes = parts[part]["estimated_bytes"] + beside_bytes
        assert parts[part]["used_bytes"] == pytest.approx(estimated_bytes, rel=0.05)
        assert parts[part]["used_bytes"] > 0
    assert parts["total"]["used_bytes"] == HELD_BYTES
    buffers = sum(parts[part]["used_bytes"] for part in ("weights", "kv", "compute"))
    assert parts["context"]["used_bytes"] == HELD_BYTES - buffers


def test_parts_left_on_the_host_are_compared_profile_by_profile(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    figures = figures_of(finished, "offload")
    estimated = {
        profile: each["parts"]["weights"]["estimated_bytes"] for profile, each in figures.items()
    }
    tensors = inspect_model_file(finished[0].models["experts"]).header.tensors
    first_layer_bytes, all_bytes = tensors.expert_bytes[0], sum(tensors.expert_bytes.values())
    whole = estimated["all-on-device"]
    assert estimated["half-of-the-experts"] == whole - first_layer_bytes
    assert estimated["no-experts"] == whole - all_bytes
    assert estimated["half-of-the-layers"] < whole
    for each in figures.values():
        # This server has no device: whatever a profile says, it holds all of the weights itself.
        held_bytes = each["parts"]["weights"]["used_bytes"]
        assert held_bytes == pytest.approx(whole + tensors.input_bytes, rel=0.05)
        assert each["parts"]["total"]["used_bytes"] == HELD_BYTES


def test_what_cannot_fit_is_refused_with_the_arithmetic_while_another_serves(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    figures = figures_of(finished, "fit")
    assert (figures["status"], figures["code"]) == (422, "target_does_not_fit")
    assert figures["details"]["need_bytes"] > figures["details"]["available_bytes"]
    assert "weights" in figures["message"]
    assert figures["live_model_went_on"]


def test_tenant_is_seen_named_and_waited_for(finished: tuple[Machine, dict[str, Any]]) -> None:
    figures = figures_of(finished, "foreign")
    assert figures["grown_bytes"] == figures["held_bytes"] == figures["listed_bytes"]
    assert figures["switch_status"] == 422
    assert figures["is_named_in_refusal"]
    assert figures["switch_status_after_it_left"] == 200


def test_embedding_tells_the_load_of_both_batches_and_the_ratio_of_their_times(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    for model in figures_of(finished, "embedding").values():
        small, large = model["embedding-512-128"], model["embedding-2048-2048"]
        assert small["utilisation_percent"] == large["utilisation_percent"] == LOAD_PERCENT
        ratio = large["texts_per_s"] / small["texts_per_s"]
        assert model["ratio_of_times"] == pytest.approx(ratio)


def test_parking_moves_the_memory_away_and_back_and_the_conversation_goes_on(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    figures = figures_of(finished, "parking")
    assert next(iter(finished[0].checkpoint_steps().values())) == PARKING_STEPS
    assert figures["device_bytes"] == HELD_BYTES
    assert figures["gate"]["state"] == "confirmed"
    assert figures["gate"]["left_on_device_bytes"] == 0
    assert figures["after"]["cache_n"] > 0
    assert figures["came_without_prefill"]


def test_product_parks_and_comes_back_as_often_as_it_stops_and_starts(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    figures = figures_of(finished, "parked_switches")
    stopped, parked = figures["stopped"], figures["parked"]
    assert (stopped["came_back_parked"], parked["came_back_parked"]) == (0, 5)
    assert list(finished[0].checkpoint_steps().values())[1] == 5 * PARKING_STEPS
    for side in (stopped, parked):
        assert side["leaving_s"]["count"] == side["returning_s"]["count"] == 5
    for trip in parked["trips"]:
        # Of the server that ended before, a driver that releases in steps may still hold some.
        assert trip["kept"]["device_bytes"] < HELD_BYTES / 2
        assert trip["cached_tokens"] > trip["computed_tokens"]
    assert all(trip["kept"] is None for trip in stopped["trips"])


def test_timeline_shows_the_memory_and_when_each_phase_began(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    part = finished[1]["parts"]["switches"]
    held = {used_mib for _, used_mib, _ in part["timeline"]}
    assert {0, HELD_BYTES // 1024**2} <= held
    labels = [mark["label"] for mark in part["marks"]]
    assert {"stopping", "confirming", "starting", "ready"} <= set(labels)
    times = [mark["at_s"] for mark in part["marks"]]
    assert times == sorted(times)
    assert 0 < times[-1] <= part["took_s"] + 0.1


def test_without_libcuda_the_parts_that_need_it_are_skipped_and_say_so(machine: Machine) -> None:
    run = machine.check("--only", "foreign,parking", "--libcuda", "/nowhere/libcuda.so.1")
    assert run.returncode == 0, run.stderr
    for part in machine.report()["parts"].values():
        assert part["outcome"] == "skipped"
        assert part["reason"].startswith("no libcuda: ")
        assert part["reason"].endswith("skipped")


def test_driver_without_checkpoints_skips_parking_and_names_the_driver_that_has_them(
    machine: Machine, tmp_path: Path
) -> None:
    old = build_libcuda(tmp_path, "-DWITHOUT_CHECKPOINTS")
    run = machine.check("--only", "parking", "--libcuda", old)
    assert run.returncode == 0, run.stderr
    part = machine.report()["parts"]["parking"]
    assert part["outcome"] == "skipped"
    assert "driver 570 or newer" in part["reason"]


def test_part_that_fails_gives_its_reason_and_leaves_the_process_unlocked_and_others_measured(
    machine: Machine,
) -> None:
    failing = "cuCheckpointProcessCheckpoint"
    run = machine.check("--only", "parking,fit", FAKE_CUDA_FAIL=f"{failing} 801")
    assert run.returncode == 1
    parts = machine.report()["parts"]
    assert parts["parking"]["outcome"] == "failed"
    assert parts["parking"]["reason"] == f"{failing} failed: CUDA_ERROR_SIMULATED (801)"
    assert machine.calls[-1].startswith("cuCheckpointProcessUnlock")
    assert parts["fit"]["outcome"] == "measured"


def test_part_for_which_no_time_is_left_is_skipped_and_earlier_results_stay(
    machine: Machine,
) -> None:
    assert machine.check("--only", "fit").returncode == 0
    run = machine.check("--only", "switches", "--minutes", "0.2")
    assert run.returncode == 0, run.stderr
    parts = machine.report()["parts"]
    assert parts["switches"] == {"outcome": "skipped", "reason": "no time was left"}
    assert parts["fit"]["outcome"] == "measured"


def test_machine_without_a_gpu_is_told_so(machine: Machine) -> None:
    run = machine.check("--only", "fit", LD_LIBRARY_PATH="")
    assert run.returncode == 1
    assert "no GPU can be read here" in run.stderr
    assert not (machine.folder / "hardware").exists()


def test_without_a_server_and_a_cuda_compiler_both_remedies_are_named(
    machine: Machine, tmp_path: Path
) -> None:
    run = machine.check(LLAMA_SERVER_BIN="", PATH="", XDG_CACHE_HOME=str(tmp_path))
    assert run.returncode == 1
    assert "nvcc was not found" in run.stderr
    assert "LLAMA_SERVER_BIN=" in run.stderr


def test_part_that_hangs_ends_with_its_time() -> None:
    with (
        pytest.raises(check.OutOfTimeError, match="sleeping did not end within"),
        check.time_limit(0.05, "sleeping"),
    ):
        subprocess.run(["sleep", "60"], check=True)


def test_release_is_the_first_sample_after_the_reap_that_shows_it() -> None:
    find_release, point = switches.find_release, Point
    points = [
        point(at=at, used_bytes=used, free_bytes=0) for at, used in ((1.01, 9), (1.3, 5), (1.5, 0))
    ]
    for seen, is_held in ((points, True), (points[2:], False)):
        released_s, was_held = find_release(seen, 1.0, 2)
        assert released_s == pytest.approx(0.5)
        assert was_held is is_held
    assert find_release(points[:2], 1.0, 2) == (None, True)


def test_rules_of_the_gate_are_told_by_its_own_sentences() -> None:
    def reason(used_bytes: int, need_bytes: int | None, baseline_bytes: int | None) -> str:
        question = ReleaseQuestion(
            device="gpu0",
            need_bytes=need_bytes,
            baseline_used_bytes=baseline_bytes,
            policy=MemoryPolicy(stable_samples=1),
            asked_at=0.0,
        )
        total = 10 * 1024**3
        sample = MemorySample(
            device="gpu0",
            taken_at=0.0,
            total_bytes=total,
            used_bytes=used_bytes,
            free_bytes=total - used_bytes,
            source="test",
            children_bytes=0,
        )
        decision = judge_release(question, [sample])
        assert decision.state is GateState.CONFIRMED
        return decision.reason

    rule_of = switches.rule_of
    assert rule_of(reason(0, 1, 0)) == "free ≥ need + margin"
    assert rule_of(reason(0, 10 * 1024**3, 0)) == "use is back at the baseline"
    assert rule_of(reason(0, None, None)) == "our children hold nothing"


def test_distribution_takes_ranks_that_were_really_seen() -> None:
    distribution = check.distribution
    told = distribution([float(number) for number in range(1, 101)])
    assert told == {"count": 100, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert distribution([]) is None


def test_generation_model_has_the_size_that_is_asked_for() -> None:
    shape = models.generation_shape(8.0)
    weights = shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.feed_forward)
    assert 2 * weights == pytest.approx(8e9, rel=0.05)


def test_gpu_build_is_another_than_the_cpus_and_takes_further_flags() -> None:
    plain = building.cuda_flags({"CUDACXX": "/cuda/bin/nvcc"})
    more = building.cuda_flags({"CUDACXX": "/cuda/bin/nvcc", "CMAKE_ARGS": "-DA=1 '-DB=2 3'"})
    assert {"-DGGML_CUDA=ON", "-DCMAKE_CUDA_COMPILER=/cuda/bin/nvcc"} <= set(plain)
    assert more == (*plain, "-DA=1", "-DB=2 3")
    elsewhere = building.cuda_flags({"CUDACXX": "/cuda/bin/nvcc", "PATH": ""})
    assert "-DCUDAToolkit_ROOT=/cuda" in elsewhere
    folders = {building.cuda_build_dir(flags) for flags in (plain, more, CMAKE_FLAGS)}
    assert len(folders) == 3


def test_what_is_carried_leaves_out_what_the_check_can_do_without() -> None:
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    reduced = packing.reduced(lock, packing.needed_packages())
    carried = {line.partition("==")[0] for line in reduced.splitlines() if "==" in line}
    assert {"aiohttp", "multidict", "pydantic-core", "gguf"} <= carried
    assert not carried & {"xllamacpp", "numpy", "tokenizers", "kreuzberg", "grpcio", "pytest"}
    needed = ("CMakeLists.txt", "ggml/src/ggml-cuda/x.cu", "src/models/llama.cpp", "tools/server/a")
    assert not any(packing.LEFT_OUT_SOURCES.match(path) for path in needed)
    assert packing.LEFT_OUT_SOURCES.match("models/ggml-vocab.gguf")


def test_picture_shows_the_memory_of_each_part_and_the_phases_of_its_switches(
    finished: tuple[Machine, dict[str, Any]],
) -> None:
    (folder,) = finished[0].folder.glob("hardware/*")
    picture = ET.parse(folder / "timeline.svg").getroot()
    parts = picture.findall(f"{SVG}g")
    measured = finished[1]["parts"]
    assert len(parts) == len(measured)
    colours = {"stopping": "#e4572e", "confirming": "#9b5de5", "starting": "#3a86ff"}
    for drawn, part in zip(parts, measured.values(), strict=True):
        marked = [mark["label"] for mark in part["marks"]]
        for phase, colour in colours.items():
            bands = [band for band in drawn.findall(f"{SVG}rect") if band.get("fill") == colour]
            assert len(bands) == marked.count(phase)
        curves = [line.get("points", "").split() for line in drawn.findall(f"{SVG}polyline")]
        assert 2 * len(part["timeline"]) - 1 in map(len, curves)
        heights = {float(point.split(",")[1]) for curve in curves for point in curve}
        assert 0.0 in heights  # the largest use reaches the top
    assert "timeline.svg" in (folder / "README.md").read_text(encoding="utf-8")
