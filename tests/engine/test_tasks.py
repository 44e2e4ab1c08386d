"""What a model can be asked: its type, its pooling and its projector say it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.load import load
from supervisor.engine.models.model_scan import scan_models
from supervisor.engine.tasks import ModelTask, tasks_of
from tests.conftest import write_configuration
from tests.gateway.conftest import shipped

GENERATION, EMBEDDING = frozenset({ModelTask.GENERATION}), frozenset({ModelTask.EMBEDDING})


def write_gguf(path: Path, architecture: str, **metadata: bool | int) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        kind = gguf.GGUFValueType.BOOL if isinstance(value, bool) else gguf.GGUFValueType.UINT32
        writer.add_key_value(f"{architecture}.{name}", value, kind)
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def configured(folder: Path, profiles_dir: Path, **catalogue: Any) -> Configuration:
    changed = shipped("models.yaml", **catalogue)
    write_configuration(folder, profiles_dir, None, {"models.yaml": changed})
    return load(folder, folder, {}, scan_models)


def alone(folder: Path, profiles_dir: Path, models: dict[str, Any]) -> ResolvedModel:
    """Return the one model `m`, from a catalogue with nothing else."""
    catalogue = {"default_model": None, "default_models": {}, "models": models}
    return configured(folder, profiles_dir, **catalogue).resolve("m")


def test_type_says_what_a_model_does(tmp_path: Path, profiles_dir: Path) -> None:
    configuration = configured(tmp_path, profiles_dir)

    assert tasks_of(configuration.resolve("demo-chat")) == GENERATION
    assert tasks_of(configuration.resolve("minilm")) == EMBEDDING


def test_found_reranker_reranks_and_embeds_nothing(tmp_path: Path, profiles_dir: Path) -> None:
    found = tmp_path / "found"
    found.mkdir()
    write_gguf(found / "ranker.gguf", "bert", pooling_type=4)
    write_gguf(found / "embedder.gguf", "bert", pooling_type=1)

    configuration = configured(tmp_path, profiles_dir, models_dir="found")

    assert configuration.resolve("ranker").profile.pooling == "rank"  # else llama-server refuses
    assert tasks_of(configuration.resolve("ranker")) == {ModelTask.RERANKING}
    assert tasks_of(configuration.resolve("embedder")) == EMBEDDING


@pytest.mark.parametrize("hears", [True, False])
def test_model_hears_by_a_projector_with_an_audio_encoder(
    tmp_path: Path, profiles_dir: Path, *, hears: bool
) -> None:
    write_gguf(tmp_path / "senses.gguf", "clip", has_vision_encoder=True, has_audio_encoder=hears)
    models = {"m": {"path": "m.gguf", "mmproj": "senses.gguf"}}

    tasks = tasks_of(alone(tmp_path, profiles_dir, models))

    assert (ModelTask.TRANSCRIPTION in tasks) is hears


def test_program_of_the_operators_own_may_do_all_that_its_type_can(
    tmp_path: Path, profiles_dir: Path
) -> None:
    own = {"engine": "command", "command": {"argv": ["serve", "{port}"]}}
    models = {"m": {"path": "m.gguf", "type": "embedding", "overrides": own}}

    tasks = tasks_of(alone(tmp_path, profiles_dir, models))

    assert tasks == {ModelTask.EMBEDDING, ModelTask.RERANKING}
