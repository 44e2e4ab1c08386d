"""What is done with the tables of the SQLite queue; each function is a transaction."""

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from supervisor.core.machine.values import Mode
from supervisor.jobs.modes import mode_of
from supervisor.jobs.port import JobCounts
from supervisor.jobs.sqlite_schema import log_bytes, pragma
from supervisor.jobs.values import (
    Counts,
    Job,
    JobKind,
    JobPriority,
    JobState,
    Line,
    LineResult,
    NewLine,
    Repeat,
)

_RANKS = {priority: rank for rank, priority in enumerate(JobPriority)}

_COLUMNS = "number, record, state, reason, succeeded, failed, repeats, input_tokens, output_tokens"
_ACTIVE = "state IN ('validating', 'in_progress', 'finalizing', 'cancelling')"
_SETTLES = "state IN ('validating', 'in_progress')"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Job).decode


def add(database: sqlite3.Connection, job: Job) -> None:
    """Insert a job, where it is not there yet."""
    database.execute(
        "INSERT OR IGNORE INTO jobs"
        " (id, kind, mode, state, rank, not_before, expires_at, record, lines, reason)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (job.id, job.kind, mode_of(job), *_fields(job)),
    )


def job(database: sqlite3.Connection, job_id: str) -> Job | None:
    """Return one job."""
    found = _jobs(database, "WHERE id = ?", (job_id,))
    return found[0][1] if found else None


def jobs(
    database: sqlite3.Connection, kind: JobKind | None, after: str | None, limit: int
) -> Sequence[Job]:
    """Return jobs, the newest first, those behind `after`."""
    found = _jobs(
        database,
        "WHERE (?1 IS NULL OR kind = ?1)"
        " AND (?2 IS NULL OR number < (SELECT number FROM jobs WHERE id = ?2))"
        " ORDER BY number DESC LIMIT ?3",
        (kind, after, limit),
    )
    return [each for _, each in found]


def change(
    database: sqlite3.Connection,
    job: Job,
    expected: JobState,
    lines: Sequence[NewLine] | None = None,
) -> bool:
    """Write a job where it is still in the state that is expected, and its lines, if any."""
    changed = database.execute(
        "UPDATE jobs SET state = ?, rank = ?, not_before = ?, expires_at = ?, record = ?,"
        " lines = ?, reason = ?, leased_until = 0 WHERE id = ? AND state = ?",
        (*_fields(job), job.id, expected),
    )
    if changed.rowcount and lines is not None:
        _replace_lines(database, job.id, lines)
    return changed.rowcount == 1


def _replace_lines(database: sqlite3.Connection, job_id: str, lines: Sequence[NewLine]) -> None:
    [(number, _)] = _jobs(database, "WHERE id = ?", (job_id,))
    _delete_lines(database, number)
    database.execute(
        "UPDATE jobs SET succeeded = 0, failed = 0, input_tokens = 0, output_tokens = 0"
        " WHERE number = ?",
        (number,),
    )
    _insert_lines(database, number, lines)


def _delete_lines(database: sqlite3.Connection, job: int) -> None:
    for table in ("lines", "results"):
        database.execute(f"DELETE FROM {table} WHERE job = ?", (job,))


def _insert_lines(database: sqlite3.Connection, job: int, lines: Sequence[NewLine]) -> None:
    database.executemany(
        "INSERT OR IGNORE INTO lines (job, number, content) VALUES (?, ?, ?)",
        [(job, line.number, line.content) for line in lines],
    )


def claim_job(
    database: sqlite3.Connection, kind: JobKind, now: float, lease_s: float
) -> Job | None:
    """Claim a job of a kind that is due by itself."""
    found = _jobs(
        database,
        f"WHERE kind = ?2 AND {_ACTIVE} AND leased_until <= ?1 AND (state != 'in_progress'"
        " OR succeeded + failed >= lines OR expires_at <= ?1) ORDER BY rank, number LIMIT 1",
        (now, kind),
    )
    for number, claimed in found:
        until = now + lease_s
        database.execute("UPDATE jobs SET leased_until = ? WHERE number = ?", (until, number))
        return claimed
    return None


def renew_job(database: sqlite3.Connection, job: Job, leased_until: float) -> None:
    """Prolong the claim of a job where it is in its state still."""
    database.execute(
        "UPDATE jobs SET leased_until = ? WHERE id = ? AND state = ?",
        (leased_until, job.id, job.state),
    )


def note_reason(database: sqlite3.Connection, job: Job, reason: str) -> None:
    """Write a reason beside a job that is in its state still."""
    database.execute(
        "UPDATE jobs SET reason = ? WHERE id = ? AND state = ?", (reason, job.id, job.state)
    )


def remove(database: sqlite3.Connection, job_id: str) -> None:
    """Delete a job, its lines and its results."""
    for number, _ in _jobs(database, "WHERE id = ?", (job_id,)):
        _delete_lines(database, number)
        database.execute("DELETE FROM jobs WHERE number = ?", (number,))


def add_lines(database: sqlite3.Connection, job_id: str, lines: Sequence[NewLine]) -> None:
    """Insert lines into a job that is being validated, where they are not there yet."""
    for number, _ in _jobs(database, "WHERE id = ? AND state = 'validating'", (job_id,)):
        _insert_lines(database, number, lines)


def claim(
    database: sqlite3.Connection, kind: JobKind, owner: str, limit: int, lease: tuple[float, float]
) -> Sequence[Line]:
    """Claim lines of jobs in progress, in the jobs' order. `lease`: from when until when."""
    now, until = lease
    # Of thousands of documents that are under way, most have no line to be claimed: they cost one
    # look at an index each.
    ready = database.execute(
        "SELECT number, id FROM jobs WHERE state = 'in_progress' AND kind = ?1 AND not_before <= ?2"
        " AND (expires_at IS NULL OR expires_at > ?2)"
        " AND EXISTS (SELECT 1 FROM lines WHERE job = jobs.number AND NOT has_failed"
        " AND due_at <= ?2) ORDER BY rank, number LIMIT ?3",
        (kind, now, limit),
    ).fetchall()
    claimed: list[Line] = []
    for number, job_id in ready:
        rows = database.execute(
            "UPDATE lines SET owner = ?, due_at = ?, attempts = attempts + 1"
            " WHERE job = ? AND number IN (SELECT number FROM lines WHERE job = ?"
            " AND NOT has_failed AND due_at <= ? ORDER BY number LIMIT ?)"
            " RETURNING number, content, attempts",
            (owner, until, number, number, now, limit - len(claimed)),
        ).fetchall()
        claimed += [Line(job_id, *row) for row in sorted(rows)]
        if len(claimed) >= limit:
            break
    return claimed


def renew(
    database: sqlite3.Connection, owner: str, lines: Sequence[Line], due_at: float
) -> Sequence[Line]:
    """Prolong leases; return the lines that have none."""
    lost = []
    numbers = _numbers(database, (line.job_id for line in lines))
    for line in lines:
        renewed = database.execute(
            "UPDATE lines SET due_at = ? WHERE job = ? AND number = ? AND owner = ?",
            (due_at, numbers.get(line.job_id), line.number, owner),
        )
        if not renewed.rowcount:
            lost.append(line)
    return lost


def settle(database: sqlite3.Connection, results: Sequence[LineResult]) -> None:
    """Keep results of lines that have none, and count them."""
    numbers = _numbers(database, (result.job_id for result in results))
    kept: dict[int, list[LineResult]] = {}
    for result in results:
        number = numbers.get(result.job_id)
        if number is not None and _take_out(database, number, result):
            kept.setdefault(number, []).append(result)
    for number, own in kept.items():
        _keep(database, number, own)


def _take_out(database: sqlite3.Connection, job: int, result: LineResult) -> bool:
    """Take a line from those that are open; one that failed may be wanted again."""
    statement = (
        "DELETE FROM lines WHERE job = ? AND number = ? AND NOT has_failed"
        if result.is_success
        else "UPDATE lines SET has_failed = 1, owner = '' WHERE job = ? AND number = ?"
        " AND NOT has_failed"
    )
    return database.execute(statement, (job, result.number)).rowcount == 1


def _keep(database: sqlite3.Connection, job: int, results: Sequence[LineResult]) -> None:
    database.executemany(
        "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (job, each.number, each.is_success, each.content, each.reason, *_tokens(each))
            for each in results
        ],
    )
    succeeded = sum(each.is_success for each in results)
    reason = next((each.reason for each in reversed(results) if each.reason), None)
    database.execute(
        "UPDATE jobs SET succeeded = succeeded + ?, failed = failed + ?,"
        " input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,"
        " reason = coalesce(?, reason) WHERE number = ?",
        (
            succeeded,
            len(results) - succeeded,
            sum(each.input_tokens for each in results),
            sum(each.output_tokens for each in results),
            reason,
            job,
        ),
    )


def _tokens(result: LineResult) -> tuple[int, int]:
    return result.input_tokens, result.output_tokens


def put_back(database: sqlite3.Connection, owner: str, repeats: Sequence[Repeat]) -> None:
    """Give lines back, to be claimed later."""
    numbers = _numbers(database, (repeat.job_id for repeat in repeats))
    for repeat in repeats:
        number = numbers.get(repeat.job_id)
        put = database.execute(
            "UPDATE lines SET due_at = ?, owner = '', attempts = attempts - ?"
            " WHERE job = ? AND number = ? AND owner = ?",
            (repeat.due_at, not repeat.counts, number, repeat.number, owner),
        )
        if put.rowcount:
            database.execute(
                "UPDATE jobs SET repeats = repeats + 1, reason = ? WHERE number = ?",
                (repeat.reason, number),
            )


def results(
    database: sqlite3.Connection, job_id: str, after: int, limit: int
) -> Sequence[LineResult]:
    """Return results by rising numbers, those above `after`."""
    rows = database.execute(
        "SELECT number, is_success, content, reason, input_tokens, output_tokens FROM results"
        " WHERE job = (SELECT number FROM jobs WHERE id = ?) AND number > ?"
        " ORDER BY number LIMIT ?",
        (job_id, after, limit),
    )
    return [
        LineResult(
            job_id=job_id,
            number=number,
            is_success=bool(is_success),
            content=content,
            reason=reason,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        for number, is_success, content, reason, input_tokens, output_tokens in rows
    ]


def unsettled(
    database: sqlite3.Connection, job_id: str, after: int, limit: int
) -> Sequence[NewLine]:
    """Return open lines by rising numbers, those above `after`."""
    rows = database.execute(
        "SELECT number, content FROM lines WHERE job = (SELECT number FROM jobs WHERE id = ?)"
        " AND NOT has_failed AND number > ? ORDER BY number LIMIT ?",
        (job_id, after, limit),
    )
    return [NewLine(number, content) for number, content in rows]


def forget_results(database: sqlite3.Connection, job_id: str) -> None:
    """Delete results of a job that has ended; lines that succeeded are gone already."""
    database.execute(
        f"DELETE FROM results WHERE job = (SELECT number FROM jobs WHERE id = ? AND NOT {_ACTIVE})",
        (job_id,),
    )


def reopen(database: sqlite3.Connection, job: Job, expected: JobState) -> bool:
    """Write a job, and have its lines without success claimed anew."""
    if not change(database, job, expected):
        return False
    own = "(SELECT number FROM jobs WHERE id = ?)"
    database.execute(f"DELETE FROM results WHERE NOT is_success AND job = {own}", (job.id,))
    database.execute(
        f"UPDATE lines SET has_failed = 0, attempts = 0, due_at = 0, owner = '' WHERE job = {own}",
        (job.id,),
    )
    database.execute("UPDATE jobs SET failed = 0 WHERE id = ?", (job.id,))
    return True


def used_bytes(database: sqlite3.Connection) -> int:
    """Return what the pages that are in use take, and the log of their changes."""
    pages_bytes = pragma(database, "page_count") * pragma(database, "page_size")
    return pages_bytes + log_bytes(database)


def counts(database: sqlite3.Connection) -> JobCounts:
    """Return how many jobs there are, by kind and state."""
    found: dict[JobKind, dict[JobState, int]] = {}
    rows = database.execute("SELECT kind, state, jobs FROM job_counts WHERE jobs > 0")
    for kind, state, number in rows:
        found.setdefault(JobKind(kind), {})[JobState(state)] = number
    return found


def modes_left(database: sqlite3.Connection, now: float) -> frozenset[Mode]:
    """Return the modes of jobs of which lines may be worked on."""
    is_left = (
        "SELECT 1 FROM jobs WHERE mode = ? AND not_before <= ? AND (state = 'validating'"
        " OR state = 'in_progress' AND succeeded + failed < lines) LIMIT 1"
    )
    return frozenset(
        mode for mode in Mode if database.execute(is_left, (mode, now)).fetchone() is not None
    )


def _numbers(database: sqlite3.Connection, job_ids: Iterable[str]) -> dict[str, int]:
    """Return the numbers of jobs whose lines are still settled."""
    found = {}
    for job_id in set(job_ids):
        rows = database.execute(
            f"SELECT number FROM jobs WHERE id = ? AND {_SETTLES}", (job_id,)
        ).fetchall()
        for (number,) in rows:
            found[job_id] = number
    return found


def _fields(job: Job) -> tuple[object, ...]:
    rank, record = _RANKS[job.priority], _encode(job)
    return job.state, rank, job.not_before, job.expires_at, record, job.lines, job.reason


def _jobs(
    database: sqlite3.Connection, clause: str, values: Sequence[object]
) -> list[tuple[int, Job]]:
    rows = database.execute(f"SELECT {_COLUMNS} FROM jobs {clause}", values).fetchall()
    return [(row[0], _job(*row[1:])) for row in rows]


def _job(  # noqa: PLR0913, PLR0917 - the columns of a row
    record: bytes,
    state: str,
    reason: str,
    succeeded: int,
    failed: int,
    repeats: int,
    input_tokens: int,
    output_tokens: int,
) -> Job:
    counts = Counts(
        succeeded=succeeded,
        failed=failed,
        repeats=repeats,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
    )
    return msgspec.structs.replace(
        _decode(record), state=JobState(state), reason=reason, counts=counts
    )
