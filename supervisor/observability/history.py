"""The history of switches, kept over restarts: the last ones in memory, all of them in SQLite."""

import contextlib
import json
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from supervisor.data_folder import open_database
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

PART = "history"
"""What an impairment of the history is called."""

PASSING_RECORDS = 100
"""Switches without a place in the history that are found by their id for a while: whoever did not
wait for one asks for its outcome."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS switches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    switch_id TEXT NOT NULL UNIQUE,
    ended_at REAL NOT NULL,
    record TEXT NOT NULL
)
"""
_SCHEMA_SET_ASIDE = """
CREATE TABLE IF NOT EXISTS set_aside (number INTEGER, switch_id, ended_at, record)
"""
_WRITE = "INSERT OR REPLACE INTO switches (switch_id, ended_at, record) VALUES (?, ?, ?)"
_SHRINK = "DELETE FROM switches WHERE number <= (SELECT MAX(number) FROM switches) - ?"

SwitchRecord = dict[str, Any]


class SwitchHistory:
    """The last `size` switches, oldest first. Reading never touches the disk.

    Writes go to a thread of their own, one after the other: a slow disk must not hold the event
    loop up, and a full one must not stop the product. What cannot be written is kept, noted as an
    impairment, and written when that is possible again, even if the file or its folder was
    deleted. `path` None keeps nothing over restarts. `size` may be changed: the next switch is held
    to it.
    """

    def __init__(
        self, path: Path | None, size: int, impairments: Impairments | None = None
    ) -> None:
        """Read what is kept. A file that cannot be used is set aside, and history starts anew."""
        self._path = path
        self.size = size
        self._impairments = impairments or Impairments()
        self._lock = threading.Lock()  # of the three maps
        self._records: OrderedDict[str, SwitchRecord] = OrderedDict()
        self._passing: OrderedDict[str, SwitchRecord] = OrderedDict()
        self._unwritten: OrderedDict[str, SwitchRecord] = OrderedDict()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix=PART)
        self._database: sqlite3.Connection | None = None
        self._file_id: tuple[int, int] | None = None
        if path is not None:
            try:
                self._read(self._open(path))
            except (sqlite3.Error, OSError) as error:
                self._fail(path, error)

    def add(self, record: SwitchRecord) -> None:
        """Keep a switch that has ended; `record` holds `switch_id` and `ended_at`."""
        with self._lock:
            _put(self._records, record, self.size)
            if self._path is None:
                return
            _put(self._unwritten, record, self.size)
        self._write_later()

    def add_passing(self, record: SwitchRecord) -> None:
        """Keep a switch that changed nothing for a while, to be found by its id only."""
        with self._lock:
            _put(self._passing, record, PASSING_RECORDS)

    def get(self, switch_id: str) -> SwitchRecord | None:
        """Return one switch, or None when it is not kept (any more)."""
        return self._records.get(switch_id) or self._passing.get(switch_id)

    def newest_first(self) -> Iterator[SwitchRecord]:
        """Yield the switches, the newest first."""
        return reversed(self._records.values())

    def close(self) -> None:
        """Write what is not written yet, and close the file."""
        self._write_later()
        self._writer.shutdown(wait=True)
        self._forget_database()

    def _write_later(self) -> None:
        if self._path is not None:
            with contextlib.suppress(RuntimeError):  # it was closed
                self._writer.submit(self._write, self._path)

    def _write(self, path: Path) -> None:
        """Write what is not written yet; where that fails, it stays so. In the writer's thread."""
        with self._lock:
            waiting = list(self._unwritten.values())
        try:
            database, is_lost = self._database, not self._is_in_place(path)
            if database is None or is_lost:
                database = self._open(path)
            if is_lost:  # and all that it held with it
                with self._lock:
                    waiting = list(self._records.values())
            if waiting:
                self._write_out(database, waiting)
        except (sqlite3.Error, OSError) as error:
            self._fail(path, error)
            return
        with self._lock:
            for record in waiting:
                if self._unwritten.get(record["switch_id"]) is record:
                    del self._unwritten[record["switch_id"]]
        self._impairments.clear(PART)

    def _write_out(self, database: sqlite3.Connection, records: list[SwitchRecord]) -> None:
        with database:
            database.executemany(_WRITE, [_row(record) for record in records])
            database.execute(_SHRINK, (self.size,))

    def _fail(self, path: Path, error: Exception) -> None:
        self._forget_database()
        reason = (
            f"{path} cannot be written ({error}); switches go on, and their records are written "
            "when it can be: make room on its disk, or restore its folder"
        )
        if self._impairments.note(PART, reason, retry=self._write_later):
            log.warning("history.not_written", path=str(path), reason=str(error))

    def _open(self, path: Path) -> sqlite3.Connection:
        """Open the file, and the folder, anew. Raises sqlite3.Error and OSError."""
        self._forget_database()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        database = open_database(path, _prepare)
        self._database, self._file_id = database, _file_id(path)
        return database

    def _is_in_place(self, path: Path) -> bool:
        """Whether the file that is open is still the one that stands there."""
        try:
            return _file_id(path) == self._file_id
        except OSError:
            return False

    def _forget_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _read(self, database: sqlite3.Connection) -> None:
        rows = database.execute(
            "SELECT number, switch_id, record FROM switches ORDER BY number DESC LIMIT ?",
            (self.size,),
        ).fetchall()
        for number, switch_id, content in reversed(rows):
            try:
                record = _parse(content)
            except (ValueError, RecursionError) as error:
                log.warning(
                    "history.record_set_aside", switch_id=repr(switch_id), reason=str(error)
                )
                _set_aside(database, number)
            else:
                self._records[record["switch_id"]] = record


def _put(records: OrderedDict[str, SwitchRecord], record: SwitchRecord, size: int) -> None:
    records[record["switch_id"]] = record
    while len(records) > size:
        records.popitem(last=False)


def _prepare(database: sqlite3.Connection) -> None:
    database.text_factory = bytes  # text that is not UTF-8 is one record's fault
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(_SCHEMA)
    database.execute("SELECT number, switch_id, ended_at, record FROM switches LIMIT 1")


def _file_id(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _row(record: SwitchRecord) -> tuple[str, float, str]:
    # A model's name, and so an id, may come from a file whose name is not UTF-8.
    switch_id = record["switch_id"].encode("utf-8", "backslashreplace").decode()
    return switch_id, record["ended_at"], json.dumps(record, default=str)


def _parse(content: object) -> SwitchRecord:
    """Read a record, as bytes. Raises ValueError or RecursionError where it is not one of ours."""
    if not isinstance(content, bytes):
        raise ValueError(f"it is not text but {type(content).__name__}")
    record = json.loads(content)
    if not isinstance(record, dict) or not isinstance(record.get("switch_id"), str):
        raise ValueError("it is not a JSON object with a switch_id")
    return record


def _set_aside(database: sqlite3.Connection, number: int) -> None:
    """Move a record that cannot be read to the table `set_aside`, where a person may look at it."""
    with database:
        database.execute(_SCHEMA_SET_ASIDE)
        database.execute(
            "INSERT INTO set_aside SELECT number, switch_id, ended_at, record FROM switches "
            "WHERE number = ?",
            (number,),
        )
        database.execute("DELETE FROM switches WHERE number = ?", (number,))
