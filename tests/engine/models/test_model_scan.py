"""A folder of models: each GGUF becomes one, typed by its header, under a name that is safe."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from supervisor.config.load import load
from supervisor.config.scanned import Scan
from supervisor.core.machine.values import Mode
from supervisor.engine.kinds.flags import server_flags
from supervisor.engine.models.model_scan import safe_name, scan_models
from supervisor.engine.port import Address, ServerStart


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
    return {model.name: model for model in scan_models(folder).models}


def left_out_of(folder: Path) -> Mapping[str, str]:
    return {one.path.removeprefix(f"{folder}/"): one.reason for one in scan_models(folder).left_out}


def test_an_embedding_model_has_the_tokenizer_beside_it(tmp_path: Path, models_dir: Path) -> None:
    for folder, models, tokenizers in (
        ("named", ("a-Q8_0.gguf", "a.gguf", "b.gguf"), ("a.tokenizer.json", "tokenizer.json")),
        ("alone", ("c-F16.gguf", "c-Q8_0.gguf"), ("tokenizer.json",)),
        ("own", ("d-F16.gguf",), ("d-F16.tokenizer.json", "d.tokenizer.json")),
    ):
        (tmp_path / folder).mkdir()
        for name in models:
            shutil.copy(models_dir / "minilm.gguf", tmp_path / folder / name)
        for name in tokenizers:
            (tmp_path / folder / name).write_text("{}")
    write_gguf(tmp_path / "chat" / "chat.gguf", "llama")
    (tmp_path / "chat" / "tokenizer.json").write_text("{}")

    found = {
        name: model.tokenizer_path and str(model.tokenizer_path.relative_to(tmp_path))
        for name, model in found_in(tmp_path).items()
    }

    assert found == {
        "a-Q8_0": "named/a.tokenizer.json",
        "a": "named/a.tokenizer.json",
        "b": None,
        "c-F16": "alone/tokenizer.json",
        "c-Q8_0": "alone/tokenizer.json",
        "d-F16": "own/d-F16.tokenizer.json",
        "chat": None,
    }


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
        ("mmproj-seer.gguf", "clip", {}),
        ("mmproj-Seer-BF16.gguf", "clip", {}),
        ("seer-Q8_0-mmproj.gguf", "llama", {"type": "mmproj"}),
        ("seer.mmproj.gguf", "clip", {}),
    ],
)
def test_projector_belongs_to_the_model_beside_it_that_has_its_name(
    tmp_path: Path, file_name: str, architecture: str, metadata: dict[str, str]
) -> None:
    projector = write_gguf(tmp_path / file_name, architecture, **metadata)
    write_gguf(tmp_path / "seer-Q4_K_M.gguf", "llama")
    write_gguf(tmp_path / "other.gguf", "llama")
    write_gguf(tmp_path / "deeper" / "seer.gguf", "llama")

    found = found_in(tmp_path)

    assert {name: model.projector_path for name, model in found.items()} == {
        "seer-Q4_K_M": projector,
        "other": None,
        "seer": None,
    }
    assert not left_out_of(tmp_path)


def test_projector_of_nobody_disables_no_model_and_is_told(tmp_path: Path) -> None:
    write_gguf(tmp_path / "mmproj-f16.gguf", "clip")
    write_gguf(tmp_path / "mmproj-vectors.gguf", "clip")
    write_gguf(tmp_path / "mmproj-chat-f16.gguf", "clip")
    first = write_gguf(tmp_path / "mmproj-chat-Q8_0.gguf", "clip")
    write_gguf(tmp_path / "chat.gguf", "llama")
    write_gguf(tmp_path / "vectors.gguf", "bert")

    found = found_in(tmp_path)

    assert {name: model.projector_path for name, model in found.items()} == {
        "chat": first,
        "vectors": None,
    }
    reasons = left_out_of(tmp_path)
    assert list(reasons) == ["mmproj-chat-f16.gguf", "mmproj-f16.gguf", "mmproj-vectors.gguf"]
    assert "already has a projector" in reasons["mmproj-chat-f16.gguf"]
    assert "no model beside it has its name" in reasons["mmproj-f16.gguf"]
    assert "embedding model" in reasons["mmproj-vectors.gguf"]


def test_file_that_cannot_be_a_model_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!DOCTYPE html>")
    write_gguf(tmp_path / "model.gguf", "llama")

    assert list(found_in(tmp_path)) == ["model"]
    assert list(left_out_of(tmp_path)) == ["page.gguf"]
    assert "HTML page" in left_out_of(tmp_path)["page.gguf"]


def test_models_of_one_name_get_their_folders_names(tmp_path: Path) -> None:
    for name in ("qwen/model", "gemma/model", "model", "a/x/deep", "b/x/deep", "a/only"):
        write_gguf(tmp_path / f"{name}.gguf", "llama")

    found = found_in(tmp_path)

    assert {name: str(model.path.relative_to(tmp_path)) for name, model in found.items()} == {
        "a-x-deep": "a/x/deep.gguf",
        "b-x-deep": "b/x/deep.gguf",
        "gemma-model": "gemma/model.gguf",
        "model": "model.gguf",
        "only": "a/only.gguf",
        "qwen-model": "qwen/model.gguf",
    }
    assert not left_out_of(tmp_path)


def test_folder_that_looks_like_a_model_is_left_out_unless_one_is_in_it(tmp_path: Path) -> None:
    """A mount of a file that is not there makes such a folder."""
    (tmp_path / "gone.gguf").mkdir()
    write_gguf(tmp_path / "chat.GGUF" / "inner.gguf", "llama")

    assert list(found_in(tmp_path)) == ["inner"]
    assert left_out_of(tmp_path) == {"gone.gguf": "it is a folder, and no model is in it"}


def test_name_that_cannot_be_told_apart_is_left_out_and_told(tmp_path: Path) -> None:
    write_gguf(tmp_path / "my model.gguf", "llama")
    write_gguf(tmp_path / "my-model.gguf", "llama", name="another")

    assert list(found_in(tmp_path)) == ["my-model"]
    assert "rename one of them" in left_out_of(tmp_path)["my-model.gguf"]


def test_capital_endings_and_linked_folders_are_found_once(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "models"
    write_gguf(store / "inside" / "LOUD.GGUF", "llama")
    folder.mkdir()
    (folder / "linked").symlink_to(store)
    (folder / "round").symlink_to(folder)
    (folder / "same.gguf").symlink_to(store / "inside" / "LOUD.GGUF")

    assert [str(one.path) for one in found_in(folder).values()] == [
        str(folder / "linked" / "inside" / "LOUD.GGUF")
    ]
    assert "the same file" in left_out_of(folder)["same.gguf"]


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    write_gguf(tmp_path / "._model.gguf", "llama")
    write_gguf(tmp_path / ".cache" / "half.gguf", "llama")

    assert scan_models(tmp_path) == Scan()


def test_name_that_is_not_utf_8_is_told_in_printable_words(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "good.gguf", "llama")
    os.rename(path, os.fsencode(tmp_path) + b"/caf\xe9.gguf")  # noqa: PTH104 - bytes, not text

    (left_out,) = scan_models(tmp_path).left_out

    assert left_out.path.endswith("caf\\xe9.gguf")
    assert left_out.describe().encode("utf-8")
    assert not found_in(tmp_path)


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("Qwen3-4B.Q4_K_M.gguf", "Qwen3-4B.Q4_K_M"),
        ("my model (1).gguf", "my-model-1"),
        ("한국어.gguf", "한국어"),
        ("日本語 モデル.gguf", "日本語-モデル"),
        ("हिन्दी.gguf", "हिन्दी"),
        ("cafe\u0301.gguf", "caf\u00e9"),
        ("\u200b.gguf", "model"),
        ("-rf.gguf", "rf"),
        ("big-00001-of-00003.gguf", "big"),
    ],
)
def test_names_are_safe_for_urls_and_shells(file_name: str, name: str) -> None:
    assert safe_name(Path(file_name)) == name


def test_scanned_model_runs_with_its_projector(tmp_path: Path) -> None:
    write_gguf(tmp_path / "models" / "model.gguf", "llama")
    projector = write_gguf(tmp_path / "models" / "mmproj-model.gguf", "clip")
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "models.yaml").write_text("models_dir: .\n")
    (profiles / "generation.yaml").write_text("mode: generation\n")

    configuration = load(profiles, tmp_path / "models", {}, scan_models)

    flags = server_flags(ServerStart(model=configuration.resolve("model"), address=Address(port=1)))
    assert flags[flags.index("--mmproj") + 1] == str(projector)


def test_entry_names_its_projector(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_gguf(models / "model.gguf", "llama")
    write_gguf(models / "mmproj-model.gguf", "clip", name="beside")
    projector = write_gguf(models / "mmproj-f16.gguf", "clip")
    profiles = tmp_path / "profiles"
    profiles.mkdir()
    (profiles / "generation.yaml").write_text("mode: generation\n")
    catalogue = "models_dir: .\nmodels:\n  mine:\n    path: model.gguf\n"
    (profiles / "models.yaml").write_text(catalogue)
    without = load(profiles, models, {}, scan_models)
    (profiles / "models.yaml").write_text(catalogue + "    mmproj: mmproj-f16.gguf\n")

    configuration = load(profiles, models, {}, scan_models)

    assert without.resolve("mine").projector_path is None
    assert [one.path for one in without.left_out] == [
        str(projector),
        str(models / "mmproj-model.gguf"),
    ]
    assert "write it there as `mmproj`" in without.left_out[1].reason
    assert configuration.resolve("mine").projector_path == projector
    (left_out,) = configuration.left_out
    assert "another projector, mmproj-f16.gguf" in left_out.reason


def test_name_of_an_entry_is_not_given_to_a_found_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "chat.gguf", "llama")
    (tmp_path / "generation.yaml").write_text("mode: generation\n")
    (tmp_path / "models.yaml").write_text(
        "models_dir: .\nmodels:\n  mine: {path: /elsewhere/x.gguf, aliases: [chat]}\n"
    )

    configuration = load(tmp_path, tmp_path, {}, scan_models)

    assert list(configuration.catalogue.models) == ["mine"]
    (left_out,) = configuration.left_out
    assert "'chat' already stands for 'mine'" in left_out.reason
