"""Jobs and files as JSON: batches and files as in OpenAI's API, and any job as in `/jobs`."""

from typing import Any

from supervisor.jobs.values import Counts, Job, JobState, StoredFile

EXTENSIONS = ("store", "callback_url")
"""Fields of batches beyond OpenAI's API that are shown as they were given."""


def describe_file(file: StoredFile) -> dict[str, Any]:
    """Write a file as JSON, in OpenAI's form, with the sum of its content."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": int(file.created_at),
        "expires_at": int(file.expires_at),
        "filename": file.file_name,
        "purpose": file.purpose,
        "status": "processed",
        "sha256": file.sha256,
    }


def describe_batch(job: Job) -> dict[str, Any]:
    """Write a batch as JSON, in OpenAI's form, with our extensions."""
    spec, outcome, counts = job.spec, job.outcome, job.counts
    problems = outcome.get("errors")
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": spec["endpoint"],
        "model": outcome.get("model"),
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": spec["input_file_id"],
        "completion_window": spec["completion_window"],
        "status": job.state,
        "output_file_id": outcome.get("output_file_id"),
        "error_file_id": outcome.get("error_file_id"),
        "created_at": int(job.created_at),
        "expires_at": None if job.expires_at is None else int(job.expires_at),
        **_moments(job),
        "request_counts": {
            "total": job.lines,
            "completed": counts.succeeded,
            "failed": counts.failed,
        },
        "usage": _usage(counts),
        "metadata": spec["metadata"],
        "priority": job.priority,
        "not_before": int(job.not_before) or None,
        **{name: spec.get(name) for name in EXTENSIONS},
    }


def describe_job(job: Job) -> dict[str, Any]:
    """Write any job as JSON."""
    counts = job.counts
    entered_at = {str(state): at for state, at in job.entered_at.items()}
    return {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "priority": job.priority,
        "created_at": job.created_at,
        "not_before": job.not_before or None,
        "expires_at": job.expires_at,
        "entered_at": entered_at,
        "round": job.round,
        "lines": {
            "total": job.lines,
            "succeeded": counts.succeeded,
            "failed": counts.failed,
            "left": max(0, job.lines - counts.settled),
            "repeats": counts.repeats,
        },
        "input_tokens": counts.input_tokens,
        "output_tokens": counts.output_tokens,
        "reason": job.reason or None,
        "spec": job.spec,
        "outcome": job.outcome,
    }


def _moments(job: Job) -> dict[str, int | None]:
    """Write when a batch entered each state behind the first, which is its `created_at`."""
    entered = {state: job.entered_at.get(state) for state in JobState}
    del entered[JobState.VALIDATING]
    return {f"{state}_at": None if at is None else int(at) for state, at in entered.items()}


def _usage(counts: Counts) -> dict[str, int]:
    return {
        "input_tokens": counts.input_tokens,
        "output_tokens": counts.output_tokens,
        "total_tokens": counts.input_tokens + counts.output_tokens,
    }
