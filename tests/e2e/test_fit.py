"""`llama-supervisor fit`: what it tells of a model, and with which exit code."""

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lab.drivers.nvidia import GIB, SimulatedGpu
from typer.testing import CliRunner, Result

from supervisor.cli import cli
from supervisor.core.byte_size import MIB
from tests.conftest import StartController
from tests.e2e.conftest import COMMAND
from tests.gateway.conftest import shipped

Fit = Callable[..., Result]


@pytest.fixture
def fit(
    tmp_path: Path,
    profiles_dir: Path,
    models_dir: Path,
    llama_server_bin: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Fit:
    """Runs `fit WORDS` on the shipped profiles; `files` replaces or adds some, as values."""
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(llama_server_bin))

    def run(*words: object, files: Mapping[str, Any] | None = None) -> Result:
        folder = tmp_path / "fit-profiles"
        shutil.copytree(profiles_dir, folder, dirs_exist_ok=True)
        for name, content in (files or {}).items():
            (folder / name).write_text(yaml.safe_dump(content))
        options = ("--profiles", folder, "--models", models_dir, "--data", tmp_path / "data")
        engine = ("--engine", "llama-server")
        return CliRunner().invoke(cli, ["fit", *map(str, (*options, *engine, *words))])

    return run


def generation(**fields: Any) -> dict[str, Any]:
    """A profile for a model that is run with none of the shipped settings."""
    return {"mode": "generation", "ctx_size": 1024, "parallel": 2, **fields}


def host(answer: Result) -> dict[str, Any]:
    told = json.loads(answer.stdout)
    (device,) = [each for each in told["devices"] if each["device"] == "host"]
    return dict(device)


def test_table_tells_the_parts_and_what_would_still_fit(fit: Fit) -> None:
    told = fit("demo-chat", "--profile", "small", files={"small.yaml": generation()})

    assert told.exit_code == 0, told.output
    for row in ("weights", "KV cache", "compute", "results", "driver's context", "free now"):
        assert row in told.output
    assert "4096 tokens, what the model was trained for" in told.output
    assert "256 slots, the maximum" in told.output


def test_json_tells_parts_that_add_up(fit: Fit) -> None:
    device = host(fit("demo-chat", "--json"))

    parts = ("weights", "kv", "compute", "output", "context")
    assert device["estimated_bytes"] == sum(device[f"{part}_bytes"] for part in parts)
    assert device["need_bytes"] == device["estimated_bytes"]
    assert device["context_bytes"] == 0 < device["output_bytes"]
    assert device["fits"] is True


def test_a_budget_that_is_too_small_names_what_would_fit_and_exits_with_1(fit: Fit) -> None:
    profile = generation(ctx_size=4096, parallel=8)
    need_bytes = host(fit("demo-chat", "--profile", "p", "--json", files={"p.yaml": profile}))[
        "need_bytes"
    ]
    files = {
        "p.yaml": profile,
        "supervisor.yaml": {"devices": {"host": {"budget_bytes": need_bytes - 1}}},
    }

    told = fit("demo-chat", "--profile", "p", "--json", files=files)
    assert told.exit_code == 1
    device = host(told)
    assert device["fits"] is False
    assert device["largest_parallel"]["value"] == 7
    assert 2048 <= device["largest_ctx_size"]["value"] < 4096
    settings = [one["setting"].partition(":")[0] for one in device["would_fit"]]
    assert settings == ["ctx_size", "parallel"]

    words = fit("demo-chat", "--profile", "p", files=files).output
    assert "It would fit with: ctx_size: 2048 (" in words

    largest = device["largest_ctx_size"]["value"]
    for ctx_size, exit_code in ((largest, 0), (largest + 256, 1)):
        changed = files | {"p.yaml": profile | {"ctx_size": ctx_size}}
        assert fit("demo-chat", "--profile", "p", files=changed).exit_code == exit_code


def test_what_the_estimate_does_not_know_is_told(fit: Fit) -> None:
    profile = generation(extra_args=["-ot", "exps=CPU"])
    told = fit("demo-chat", "--profile", "p", files={"p.yaml": profile}).output
    assert "What -ot changes is not known to the estimate: what the server takes" in told

    profile["memory"] = {"need_bytes": "64MiB"}
    told = fit("demo-chat", "--profile", "p", files={"p.yaml": profile}).output
    assert "not known" not in told


def test_a_file_is_fitted_by_its_path_with_the_profile_of_its_type(
    fit: Fit, models_dir: Path
) -> None:
    told = json.loads(fit(models_dir / "minilm.gguf", "--json").stdout)

    assert (told["model"], told["profile"]) == ("minilm", "embedding")


def test_a_stated_need_is_told_as_such(fit: Fit) -> None:
    stated = generation(memory={"need_bytes": "3GiB"})

    told = fit("demo-chat", "--profile", "p", files={"p.yaml": stated})

    assert "The need is memory.need_bytes of the profile" in told.output
    assert "3.0 GiB" in told.output
    assert "Largest" not in told.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "there is no model 'nothing' and no such file; there are: bench-chat"),
        (("nothing.gguf",), "nothing.gguf: there is no such file"),
        (("demo-chat", "--profile", "none"), "there is no profile 'none' for generation"),
        (("demo-chat", "--profile", "embedding"), "there is no profile 'embedding' for generation"),
    ],
)
def test_what_cannot_be_meant_is_named_and_exits_with_2(
    fit: Fit, words: tuple[str, ...], said: str
) -> None:
    told = fit(*words)

    assert told.exit_code == 2
    assert said in told.stderr


def test_recurrent_models_say_that_their_cache_is_assumed_and_what_to_do(
    fit: Fit, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "state.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(8192)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_tokenizer_model("none")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    told = fit(path)

    assert "2.0 GiB (assumed)" in told.output
    assert "'mamba' keeps recurrent state: run it once, and what it takes is learned" in told.output
    assert "memory.need_bytes" in told.output
    assert "Largest ctx_size" not in told.output


async def test_what_a_controller_learned_is_told_and_can_be_forgotten(
    start_controller: StartController, tmp_path: Path, profiles_dir: Path, models_dir: Path
) -> None:
    async def ask(*words: str) -> dict[str, Any]:
        """Ask in a process of its own, as an operator does beside a controller."""
        folders = {"profiles": profiles_dir, "models": models_dir, "data": tmp_path / "data"}
        options = [f"--{name}={folder}" for name, folder in folders.items()]
        command = await asyncio.create_subprocess_exec(
            COMMAND,
            *("fit", "demo-chat", "--json", "--engine=llama-server", *options, *words),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await command.communicate()
        (device,) = [each for each in json.loads(told)["devices"] if each["device"] == "host"]
        return dict(device)

    as_shipped = {"generation.yaml": shipped("generation.yaml", threads=None)}
    controller = await start_controller(data_dir=tmp_path / "data", files=as_shipped)
    await controller.switch_to("demo-chat")
    async with asyncio.timeout(60):
        device = await ask()
        while device["learned"] is None:
            device = await ask()
    await controller.stop()

    assert device["learned"]["peak_bytes"] > 7 * MIB
    assert device["held_by_ours_bytes"] > 0
    assert (await ask("--forget"))["learned"] is None
    assert (await ask())["learned"] is None


def test_a_gpu_counts_the_drivers_context_and_what_others_hold(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = SimulatedGpu(tmp_path, total_bytes=(8 * GIB,))
    for name, value in gpu.full_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    told = json.loads(fit("demo-chat", "--json").stdout)
    (device,) = [each for each in told["devices"] if each["device"] == told["device"]]
    assert device["device"] == "gpu0"
    assert (device["context_bytes"], device["output_bytes"]) == (512 * MIB, 0)

    gpu.set_used(8 * GIB - device["need_bytes"] - device["margin_bytes"] + 1)
    told_again = fit("demo-chat", "--json")
    assert told_again.exit_code == 1
    assert json.loads(told_again.stdout)["fits"] is False
