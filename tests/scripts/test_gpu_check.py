"""The check on a machine with a GPU, where the driver is simulated and everything else is real."""

import ctypes
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.telemetry.simulated_driver import C_FLAGS
from tests.telemetry.simulated_gpu import DeviceState, MachineState, SimulatedGpu, build_library

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
FAKE_LIBCUDA = Path(__file__).with_name("fake_libcuda.c")

RELEASE_S = 0.2
HELD_BYTES = 700 * 1024 * 1024

LLAMA_SERVER_WITH_VRAM = """#!{python}
import os
import sys

sys.path.insert(0, {root!r})

if "--model" in sys.argv:
    from tests.telemetry.simulated_gpu import SimulatedGpu

    gpu = SimulatedGpu.attached()
    gpu.allocate(os.getpid(), {held}, release_after_s={release_s}, release_steps=3)
# The name of this file stays that of the program: whoever starts the same again starts this.
os.execv({binary!r}, sys.argv)
"""
"""The real server on the CPU; the simulated driver takes it for one that holds device memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine with a simulated driver, and what runs the check on it."""

    folder: Path
    environment: dict[str, str]
    models: dict[str, Path]

    @property
    def calls(self) -> list[str]:
        """What was called of libcuda."""
        return (self.folder / "calls").read_text().splitlines()

    def check(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        named = [word for name, path in self.models.items() for word in (f"--{name}-model", path)]
        return subprocess.run(
            [
                *(sys.executable, "-m", "gpu_runner", "--no-picture"),
                *("--out", self.folder / "hardware", *named, *arguments),
            ],
            capture_output=True,
            text=True,
            check=False,
            env=self.environment | environment,
            timeout=120,
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
    write = (
        "from pathlib import Path; import sys; from gpu_runner.models import LlamaShape, write_bert;"
        "write_bert(Path(sys.argv[1]), LlamaShape(context_tokens=512, layers=1, width=64,"
        " feed_forward=64, heads=1, head_size=64))"
    )
    subprocess.run([sys.executable, "-c", write, path], check=True, env=with_scripts())
    return path


def with_scripts() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SCRIPTS)}


@pytest.fixture(scope="module")
def make_machine(
    libraries: Path, llama_server_bin: Path, models_dir: Path, bert: Path
) -> Callable[[Path], Machine]:
    def make(folder: Path) -> Machine:
        gpu = SimulatedGpu(folder, library=libraries / "libnvidia-ml.so.1")
        server = folder / "llama-server"
        server.write_text(
            LLAMA_SERVER_WITH_VRAM.format(
                python=sys.executable,
                root=str(ROOT),
                binary=str(llama_server_bin),
                held=HELD_BYTES,
                release_s=RELEASE_S,
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
        }
        return Machine(folder=folder, environment=environment, models=models)

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
    run = machine.check("--parking", "--switches", "5", "--embedding-seconds", "1.5")
    assert run.returncode == 0, run.stderr
    return machine, machine.report()


def test_whole_run_measures_every_part(finished: tuple[Machine, dict[str, Any]]) -> None:
    parts = finished[1]["parts"]
    assert {name: part["outcome"] for name, part in parts.items()} == dict.fromkeys(
        ("switches", "fit", "foreign", "embedding", "parking"), "measured"
    )
