"""Which files of folders are documents, and what is said of those that are left out."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from supervisor.client.files import FoundFile, LeftOut, find_files, from_here, hash_of, may_be_found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Documents, and what is none."""
    for name in ("b.txt", "a.PDF", "deeper/c.md", ".hidden.txt", ".git/d.txt", "song.mp3"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    return tmp_path


def found_in(*roots: Path) -> tuple[list[str], Mapping[str, str]]:
    """The names of what is found, and the reasons for what is left out."""
    each = list(find_files(roots))
    names = [file.path.name for file in each if isinstance(file, FoundFile)]
    return names, {file.path.name: file.reason for file in each if isinstance(file, LeftOut)}


def test_documents_of_a_folder_are_found_and_the_rest_is_named(folder: Path) -> None:
    assert found_in(folder) == (
        ["a.PDF", "b.txt", "c.md"],
        {
            ".hidden.txt": "hidden",
            ".git": "hidden",
            "song.mp3": "unsupported",
            "circle": "link",
            "broken.txt": "No such file or directory",
        },
    )


def test_file_that_is_named_itself_is_taken_as_it_is(folder: Path) -> None:
    named = [folder / ".hidden.txt", folder / "song.mp3"]

    assert found_in(*named) == ([".hidden.txt", "song.mp3"], {})


@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("new.txt", True),
        ("deeper", True),  # a folder that was moved here, or has gone
        ("deeper/new.pdf", True),
        ("song.mp3", False),
        (".hidden.txt", False),
        (".git/new.txt", False),
    ],
)
def test_change_in_a_folder_matters_where_a_look_would_find_it(
    folder: Path, name: str, is_found: bool
) -> None:
    assert may_be_found(folder / name, [folder]) is is_found


def test_change_beside_a_file_that_is_named_itself_does_not_matter(folder: Path) -> None:
    assert may_be_found(folder / "song.mp3", [folder / "song.mp3"])
    assert not may_be_found(folder / "b.txt", [folder / "song.mp3"])


def test_hash_is_that_of_the_content(folder: Path) -> None:
    (folder / "copy.txt").write_text("b.txt")

    assert hash_of(folder / "copy.txt") == hash_of(folder / "b.txt") != hash_of(folder / "a.PDF")


def test_file_is_called_as_it_is_from_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    assert from_here(str(folder / "deeper" / "c.md")) == "deeper/c.md"
    assert from_here("/elsewhere/c.md") == "/elsewhere/c.md"
    assert from_here("guides/handbook") == "guides/handbook"


def test_pipe_that_would_never_end_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert found_in(tmp_path) == ([], {"pipe.txt": "not a plain file"})
