"""A folder of models: each GGUF becomes one, typed by its header, under a name that is safe."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from structlog.testing import capture_logs

from supervisor.config.load import load
from supervisor.core.machine.values import Mode
from supervisor.engine.kinds.flags import server_flags
from supervisor.engine.models.model_scan import safe_name, scan_models
from supervisor.engine.port import Address


def write_gguf(path: Path, architecture: str, **metadata: Any) -> Path:
    """Write a small whole file; `split=(number, count)` makes it a shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    if split := metadata.pop("split", None):
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    for name, value in metadata.items():
        writer.add_string(f"general.{name}", value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def found_in(folder: Path) -> Mapping[str, Any]:
    return {model.name: model for model in scan_models(folder)}


def test_each_file_becomes_a_model_of_the_type_that_its_header_says(
    tmp_path: Path, models_dir: Path
) -> None:
    shutil.copy(models_dir / "minilm.gguf", tmp_path)
    (tmp_path / "deeper").mkdir()
    shutil.copy(models_dir / "demo-chat.gguf", tmp_path / "deeper")

    found = found_in(tmp_path)

    assert {name: model.mode for name, model in found.items()} == {
        "minilm": Mode.EMBEDDING,
        "demo-chat": Mode.GENERATION,
    }
    assert found["demo-chat"].path == tmp_path / "deeper" / "demo-chat.gguf"


def test_model_in_shards_is_one_model_without_the_shards_numbers(tmp_path: Path) -> None:
    for number in (1, 2):
        name = f"big-{number:05}-of-00002.gguf"
        write_gguf(tmp_path / name, "llama", split=(number - 1, 2))

    found = found_in(tmp_path)

    assert list(found) == ["big"]
    assert found["big"].path == tmp_path / "big-00001-of-00002.gguf"


@pytest.mark.parametrize(
    ("file_name", "architecture", "metadata"),
    [
        ("mmproj-f16.gguf", "clip", {}),
        ("vision.gguf", "clip", {}),
        ("eyes.gguf", "llama", {"type": "mmproj"}),
    ],
)
def test_projector_belongs_to_the_model_beside_it(
    tmp_path: Path, file_name: str, architecture: str, metadata: dict[str, str]
) -> None:
    projector = write_gguf(tmp_path / "seeing" / file_name, architecture, **metadata)
    write_gguf(tmp_path / "seeing" / "model.gguf", "llama")
    write_gguf(tmp_path / "blind" / "other.gguf", "llama")

    found = found_in(tmp_path)

    assert {name: model.projector_path for name, model in found.items()} == {
        "model": projector,
        "other": None,
    }


def test_file_that_cannot_be_a_model_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    write_gguf(tmp_path / "model.gguf", "llama")

    with capture_logs() as lines:
        found = found_in(tmp_path)

    assert list(found) == ["model"]
    assert [(line["event"], line["path"]) for line in lines] == [
        ("scan.left_out", str(tmp_path / "page.gguf"))
    ]


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("Qwen3-4B.Q4_K_M.gguf", "Qwen3-4B.Q4_K_M"),
        ("my model (1).gguf", "my-model-1"),
        ("한국어.gguf", "model"),
        ("-rf.gguf", "rf"),
        ("big-00001-of-00003.gguf", "big"),
    ],
)
def test_names_are_safe_for_urls_and_shells(file_name: str, name: str) -> None:
    assert safe_name(Path(file_name)) == name


def test_scanned_model_runs_with_its_projector(tmp_path: Path) -> None:
    write_gguf(tmp_path / "models" / "model.gguf", "llama")
    projector = write_gguf(tmp_path / "models" / "mmproj.gguf", "clip")
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "models.yaml").write_text("models_dir: .\n")
    (profiles / "generation.yaml").write_text("mode: generation\n")

    configuration = load(profiles, tmp_path / "models", {}, scan_models)

    flags = server_flags(configuration.resolve("model"), Address(port=1))
    assert flags[flags.index("--mmproj") + 1] == str(projector)
