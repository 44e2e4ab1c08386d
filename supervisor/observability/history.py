"""The history of switches, kept over restarts: the last ones in memory, all of them in SQLite."""

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger()

_SCHEMA = """
CREATE TABLE IF NOT EXISTS switches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    switch_id TEXT NOT NULL UNIQUE,
    ended_at REAL NOT NULL,
    record TEXT NOT NULL
)
"""


class SwitchHistory:
    """The last `size` switches, oldest first. Reading never touches the disk.

    Writes go to a thread of their own, one after the other: a slow disk must not hold the event
    loop up, and a full one must not stop the product. `path` None keeps nothing over restarts.
    """

    def __init__(self, path: Path | None, size: int) -> None:
        """Read what is kept. A file that cannot be used is reported, and history starts anew."""
        self._size = size
        self._records: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._database: sqlite3.Connection | None = None
        if path is not None:
            try:
                self._open(path)
            except sqlite3.Error as error:
                log.warning("history.unusable", path=str(path), reason=str(error))

    def add(self, record: dict[str, Any]) -> None:
        """Keep a switch that has ended; `record` holds `switch_id` and `ended_at`."""
        self._records[record["switch_id"]] = record
        while len(self._records) > self._size:
            self._records.popitem(last=False)
        if self._database is not None:
            self._writer.submit(self._write, self._database, record)

    def get(self, switch_id: str) -> dict[str, Any] | None:
        """Return one switch, or None when it is not kept (any more)."""
        return self._records.get(switch_id)

    def newest_first(self) -> Iterator[dict[str, Any]]:
        """Yield the switches, the newest first."""
        return reversed(self._records.values())

    def close(self) -> None:
        """Finish the writes that wait, and close the file."""
        self._writer.shutdown(wait=True)
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self, path: Path) -> None:
        database = sqlite3.connect(path, check_same_thread=False)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(_SCHEMA)
        rows = database.execute(
            "SELECT switch_id, record FROM switches ORDER BY number DESC LIMIT ?", (self._size,)
        ).fetchall()
        for switch_id, record in reversed(rows):
            self._records[switch_id] = json.loads(record)
        self._database = database

    def _write(self, database: sqlite3.Connection, record: dict[str, Any]) -> None:
        row = (record["switch_id"], record["ended_at"], json.dumps(record, default=str))
        try:
            with database:
                database.execute(
                    "INSERT OR REPLACE INTO switches (switch_id, ended_at, record) "
                    "VALUES (?, ?, ?)",
                    row,
                )
                database.execute(
                    "DELETE FROM switches WHERE number <= (SELECT MAX(number) FROM switches) - ?",
                    (self._size,),
                )
        except sqlite3.Error as error:
            log.warning("history.not_written", switch_id=record["switch_id"], reason=str(error))
