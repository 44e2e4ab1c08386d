"""Where jobs and their files are kept, by the settings."""

import asyncio
from pathlib import Path

import pytest

from supervisor.config.settings import JobSettings
from supervisor.data_folder import DataFolder
from supervisor.errors import ConfigError, RequestRefused
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.redis_files import RedisFiles
from supervisor.jobs.redis_queue import RedisQueue
from supervisor.jobs.sqlite_queue import SqliteQueue
from supervisor.jobs.values import LineResult
from supervisor.wiring import job_storage
from supervisor.wiring.job_storage import open_storage
from tests.jobs.conftest import add_running, new_job


@pytest.fixture
async def data(tmp_path: Path) -> DataFolder:
    return await DataFolder.claim(tmp_path / "data")


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("has_folder", [False, True])
async def test_queue_and_files_are_where_the_settings_say(
    data: DataFolder, tmp_path: Path, redis_url: str, shares: bool, has_folder: bool
) -> None:
    folder = tmp_path / "shared" / "files"
    settings = JobSettings(
        queue_url=redis_url if shares else None, files_dir=str(folder) if has_folder else None
    )

    storage = await open_storage(settings, data)

    assert isinstance(storage.queue, RedisQueue if shares else SqliteQueue)
    is_on_redis = shares and not has_folder
    assert isinstance(storage.files, RedisFiles if is_on_redis else DiskFiles)
    assert folder.is_dir() is has_folder
    await storage.queue.close()
    data.release()


async def test_shared_queue_without_its_library_is_refused_with_the_line_that_brings_it(
    data: DataFolder, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_storage, "find_spec", lambda _: None)

    with pytest.raises(RequestRefused, match=r"pip install 'llama-supervisor\[redis\]'") as refused:
        await open_storage(JobSettings(queue_url=redis_url), data)

    assert refused.value.code == "extra_missing"
    data.release()


@pytest.mark.parametrize("parameter", ["wait_s=5", "ssl_ciphers=x"])
async def test_parameter_that_no_queue_takes_is_named(
    data: DataFolder, redis_url: str, parameter: str
) -> None:
    name = parameter.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"jobs\.queue_url: cannot be used: .*{name}"):
        await open_storage(JobSettings(queue_url=f"{redis_url}?{parameter}"), data)

    data.release()


async def test_folder_of_files_that_cannot_be_made_is_named(
    data: DataFolder, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")

    with pytest.raises(RequestRefused, match=r"jobs\.files_dir: .*taken"):
        await open_storage(JobSettings(files_dir=str(tmp_path / "taken" / "files")), data)

    data.release()


async def test_queue_whose_file_cannot_be_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestRefused, match="unable to open database file") as refused:
        SqliteQueue(tmp_path / "gone" / "jobs.sqlite")
    assert refused.value.code == "storage_full"


async def test_room_that_a_large_batch_took_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of changes, too: it counts, and nobody works, or writes, while all take too much."""
    queue = SqliteQueue(tmp_path / "jobs.sqlite")
    await add_running(queue, new_job("a", lines=1))
    large = LineResult(job_id="a", number=1, is_success=True, content=b"x" * 20_000_000)
    await queue.settle([large])
    assert await queue.used_bytes() >= 40_000_000

    monkeypatch.setattr("supervisor.jobs.sqlite_schema._MAX_LOG_BYTES", 100_000)
    await queue.remove("a")
    log = await asyncio.to_thread((tmp_path / "jobs.sqlite-wal").stat)
    assert log.st_size < 1_000_000
    assert await queue.used_bytes() < 1_000_000
    await queue.close()
