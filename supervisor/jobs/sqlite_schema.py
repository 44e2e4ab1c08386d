"""The tables of the SQLite queue.

A line stands in `lines` as long as it is not done with: a success takes it out, so nothing settles
it twice. `due_at` is when it may be claimed: for one that is claimed, the end of its lease. Jobs
are counted by triggers, whatever changes them.
"""

import sqlite3
from contextlib import suppress
from pathlib import Path

import msgspec

from supervisor.jobs.modes import mode_of
from supervisor.jobs.values import Job

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    mode TEXT,
    state TEXT NOT NULL,
    rank INTEGER NOT NULL,
    not_before REAL NOT NULL,
    expires_at REAL,
    leased_until REAL NOT NULL DEFAULT 0,
    record BLOB NOT NULL,
    lines INTEGER NOT NULL,
    reason TEXT NOT NULL,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    repeats INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, kind, rank, number);
CREATE TABLE IF NOT EXISTS lines (
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    content BLOB NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '',
    has_failed INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, number)
);
CREATE INDEX IF NOT EXISTS open_lines ON lines (job, number, due_at) WHERE NOT has_failed;
CREATE TABLE IF NOT EXISTS results (
    job INTEGER NOT NULL,
    number INTEGER NOT NULL,
    is_success INTEGER NOT NULL,
    content BLOB NOT NULL,
    reason TEXT NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (job, number)
);
CREATE TABLE IF NOT EXISTS job_counts (
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (kind, state)
);
CREATE TRIGGER IF NOT EXISTS job_came AFTER INSERT ON jobs BEGIN
    INSERT INTO job_counts VALUES (new.kind, new.state, 1)
        ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
CREATE TRIGGER IF NOT EXISTS job_went AFTER DELETE ON jobs BEGIN
    UPDATE job_counts SET jobs = jobs - 1 WHERE kind = old.kind AND state = old.state;
END;
CREATE TRIGGER IF NOT EXISTS job_moved AFTER UPDATE OF state ON jobs BEGIN
    UPDATE job_counts SET jobs = jobs - 1 WHERE kind = old.kind AND state = old.state;
    INSERT INTO job_counts VALUES (new.kind, new.state, 1)
        ON CONFLICT DO UPDATE SET jobs = jobs + 1;
END;
"""


_MAX_LOG_BYTES = 64 * 1024 * 1024


def prepare(database: sqlite3.Connection) -> None:
    """Make the tables where they are missing, and free what a controller that died had claimed."""
    # Each commit gives the pages that it frees back to the file system. Incremental vacuuming would
    # look for each of them in the list of all that are free: minutes for the results of one batch.
    is_new = not pragma(database, "auto_vacuum")
    database.execute("PRAGMA auto_vacuum=FULL")
    if is_new:  # else it cannot be had
        database.execute("VACUUM")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    # Otherwise the log stays as large as the largest batch made it, whatever is deleted.
    database.execute(f"PRAGMA journal_size_limit={_MAX_LOG_BYTES}")
    database.executescript(_SCHEMA)
    with database:
        _migrate(database)
        database.execute("UPDATE jobs SET leased_until = 0")
        database.execute("UPDATE lines SET due_at = 0, owner = '' WHERE owner != ''")


def _migrate(database: sqlite3.Connection) -> None:
    """Bring what was written before jobs had a mode, and were counted, to the tables of today."""
    columns = {name for _, name, *_ in database.execute("PRAGMA table_info(jobs)")}
    if "mode" in columns:
        return
    database.execute("ALTER TABLE jobs ADD COLUMN mode TEXT")
    for number, record in database.execute("SELECT number, record FROM jobs").fetchall():
        mode = mode_of(msgspec.json.decode(record, type=Job))
        database.execute("UPDATE jobs SET mode = ? WHERE number = ?", (mode, number))
    database.execute(
        "INSERT OR REPLACE INTO job_counts SELECT kind, state, count(*) FROM jobs GROUP BY 1, 2"
    )


def log_bytes(database: sqlite3.Connection) -> int:
    """Return what the log of changes takes, which stands in a file beside the database."""
    [(_, _, path)] = database.execute("PRAGMA database_list").fetchall()
    try:
        return Path(f"{path}-wal").stat().st_size
    except FileNotFoundError:
        return 0


def shorten_log(database: sqlite3.Connection) -> None:
    """Empty a log that has become long: else whoever writes next does, and maybe nobody may."""
    if log_bytes(database) > _MAX_LOG_BYTES:
        with suppress(sqlite3.Error):  # of a disk that fails: what was written is in the log
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def pragma(database: sqlite3.Connection, name: str) -> int:
    """Return a number that SQLite tells."""
    [(value,)] = database.execute(f"PRAGMA {name}").fetchall()
    return int(value)
