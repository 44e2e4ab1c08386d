"""Chooses where jobs and their files are kept: in the data folder, or where others see them."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from supervisor.config.settings import JobSettings
from supervisor.data_folder import JOBS, DataFolder
from supervisor.errors import RequestRefused
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.port import FileStore, JobQueue
from supervisor.jobs.sqlite_queue import SqliteQueue


@dataclass(frozen=True, slots=True)
class JobStorage:
    """A queue, and the files of its jobs.

    `why_it_passes` says why a shared queue does not last, None where nothing speaks against it; a
    queue of one's own lasts as the data folder does.
    """

    queue: JobQueue
    files: FileStore
    why_it_passes: Callable[[], Awaitable[str | None]] | None = None


async def open_storage(settings: JobSettings, data: DataFolder) -> JobStorage:
    """Open what the settings name.

    Raises RequestRefused: `extra_missing`, or `storage_full` for a folder that cannot be made; and
    ConfigError for a URL that the library of the queue cannot use.
    """
    own_files = None
    if settings.files_dir is not None:
        own_files = DiskFiles(await asyncio.to_thread(_made, Path(settings.files_dir)))
    if settings.queue_url is not None:
        return _shared(settings.queue_url, own_files)
    files = own_files or DiskFiles(data.subfolder("job-files"))
    return JobStorage(await asyncio.to_thread(SqliteQueue, data.store(JOBS)), files)


def _shared(url: str, files: FileStore | None) -> JobStorage:
    if find_spec("redis") is None:
        raise RequestRefused(
            "extra_missing",
            "the queue that jobs.queue_url names needs redis, which is not installed: "
            "pip install 'llama-supervisor[redis]'",
        )
    from supervisor.jobs.redis_connection import RedisConnection  # noqa: PLC0415 - an extra
    from supervisor.jobs.redis_files import RedisFiles  # noqa: PLC0415
    from supervisor.jobs.redis_queue import RedisQueue  # noqa: PLC0415

    connection = RedisConnection(url)
    files = files or RedisFiles(connection)
    return JobStorage(RedisQueue(connection), files, connection.why_it_passes)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestRefused(
            "storage_full", f"jobs.files_dir: {folder} cannot be made: {error.strerror}"
        ) from error
    return folder
