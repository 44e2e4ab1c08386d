"""Tokenizers as the controller opens them: large ones never hold up its loop."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from supervisor.embedding import opened_tokenizer
from supervisor.embedding.opened_tokenizer import ProcessTokenizer, Tokenizers
from supervisor.embedding.tokenizer import FileTokenizer, ModelTokenizer
from supervisor.errors import RequestRefused
from tests.embedding.large_tokenizer import TOKENS, write_large_tokenizer
from tests.embedding.turns import is_never_held_up

TEXTS = ["fox", "the lazy dog", "연남 카페 추천해줘", "", "ﬁne 한국어 mixed \n lines"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large_tokenizer(tmp_path_factory.mktemp("large") / "tokenizer.json")


@pytest.fixture
async def tokenizers() -> AsyncIterator[Tokenizers]:
    opener = Tokenizers()
    yield opener
    await opener.close()


def process_of(tokenizer: ModelTokenizer) -> psutil.Process:
    assert isinstance(tokenizer, ProcessTokenizer)
    running = tokenizer._process.running
    assert running is not None
    return psutil.Process(running.pid)


async def test_the_loop_goes_on_while_a_large_tokenizer_is_opened_and_asked(large: Path) -> None:
    async def open_and_ask() -> None:
        opener = Tokenizers()
        tokenizer = await opener.open(large)
        await tokenizer.encode(TEXTS * 50)
        await opener.close()
        assert tokenizer.vocabulary_size == TOKENS

    assert await is_never_held_up(open_and_ask)


async def test_it_tells_the_same_as_a_tokenizer_that_the_controller_reads(
    tokenizers: Tokenizers, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_tokenizer, "INLINE_BYTES", 0)
    path = models_dir / "minilm.tokenizer.json"
    apart, inline = await tokenizers.open(path), FileTokenizer(path)
    assert process_of(apart).is_running()
    assert await apart.encode(TEXTS) == await inline.encode(TEXTS)
    assert apart.vocabulary_size == inline.vocabulary_size
    for adds_special in (True, False):
        told = await apart.told("연남 fox", adds_special=adds_special)
        assert told == await inline.told("연남 fox", adds_special=adds_special)


async def test_models_with_one_tokenizer_share_it(tokenizers: Tokenizers, models_dir: Path) -> None:
    path = models_dir / "minilm.tokenizer.json"
    one, other = await asyncio.gather(tokenizers.open(path), tokenizers.open(path))
    assert one is other
    assert await tokenizers.open(path) is one


async def test_nobody_waits_while_another_models_tokenizer_is_read(
    tokenizers: Tokenizers, large: Path, models_dir: Path
) -> None:
    opening = asyncio.create_task(tokenizers.open(large))
    await tokenizers.open(models_dir / "minilm.tokenizer.json")
    assert not opening.done()
    assert await opening


async def test_a_process_that_is_killed_is_followed_by_another(
    tokenizers: Tokenizers, large: Path
) -> None:
    tokenizer = await tokenizers.open(large)
    right = await tokenizer.encode(TEXTS)
    first = process_of(tokenizer)
    os.kill(first.pid, signal.SIGKILL)
    assert await tokenizer.encode(TEXTS) == right
    assert process_of(tokenizer) != first


async def test_a_file_that_changed_meanwhile_is_not_taken_for_the_one_of_before(
    tokenizers: Tokenizers, tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_tokenizer, "INLINE_BYTES", 0)
    path = tmp_path / "tokenizer.json"
    content = (models_dir / "minilm.tokenizer.json").read_text()
    path.write_text(content)
    tokenizer = await tokenizers.open(path)
    path.write_text(content + "\n")
    os.kill(process_of(tokenizer).pid, signal.SIGKILL)
    with pytest.raises(RequestRefused, match=f"{path} has changed since it was read") as refused:
        await tokenizer.encode(TEXTS)
    assert refused.value.code == "target_cannot_start"
    assert (await (await tokenizers.open(path)).encode(["fox"])).ids == [(101, 4419, 102)]


async def test_a_process_that_is_not_asked_ends_until_it_is(
    tokenizers: Tokenizers, models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_tokenizer, "INLINE_BYTES", 0)
    monkeypatch.setattr(opened_tokenizer, "IDLE_S", 0.1)
    tokenizer = await tokenizers.open(models_dir / "minilm.tokenizer.json")
    process = process_of(tokenizer)
    right = await tokenizer.encode(TEXTS)
    await asyncio.to_thread(psutil.wait_procs, [process], timeout=60)
    assert not process.is_running()
    assert await tokenizer.encode(TEXTS) == right


async def test_a_large_file_that_cannot_be_used_is_named(
    tokenizers: Tokenizers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_tokenizer, "INLINE_BYTES", 0)
    path = tmp_path / "tokenizer.json"
    path.write_text('{"model": {"type": "Abacus"}}')
    with pytest.raises(RequestRefused, match=f"{path}: it cannot be used") as refused:
        await tokenizers.open(path)
    assert refused.value.code == "target_cannot_start"
    with pytest.raises(RequestRefused, match="cannot be read: No such file"):
        await tokenizers.open(tmp_path / "none.json")
