"""What `llama-supervisor check` finds beyond the YAML, told where somebody wrote it."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.config.load import load, read
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.model_check import model_problems, require_models_dir
from supervisor.engine.models.model_scan import scan_models
from supervisor.errors import ConfigError

Check = Callable[..., list[str]]

CHAT = {"path": "demo-chat.gguf", "profile": "chat"}
CHAT_PROFILE = "mode: generation\n"
ENCODER = {"path": "minilm.gguf"}
OLD_FLAGS = (
    *("--model F", "--host it.sock", "--port N", "--ctx-size N", "--batch-size N"),
    *("--ubatch-size N", "--parallel N", "--cache-type-k T", "--cache-type-v T", "--flash-attn"),
    *("--n-gpu-layers N", "--metrics"),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "profiles"
    path.mkdir()
    return path


@pytest.fixture
def check(folder: Path, models_dir: Path, llama_server_bin: Path) -> Check:
    """Writes files, by name and content, and returns the problems that their models have."""

    def run(
        files: Mapping[str, Any], *, engine: str = "auto", binary: Path = llama_server_bin
    ) -> list[str]:
        for name, content in files.items():
            text = content if isinstance(content, str) else yaml.safe_dump(content)
            (folder / name).write_text(text)
        engines = Engines(os.environ, binary, engine)
        return list(model_problems(load(folder, models_dir, {}), engines))

    return run


def test_a_field_is_told_where_the_profile_says_it(check: Check, folder: Path) -> None:
    profile = "mode: generation\nparallel: 1\ncache_reuse: 256\n"
    problems = check(
        {"chat.yaml": profile, "models.yaml": {"models": {"one": CHAT}}},
        engine="llama-cpp-python",
    )
    wanted = "with llama-cpp-python it must be 0, not 256: it does not shift cached chunks"
    assert problems == [f"{folder}/chat.yaml:3: cache_reuse: {wanted}"]


def test_an_inherited_field_is_told_where_it_is_inherited_from(check: Check, folder: Path) -> None:
    files = {
        "base.yaml": "mode: generation\n\nparallel: 3\n",
        "chat.yaml": "extends: base\nctx_size: 512\n",
        "models.yaml": {"models": {"one": CHAT}},
    }
    [problem] = check(files, engine="llama-cpp-python")
    assert problem.startswith(f"{folder}/base.yaml:3: parallel: ")


def test_an_overridden_field_is_told_in_the_catalogue(check: Check, folder: Path) -> None:
    models = (
        "models:\n"
        "  one:\n"
        "    path: demo-chat.gguf\n"
        "    profile: chat\n"
        "    overrides:\n"
        "      parallel: 2\n"
    )
    files = {"chat.yaml": "mode: generation\nparallel: 1\n", "models.yaml": models}
    [problem] = check(files, engine="llama-cpp-python")
    assert problem.startswith(f"{folder}/models.yaml:6: models.one.overrides.parallel: ")


def test_a_profile_of_many_models_is_told_once(check: Check) -> None:
    files = {
        "chat.yaml": "mode: generation\nparallel: 2\nfit: true\n",
        "models.yaml": {"models": {f"model-{number}": CHAT for number in range(5)}},
    }
    assert len(check(files, engine="llama-cpp-python")) == 2


def test_a_field_that_nobody_wrote_is_told_where_the_profile_is_chosen(
    check: Check, folder: Path
) -> None:
    files = {
        "chat.yaml": "mode: generation\n",
        "models.yaml": "models:\n  one:\n    path: demo-chat.gguf\n    profile: chat\n",
    }
    [problem] = check(files, engine="command")
    assert problem.startswith(f"{folder}/models.yaml:4: models.one.profile: engine: ")
    assert "needs a section `command:`" in problem


def test_a_tokenizer_that_the_engine_would_pass_over_is_told(check: Check, folder: Path) -> None:
    model = {"path": "minilm.gguf", "type": "embedding", "profile": "texts"}
    texts = "mode: embedding\nparallel: 1\nctx_size: 512\nbatch_size: 512\n"
    files = {
        "texts.yaml": texts,
        "models.yaml": {
            "models": {"one": model, "two": {**model, "tokenizer": "minilm.tokenizer.json"}}
        },
    }
    [problem] = check(files, engine="llama-cpp-python")
    assert "llama-cpp-python takes no token ids" in problem
    assert "'two'" in problem
    assert check(files) == []


def test_an_engine_that_is_not_here_is_told_at_the_engine_field(
    check: Check, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    files = {
        "chat.yaml": "mode: generation\nengine: llama-cpp-python\n",
        "models.yaml": {"models": {"one": CHAT}},
    }
    [problem] = check(files)
    assert problem.startswith(f"{folder}/chat.yaml:2: engine: llama-cpp-python is not installed")


def test_a_build_that_lacks_a_flag_is_told_at_the_field(
    check: Check, folder: Path, tmp_path: Path
) -> None:
    old = tmp_path / "llama-server"
    old.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(f"'{flag}'" for flag in OLD_FLAGS))
    old.chmod(0o755)
    files = {
        "chat.yaml": "mode: generation\nthreads: 2\ncache_ram_mib: 64\n",
        "models.yaml": {"models": {"one": CHAT}},
    }
    remedy = "leave the field out, or use another build"
    assert check(files, binary=old) == [
        f"{folder}/chat.yaml:3: cache_ram_mib: {old} does not know --cache-ram; {remedy}",
        f"{folder}/chat.yaml:2: threads: {old} does not know --threads; use another build",
    ]


def test_an_encoder_that_is_to_generate_is_told(check: Check, folder: Path) -> None:
    """llama-server loads it, and answers each chat with 500; nobody has to write a type."""
    files = {"generation.yaml": CHAT_PROFILE, "models.yaml": {"models": {"a": ENCODER}}}
    (problem,) = check(files)
    assert problem.startswith(f"{folder}/models.yaml:3: models.a.path: ")
    assert "bert, make vectors only; write `type: embedding` for it" in problem


def test_a_twin_whose_profile_is_not_there_is_told_by_the_catalogue_alone(
    folder: Path, models_dir: Path, engines: Engines
) -> None:
    (folder / "embedding.yaml").write_text("mode: embedding\n")
    twin = ENCODER | {"type": "embedding", "spill": "nobody"}
    (folder / "models.yaml").write_text(yaml.safe_dump({"models": {"a": twin}}))

    reading = read(folder, models_dir, {})

    assert reading.configuration is not None
    assert len(reading.problems) == 1
    assert list(model_problems(reading.configuration, engines)) == []


def test_a_folder_to_scan_that_is_not_there_is_told(folder: Path, models_dir: Path) -> None:
    (folder / "models.yaml").write_text("models: {}\nmodels_dir: nowhere\n")
    with pytest.raises(ConfigError) as raised:
        require_models_dir(load(folder, models_dir, {}, scan_models))
    (problem,) = raised.value.problems
    assert problem.startswith(f"{folder}/models.yaml:2: models_dir: {models_dir}/nowhere: there is")


def test_a_flag_with_its_value_in_one_word_is_told(check: Check) -> None:
    profile = CHAT_PROFILE + "extra_args: [--n-cpu-moe 4]\n"
    (problem,) = check({"chat.yaml": profile, "models.yaml": {"models": {"one": CHAT}}})
    assert "does not know --n-cpu-moe 4; write a flag and its value as two words" in problem


def test_a_bad_file_and_a_bad_profile_are_told_together(check: Check, folder: Path) -> None:
    files = {
        "chat.yaml": "mode: generation\nextra_args: [--no-such-flag]\n",
        "models.yaml": {"models": {"one": {**CHAT, "path": "gone.gguf"}}},
    }
    file_problem, profile_problem = check(files)
    assert "models.one.path: " in file_problem
    assert "gone.gguf" in file_problem
    assert profile_problem.startswith(f"{folder}/chat.yaml:2: extra_args: ")
    assert "--no-such-flag" in profile_problem


@pytest.mark.parametrize("engine", ["llama-server", "embedded"])
def test_the_shipped_configuration_has_no_problems(
    profiles_dir: Path, models_dir: Path, llama_server_bin: Path, engine: str
) -> None:
    engines = Engines(os.environ, llama_server_bin, engine)
    assert list(model_problems(load(profiles_dir, models_dir, {}), engines)) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no such file"),
        ("{", "it is no tokenizer.json (Input data was truncated); take the one of the model's"),
        ('{"vocab": {}}', "it is no tokenizer.json (Object missing required field `model`)"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_told(
    check: Check, folder: Path, tmp_path: Path, content: str | None, problem: str
) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    files = {
        "embedding.yaml": "mode: embedding\n",
        "models.yaml": f"models:\n  a:\n    path: minilm.gguf\n    type: embedding\n"
        f"    tokenizer: {path}\n",
    }
    [told] = check(files)
    assert told.startswith(f"{folder}/models.yaml:5: models.a.tokenizer: {path}: {problem}")


def test_a_missing_reader_of_tokenizers_is_told_with_the_remedy(
    check: Check, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    model = {"path": "minilm.gguf", "type": "embedding", "tokenizer": "minilm.tokenizer.json"}
    files = {"embedding.yaml": "mode: embedding\n", "models.yaml": {"models": {"a": model}}}
    [told] = check(files)
    assert "models.a.tokenizer: " in told
    assert told.endswith("refused: pip install 'llama-supervisor[embedding]'")
