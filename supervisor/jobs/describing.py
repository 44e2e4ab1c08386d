"""Jobs and files as JSON: batches and files as in OpenAI's API, and any job as in `/jobs`."""

from typing import Any

from supervisor.jobs.values import Job, JobState, StoredFile

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
    moments = {f"{state}_at": _moment(job, state) for state in JobState}
    del moments["validating_at"]
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
        **moments,
        "request_counts": {
            "total": job.lines,
            "completed": counts.succeeded,
            "failed": counts.failed,
        },
        "usage": {
            "input_tokens": counts.input_tokens,
            "output_tokens": counts.output_tokens,
            "total_tokens": counts.input_tokens + counts.output_tokens,
        },
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


def _moment(job: Job, state: JobState) -> int | None:
    at = job.entered_at.get(state)
    return None if at is None else int(at)
