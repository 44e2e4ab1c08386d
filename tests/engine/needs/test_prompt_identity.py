"""Prompts are restored only where every file that a server computes with is the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor.engine.models.model_file import inspect_model_file
from supervisor.engine.needs.prompt_identity import prompt_identity
from supervisor.engine.port import EngineIdentity

ENGINE = EngineIdentity(name="llama-server", location="/bin/llama-server", version="1")
Identify = Callable[..., str]


@pytest.fixture
def identify(resolved_with: Callable[..., Any], models_dir: Path) -> Identify:
    """Names what a server with further arguments caches of a prompt."""
    file = inspect_model_file(models_dir / "demo-chat.gguf")

    def name(*arguments: str) -> str:
        return prompt_identity(resolved_with(extra_args=arguments), file, ENGINE)

    return name


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter beside another one, in the folder that servers run in."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("mine.gguf", "other.gguf"):
        (folder / name).write_bytes(b"old")
    return folder / "mine.gguf"


@pytest.mark.parametrize(
    "words",
    [
        ("--lora", "{folder}/mine.gguf"),
        ("--lora={folder}/mine.gguf",),
        ("--lora", "mine.gguf"),
        ("--lora", "./mine.gguf"),
        ("--lora", "{folder}/other.gguf,{folder}/mine.gguf"),
        ("--lora={folder}/other.gguf,mine.gguf",),
        ("--lora-scaled", "{folder}/mine.gguf:0.5"),
        ("--lora-scaled=other.gguf:1,mine.gguf:-1.5e-1",),
        ("--control-vector-scaled", "mine.gguf:.5,{folder}/other.gguf:1"),
        ("--control-vector-scaled", "mine.gguf", "0.5"),
    ],
)
def test_an_adapter_that_is_replaced_in_place_makes_it_another(
    identify: Identify, adapter: Path, words: tuple[str, ...]
) -> None:
    arguments = [word.format(folder=adapter.parent) for word in words]
    before = identify(*arguments)
    assert identify(*arguments) == before
    adapter.unlink()
    adapter.write_bytes(b"newer")
    assert identify(*arguments) != before


@pytest.mark.parametrize("name", ["a,b.gguf", "a=b.gguf", "a:1"])
def test_a_name_with_marks_in_it_is_a_name(identify: Identify, adapter: Path, name: str) -> None:
    file = adapter.rename(adapter.with_name(name))
    before = identify(f"--lora={file}")
    file.write_bytes(b"newer")
    assert identify(f"--lora={file}") != before


@pytest.mark.parametrize("word", ["x" * 5000, "a\0b", "{{ messages }},\n:1", "", ","])
def test_an_argument_that_names_no_file_may_be_anything(identify: Identify, word: str) -> None:
    assert identify("--chat-template", word) == identify("--chat-template", word)
