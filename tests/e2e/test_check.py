"""`check` goes through all its stages, and `serve` refuses what `check` refuses."""

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from supervisor.cli import cli


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound configuration, for a test to spoil."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "generation.yaml").write_text("mode: generation\n")
    (folder / "embedding.yaml").write_text("mode: embedding\n")
    (folder / "models.yaml").write_text("models:\n  chat:\n    path: demo-chat.gguf\n")
    return folder


@pytest.fixture
def run(
    folder: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch, llama_server_bin: Path
) -> "Runner":
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(llama_server_bin))
    return Runner(folder, models_dir)


class Runner:
    """Runs a command in this process; what it says, the folder's name left out."""

    def __init__(self, folder: Path, models_dir: Path) -> None:
        self._folder = folder
        self._models_dir = models_dir

    def check(self, *words: str) -> tuple[int, list[str]]:
        arguments = ["check", str(self._folder), "--models", str(self._models_dir), *words]
        return self._run(arguments)

    def serve(self, *words: str) -> tuple[int, list[str]]:
        return self._run(["serve", "--profiles", str(self._folder), *words])

    def _run(self, arguments: list[str]) -> tuple[int, list[str]]:
        result = CliRunner().invoke(cli, arguments)
        return result.exit_code, result.output.replace(f"{self._folder}/", "").splitlines()


def test_check_tells_the_problems_of_all_stages_at_once(folder: Path, run: Runner) -> None:
    """A broken profile, a broken entry, broken settings, a clash; and what engine and files say."""
    (folder / "embedding.yaml").write_text("mode: embedding\nparallel: many\n")
    (folder / "supervisor.yaml").write_text("server: {port: 99999}\n")
    (folder / "flagged.yaml").write_text("mode: generation\nextra_args: [--no-such-flag]\n")
    (folder / "models.yaml").write_text(
        "models:\n"
        "  chat: {path: demo-chat.gguf, profile: flagged, aliases: [one, one]}\n"
        "  other: {path: demo-chat.gguf, aliases: [one, one]}\n"
        "  gone: {path: gone.gguf}\n"
        "  typed: {path: minilm.gguf, type: embedding}\n"
        "  odd: {path: 5}\n"
    )

    code, lines = run.check()

    assert code == 2
    for words in (
        "embedding.yaml:2: parallel: must be a whole number",
        "supervisor.yaml:1: server.port: must be",
        "models.yaml:3: models.other.aliases: 'one' already names 'chat'",
        "models.yaml:6: models.odd.path: must be text",
        "flagged.yaml:2: extra_args",
        "models.yaml:4: models.gone.path:",
    ):
        assert len([line for line in lines if line.startswith(words)]) == 1, (words, lines)
    assert len(lines) == 6, lines


def test_check_without_an_engine_still_looks_at_the_files(
    folder: Path, run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLAMA_SERVER_BIN", str(tmp_path / "none"))
    (folder / "models.yaml").write_text("models:\n  gone: {path: gone.gguf}\n")

    code, lines = run.check()

    assert code == 2
    assert len(lines) == 2, lines
    assert str(tmp_path / "none") in lines[0]
    assert "models.gone.path" in lines[1]


def test_check_finds_settings_that_the_model_cannot_have(folder: Path, run: Runner) -> None:
    (folder / "embedding.yaml").write_text("mode: embedding\nparallel: 3\nubatch_size: 512\n")
    (folder / "models.yaml").write_text("models:\n  e: {path: minilm.gguf, type: embedding}\n")

    code, lines = run.check()

    assert code == 2
    assert "512 is not a multiple of 3" in lines[0]


def test_check_lists_what_the_scan_left_out(
    folder: Path, run: Runner, models_dir: Path, tmp_path: Path
) -> None:
    scanned = tmp_path / "scanned"
    scanned.mkdir()
    shutil.copy(models_dir / "demo-chat.gguf", scanned)
    (scanned / "page.gguf").write_text("<html>")
    (folder / "models.yaml").write_text(f"models_dir: {scanned}\n")

    code, lines = run.check()

    assert code == 0, lines
    assert lines[0].startswith(f"{scanned}/page.gguf: left out: not a GGUF file")
    assert lines[1].endswith("1 model, 2 profiles, no problems")


def test_models_folder_whose_name_is_not_utf_8_is_named(run: Runner, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    odd.mkdir()

    for told in (run.check("--models", str(odd)), run.serve("--models", str(odd))):
        assert told[0] == 2
        assert told[1][-1].strip().endswith("caf\\xe9: its name is not UTF-8; rename it")


@pytest.mark.parametrize("name", ["._generation.yaml", ".half.yaml", ".#models.yaml"])
def test_hidden_files_are_ignored(folder: Path, run: Runner, name: str) -> None:
    (folder / name).write_bytes(b"\x00\x05\x16\x07half: [")

    assert run.check()[0] == 0


def test_file_that_ends_in_yml_is_named(folder: Path, run: Runner) -> None:
    (folder / "mine.yml").write_text("mode: generation\n")

    assert run.check() == (2, ["mine.yml:1: file: is not read; rename it mine.yaml"])


@pytest.mark.parametrize("name", ['""', '"  "', '"a\\nb"'])
def test_name_that_cannot_be_said_is_refused(folder: Path, run: Runner, name: str) -> None:
    (folder / "models.yaml").write_text(
        f"models:\n  {name}: {{path: demo-chat.gguf}}\n"
        f"  chat: {{path: demo-chat.gguf, aliases: [{name}]}}\n"
    )

    code, lines = run.check()

    assert code == 2
    assert lines[0].startswith("models.yaml:2: models: ")
    assert any(line.startswith("models.yaml:3: models.aliases: ") for line in lines)


def test_serve_refuses_a_missing_models_folder_as_check_does(folder: Path, run: Runner) -> None:
    nowhere = folder.parent / "nope"

    served, said = run.serve("--models", str(nowhere))
    checked, lines = run.check("--models", str(nowhere))

    assert (served, checked) == (2, 2)
    sentence = f"--models {nowhere}: there is no such folder; it should hold the files of chat"
    assert lines == [sentence]
    assert said[-1].strip() == sentence
