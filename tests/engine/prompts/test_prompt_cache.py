"""The folder of saved prompts: what makes room, what is never restored, what is left at exit."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.core.byte_size import MIB
from supervisor.engine.prompts.prompt_cache import (
    RESERVE_BYTES,
    PromptCache,
    PromptFiles,
    SavedSlot,
    slot_file_name,
)

MakeCache = Callable[..., PromptCache]


@pytest.fixture
def make_cache(tmp_path: Path) -> MakeCache:
    """Opens the same folder, on a disk with plenty of room unless told otherwise."""

    def make(
        max_bytes: int = 10_000, *, keeps_at_exit: bool = False, free: int = 2 * RESERVE_BYTES
    ) -> PromptCache:
        return PromptCache(
            tmp_path / "prompt-cache",
            max_bytes=max_bytes,
            keeps_at_exit=keeps_at_exit,
            free_bytes=lambda _: free,
        )

    return make


def save(cache: PromptCache, identity: str, *sizes: int, age_s: int = 0) -> PromptFiles:
    """Save one slot for each size, as a backend does; `age_s` puts it into the past."""
    files = cache.files_for(identity, slot_kv_bytes=MIB)
    assert files.begin(sum(sizes)) is None
    assert files.finish(write(files, *sizes)) is None
    manifest = files.path / "manifest.json"
    if manifest.exists():
        then = manifest.stat().st_mtime - age_s
        os.utime(manifest, (then, then))
    return files


def write(files: PromptFiles, *sizes: int) -> tuple[SavedSlot, ...]:
    """Do the server's part."""
    for slot, size in enumerate(sizes):
        (files.path / slot_file_name(slot)).write_bytes(b"x" * size)
    return tuple(SavedSlot(slot=n, tokens=7, size_bytes=size) for n, size in enumerate(sizes))


def names(files: PromptFiles) -> set[str]:
    return {path.name for path in files.path.iterdir()}


def test_what_was_saved_is_restored_once_and_again_after_it_is_put_back(
    make_cache: MakeCache,
) -> None:
    files = save(make_cache(), "a", 10, 20)
    taken = files.take()
    assert [(one.slot, one.tokens, one.size_bytes) for one in taken] == [(0, 7, 10), (1, 7, 20)]
    assert files.take() == ()  # whoever died of it does not get it again
    files.finish(taken[1:])
    assert files.take() == taken[1:]
    assert names(files) == {"slot-1.bin"}


def test_file_of_another_size_or_that_is_gone_is_never_restored(make_cache: MakeCache) -> None:
    cache = make_cache()
    cut, gone = save(cache, "a", 10, 20), save(cache, "b", 10)
    (cut.path / "slot-1.bin").write_bytes(b"x" * 19)
    (gone.path / "slot-0.bin").unlink()
    assert [one.slot for one in cut.take()] == [0]
    assert gone.take() == ()


@pytest.mark.parametrize("written", ["", "[{]", '[{"slot": 0}]', "{}", "[7]"])
def test_manifest_that_is_damaged_restores_nothing(make_cache: MakeCache, written: str) -> None:
    files = save(make_cache(), "a", 10)
    (files.path / "manifest.json").write_text(written)
    assert files.take() == ()


def test_save_that_was_cut_short_restores_nothing(make_cache: MakeCache) -> None:
    cache = make_cache()
    files = save(cache, "a", 10)
    assert files.begin(10) is None
    write(files, 10)
    assert files.take() == ()


def test_oldest_prompts_make_room_for_the_new_ones(make_cache: MakeCache) -> None:
    cache = make_cache(2_000)
    oldest, old = save(cache, "a", 700, age_s=20), save(cache, "b", 700, age_s=10)
    new = save(cache, "c", 700)
    assert [bool(files.take()) for files in (oldest, old, new)] == [False, True, True]


def test_prompts_larger_than_expected_make_room_once_they_are_there(make_cache: MakeCache) -> None:
    cache = make_cache(2_000)
    old = save(cache, "a", 1_500, age_s=10)
    new = cache.files_for("b", slot_kv_bytes=MIB)
    assert new.begin(100) is None
    assert new.finish(write(new, 900)) is None
    assert [bool(files.take()) for files in (old, new)] == [False, True]


def test_restored_prompts_count_as_used_just_now(make_cache: MakeCache) -> None:
    cache = make_cache(2_000)
    first, second = save(cache, "a", 700, age_s=20), save(cache, "b", 700, age_s=10)
    first.finish(first.take())
    save(cache, "c", 700)
    assert [bool(files.take()) for files in (first, second)] == [True, False]


def test_prompts_that_are_being_restored_do_not_make_room(make_cache: MakeCache) -> None:
    cache = make_cache(1_200)
    files = save(cache, "a", 700)
    taken = files.take()
    save(cache, "b", 700)
    assert "slot-0.bin" in names(files)
    files.finish(taken)
    assert files.take() == taken


def test_prompts_expected_to_exceed_the_cap_are_not_begun_and_older_ones_stay(
    make_cache: MakeCache,
) -> None:
    cache = make_cache(1_000)
    own, other = save(cache, "a", 300), save(cache, "b", 300)
    assert "prompt_cache_max_bytes" in str(own.begin(1_001))
    assert own.take()
    assert other.take()


def test_prompts_that_alone_exceed_the_cap_are_dropped_with_the_reason(
    make_cache: MakeCache,
) -> None:
    files = make_cache(1_000).files_for("a", slot_kv_bytes=MIB)
    assert files.begin(900) is None
    assert "prompt_cache_max_bytes" in str(files.finish(write(files, 600, 600)))
    assert names(files) == set()


def test_short_disk_is_left_alone_with_the_reason(make_cache: MakeCache) -> None:
    files = make_cache(MIB, free=RESERVE_BYTES + 999).files_for("a", slot_kv_bytes=MIB)
    assert "is nearly full" in str(files.begin(1_000))
    assert files.begin(999) is None


def test_on_a_short_disk_what_was_saved_before_makes_room(make_cache: MakeCache) -> None:
    cache = make_cache(MIB, free=RESERVE_BYTES + 1_000)
    own, other = save(cache, "a", 300), save(cache, "b", 300)
    assert own.begin(1_500) is None
    assert names(own) == names(other) == set()
    own.finish(())


def test_prompts_are_gone_at_exit_and_at_the_start_after_a_kill(make_cache: MakeCache) -> None:
    cache = make_cache()
    files = save(cache, "a", 10)
    make_cache()  # the one before was killed
    assert not files.path.exists()
    cache.close()
    assert not files.path.parent.exists()


def test_prompts_are_kept_at_exit_when_told_up_to_the_cap(make_cache: MakeCache) -> None:
    cache = make_cache(keeps_at_exit=True)
    save(cache, "a", 700, age_s=10)
    taken = save(cache, "b", 700).take()
    cache.files_for("b", slot_kv_bytes=MIB).finish(taken)
    cache.close()
    cache = make_cache(1_000, keeps_at_exit=True)
    kept = [cache.files_for(name, slot_kv_bytes=MIB).take() for name in "ab"]
    assert kept == [(), taken]


def test_what_clients_wrote_is_for_the_owner_only(make_cache: MakeCache) -> None:
    files = save(make_cache(), "a", 10)
    for folder in (files.path, files.path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_prompts_are_saved_again_after_the_folder_was_deleted(make_cache: MakeCache) -> None:
    cache = make_cache()
    files = save(cache, "chat", 10)
    shutil.rmtree(files.path.parent)

    assert files.take() == ()
    assert files.begin(10) is None
    assert files.finish(write(files, 10)) is None

    assert len(files.take()) == 1
    shutil.rmtree(files.path.parent)
    assert names(save(cache, "embed", 10)) == {"manifest.json", "slot-0.bin"}
