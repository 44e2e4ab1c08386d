"""The command line's words: what they mean, and what is said of those that mean nothing."""

import os
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from supervisor import __version__
from supervisor.cli import cli
from tests.conftest import ROOT
from tests.e2e.conftest import COMMAND, change


def run(*words: str) -> Result:
    return CliRunner().invoke(cli, words)


def test_the_installed_command_tells_its_version() -> None:
    told = subprocess.run([COMMAND, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"{__version__}\n"


def test_without_a_command_it_tells_what_there_is() -> None:
    told = run()
    assert "serve" in told.output


def test_what_a_locale_has_no_letter_for_is_no_error(models_dir: Path) -> None:
    words = ("fit", "demo-chat", "--profiles", ROOT / "profiles", "--models", models_dir)
    told = subprocess.run(
        [COMMAND, *words],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 0, told.stderr
    assert "learned peak           |         ?" in told.stdout


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("--version",), ("check", "--help"), ("check",)])
def test_output_that_cannot_be_written_is_told_in_a_line(
    words: tuple[str, ...], unbuffered: str
) -> None:
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        told = subprocess.run(
            [COMMAND, *words],
            cwd=ROOT,
            env=environ,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert told.returncode == 1
    assert told.stderr == b"standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_reader_that_has_left_ends_a_command_without_a_word(unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    told = subprocess.run(
        [COMMAND, "check"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (told.returncode, told.stderr) == (1, b"")


def test_each_option_of_serve_is_told() -> None:
    told = run("serve", "--help")
    assert told.exit_code == 0
    for option in ("--host", "--port", "--profiles", "--models", "--data", "--engine"):
        assert option in told.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--port", "99999"), "--port"),
        (("--port", "-1"), "--port"),
        (("--port", "many"), "--port"),
        (("--engine", "steam"), "--engine"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_arguments_that_mean_nothing_are_named(
    arguments: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    told = run("serve", "--profiles", str(tmp_path / "none"), *arguments)
    assert told.exit_code == 2
    assert named in told.output
    assert "there is no such folder" not in told.output


def test_a_missing_configuration_folder_is_named(tmp_path: Path) -> None:
    told = run("serve", "--profiles", str(tmp_path / "none"))
    assert told.exit_code == 2
    assert f"{tmp_path}/none: there is no such folder; name it with --profiles" in told.output


def check_files_alone(folder: Path, *words: str) -> Result:
    """Check a folder where there is neither a model nor an engine."""
    there_is_nothing = {"LLAMA_SERVER_BIN": "/nowhere", "PATH": ""}
    arguments = ("check", str(folder), "--models", "/nowhere", "--configuration-only", *words)
    return CliRunner().invoke(cli, arguments, env=there_is_nothing)


def test_configuration_is_checked_without_models_or_an_engine(profiles: Path) -> None:
    told = check_files_alone(profiles)

    assert told.exit_code == 0, told.output
    assert told.output == f"{profiles}: 3 models, 3 profiles, no problems\n"


def test_key_whose_variable_is_not_set_is_warned_of(profiles: Path) -> None:
    jobs = {"callback_hosts": ["hooks.example"], "callback_key_env": "NO_SUCH_KEY"}
    change(profiles / "supervisor.yaml", lambda fields: fields.update(jobs=jobs))

    told = check_files_alone(profiles)

    assert told.exit_code == 0, told.output
    assert "warning: supervisor.yaml: jobs.callback_key_env: NO_SUCH_KEY is not set" in told.output


def test_configuration_that_is_checked_alone_has_its_problems_named(profiles: Path) -> None:
    change(profiles / "generation.yaml", lambda fields: fields.update(paralel=4))
    change(profiles / "models.yaml", lambda fields: fields.update(default_model="nobody"))

    told = check_files_alone(profiles)

    assert told.exit_code == 2
    assert "paralel" in told.output
    assert "there is no model 'nobody'" in told.output


def test_default_model_that_only_a_scan_can_find_is_no_problem(profiles: Path) -> None:
    scanned = {"models_dir": "more", "default_model": "nobody"}
    change(profiles / "models.yaml", lambda fields: fields.update(scanned))

    assert check_files_alone(profiles).exit_code == 0


def test_profile_is_none_of_a_folder(profiles: Path) -> None:
    told = check_files_alone(profiles, "--profile", "elsewhere")

    assert told.exit_code == 2
    assert "check elsewhere" in told.output


def test_explanation_needs_more_than_the_configuration(profiles: Path) -> None:
    told = check_files_alone(profiles, "--explain", "demo-chat")

    assert told.exit_code == 2
    assert "--explain" in told.output


def test_url_that_is_none_is_told_in_a_line() -> None:
    told = run("jobs", "--url", "http://127.0.0.1:99999")

    assert told.exit_code == 69
    assert told.stderr.count("\n") == 1
    assert "'http://127.0.0.1:99999' is no controller's URL (Port out of range" in told.stderr


def test_url_that_is_no_store_is_no_place_to_copy_to() -> None:
    told = run("collections", "copy", "notes", "--to", "qdrant:6333")

    assert told.exit_code == 2
    assert "--to: must begin with http:// or https://" in told.output


def test_settings_that_hide_the_controllers_address_are_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "supervisor.yaml").write_text("server: {port: 9000")

    told = run("search", "soup", "--profiles", str(tmp_path))

    assert told.exit_code == 69
    assert told.stderr.count("\n") == 1
    assert f"{tmp_path}/supervisor.yaml:" in told.stderr
    assert "name another with --url" in told.stderr
