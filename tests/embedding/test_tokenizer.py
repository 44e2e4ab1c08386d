"""A model's own tokenizer.json."""

import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.embedding.lengths import Frame
from supervisor.embedding.tokenizer import FileTokenizer
from supervisor.errors import ModelFileError, RequestRefused
from tests.embedding.turns import is_never_held_up

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokenizer_path(models_dir: Path) -> Path:
    return models_dir / "minilm.tokenizer.json"


async def test_truncation_and_padding_that_stand_in_the_file_do_not_count(
    tokenizer_path: Path,
) -> None:
    tokenizer = FileTokenizer(tokenizer_path)
    tokenized = await tokenizer.encode(["fox", "fox " * 200, "fox " * 1000])
    assert [len(ids) for ids in tokenized.ids] == [3, 202, 1002]
    assert tokenized.frame == Frame(head=(CLS,), tail=(SEP,))
    assert tokenizer.vocabulary_size == 30_522


async def test_a_hangul_syllable_is_all_of_its_letters(tokenizer_path: Path) -> None:
    tokenizer = FileTokenizer(tokenizer_path)
    tokenized = await tokenizer.encode(["연남 카페 추천해줘", "안녕"])
    assert [len(ids) for ids in tokenized.ids] == [21, 8]


async def test_the_loop_goes_on_while_the_tokens_of_a_long_text_are_told(
    tokenizer_path: Path,
) -> None:
    tokenizer = FileTokenizer(tokenizer_path)
    text = "the lazy fox " * 8000
    assert await is_never_held_up(lambda: tokenizer.told(text, adds_special=True))
    told = await tokenizer.told(text, adds_special=True)
    assert [each.text for each in told[:4]] == ["[CLS]", "the", "lazy", "fox"]
    assert len(told) == 24_002


def test_without_the_extra_the_remedy_is_told(
    tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RequestRefused, match=r"pip install 'llama-supervisor\[embedding\]'") as it:
        FileTokenizer(tokenizer_path)
    assert it.value.code == "extra_missing"


def test_a_file_that_the_library_cannot_use_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "Abacus"}}')
    with pytest.raises(ModelFileError, match=f"{path}: it cannot be used"):
        FileTokenizer(path)


def test_the_library_is_not_loaded_before_it_is_used() -> None:
    looks = "import supervisor.commands.serve, sys; print('tokenizers' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", looks],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "False"
