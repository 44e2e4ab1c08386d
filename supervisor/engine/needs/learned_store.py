"""Where learned needs are kept over restarts: `learned-needs.sqlite` in the data folder.

One row for each (model's files, effective profile, engine build, device), named by its identity
(`need_identity()`): what changes any of them is another server, of which nothing is known yet.
"""

import sqlite3
import threading
import time
from pathlib import Path

import structlog

from supervisor.core.sizing.learned import LearnedPeak
from supervisor.data_folder import open_database
from supervisor.observability.impairments import Impairments

log = structlog.get_logger()

FILE_NAME = "learned-needs.sqlite"
MAX_ENTRIES = 1000
PART = "learned needs"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS needs (
    identity TEXT PRIMARY KEY,
    peak_bytes INTEGER NOT NULL,
    seen_on TEXT NOT NULL,
    noted_at REAL NOT NULL
)
"""
_NOTE = """
INSERT INTO needs (identity, peak_bytes, seen_on, noted_at) VALUES (?, ?, ?, ?)
ON CONFLICT (identity) DO UPDATE SET
    seen_on = CASE WHEN excluded.peak_bytes > peak_bytes THEN excluded.seen_on ELSE seen_on END,
    peak_bytes = MAX(peak_bytes, excluded.peak_bytes),
    noted_at = excluded.noted_at
"""
_SHRINK = """
DELETE FROM needs WHERE identity NOT IN (
    SELECT identity FROM needs ORDER BY noted_at DESC LIMIT ?
)
"""


class LearnedStore:
    """The peaks that were seen, by identity; beyond 1,000 the oldest make room.

    May be used from any thread, and by several processes at a time; every call may block for the
    disk. None of them raises: without the file nothing is learned, and needs are estimated.
    """

    def __init__(self, path: Path, impairments: Impairments | None = None) -> None:
        """Open the file. A damaged one is set aside, and a new one begun."""
        self._path = path
        self._impairments = impairments or Impairments()
        self._is_closed = False
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._unwritten: dict[str, LearnedPeak] = {}
        try:
            self._database = open_database(path, _prepare)
        except (sqlite3.Error, OSError) as error:
            self._report(error)

    def get(self, identity: str) -> LearnedPeak | None:
        """Return what was learned, or None."""
        query = "SELECT peak_bytes, seen_on FROM needs WHERE identity = ?"
        with self._lock:
            if self._database is None:
                return None
            try:
                row = self._database.execute(query, (identity,)).fetchone()
            except sqlite3.Error as error:
                self._forget_database()
                self._report(error)
                return None
        return None if row is None else LearnedPeak(peak_bytes=row[0], seen_on=row[1])

    def note(self, identity: str, peak: LearnedPeak) -> None:
        """Keep a peak where it is higher than the one that is kept."""
        with self._lock:
            waiting = self._unwritten.get(identity)
            if waiting is None or peak.peak_bytes > waiting.peak_bytes:
                self._unwritten[identity] = peak
        self._write_what_is_left()

    def forget(self, identity: str) -> bool:
        """Drop what was learned; return whether there was anything."""
        with self._lock:
            self._unwritten.pop(identity, None)
            return self._write(("DELETE FROM needs WHERE identity = ?", (identity,))) > 0

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            self._is_closed = True
            self._forget_database()

    def _write_what_is_left(self) -> None:
        """Write the peaks that are not written yet: at each one, and again after a failure."""
        now = time.time()
        with self._lock:
            rows = [(i, peak.peak_bytes, peak.seen_on, now) for i, peak in self._unwritten.items()]
            self._write(*((_NOTE, row) for row in rows), (_SHRINK, (MAX_ENTRIES,)))
            if self._database is not None:
                self._unwritten.clear()

    def _write(self, *statements: tuple[str, tuple[object, ...]]) -> int:
        """Carry them out together; return the rows that the last one changed. Call it locked."""
        if self._is_closed:
            return 0
        try:
            if self._database is None:
                self._database = open_database(self._path, _prepare)
            with self._database as database:
                changed = [database.execute(*statement).rowcount for statement in statements]
        except (sqlite3.Error, OSError) as error:
            self._forget_database()
            self._report(error)
            return 0
        self._impairments.clear(PART)
        return changed[-1]

    def _forget_database(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _report(self, error: Exception) -> None:
        reason = f"{self._path} cannot be used ({error}); needs are estimated meanwhile"
        if self._impairments.note(PART, reason, retry=self._write_what_is_left):
            log.warning("needs.unusable", path=str(self._path), reason=str(error))


def _prepare(database: sqlite3.Connection) -> None:
    database.execute(_SCHEMA)
    database.execute("SELECT identity, peak_bytes, seen_on, noted_at FROM needs LIMIT 1")
    database.commit()
