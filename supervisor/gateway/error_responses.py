"""The one place where errors become HTTP answers, in OpenAI's envelope."""

from collections.abc import Mapping
from typing import Any

from supervisor.core.machine.refusals import LONGEST_RETRY_AFTER_S
from supervisor.errors import RequestRefused
from supervisor.gateway.answer import Answer, json_answer
from supervisor.gateway.call import Headers

STATUS_BY_CODE: Mapping[str, int] = {
    "bad_request": 400,
    "input_too_long": 400,
    "inputs_empty": 400,
    "model_not_named": 400,
    "foreign_host": 403,
    "foreign_origin": 403,
    "slot_files_reserved": 403,
    "model_not_found": 404,
    "device_not_found": 404,
    "switch_not_found": 404,
    "collection_not_found": 404,
    "document_not_found": 404,
    "file_not_found": 404,
    "job_not_found": 404,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "head_timeout": 408,
    "model_not_live": 409,
    "switch_in_progress": 409,
    "drain_refused": 409,
    "nothing_is_down": 409,
    "collection_mismatch": 409,
    "job_cancelled": 409,
    "job_not_cancellable": 409,
    "job_not_retryable": 409,
    "pinned_in_the_way": 409,
    "place_is_taken": 409,
    "body_too_large": 413,
    "uri_too_long": 414,
    "encoding_not_supported": 415,
    "queue_full": 429,
    "embedding_queue_full": 429,
    "callback_not_allowed": 422,
    "document_unreadable": 422,
    "form_unclear": 422,
    "model_type_mismatch": 422,
    "unknown_profile": 422,
    "profile_conflict": 422,
    "target_cannot_start": 422,
    "target_does_not_fit": 422,
    "twin_does_not_fit": 422,
    "expectation_failed": 417,
    "header_fields_too_large": 431,
    "internal_error": 500,
    "extra_missing": 501,
    "not_implemented": 501,
    "backend_died": 502,
    "backend_start_timeout": 502,
    "backend_unreachable": 502,
    "embedding_failed": 502,
    "no_event_stream": 502,
    "document_not_embedded": 502,
    "documents_failed": 502,
    "store_failed": 502,
    "backend_down": 503,
    "bodies_full": 503,
    "hold_queue_full": 503,
    "hold_timeout": 503,
    "no_model_loaded": 503,
    "outside_window": 503,
    "queue_unreachable": 503,
    "shutting_down": 503,
    "switch_failed": 503,
    "telemetry_lost": 503,
    "backend_not_reaped": 504,
    "version_not_supported": 505,
    "memory_not_released": 504,
    "storage_full": 507,
}
"""Status for each stable code. A code that is missing here is a bug, and answers 500."""

RETRY_AFTER_S = 5
"""Seconds that clients should wait where nothing was measured: a switch of some GB."""

_WAITING_HELPS = frozenset(
    {
        *("backend_unreachable", "queue_full", "hold_queue_full", "hold_timeout"),
        *("bodies_full", "body_timeout", "head_timeout"),
        *("queue_unreachable", "shutting_down"),
    }
)
"""Codes of what passes by itself. Others may (`backend_down`, `switch_failed`): the core knows,
and gives them a `retry_after_s`. Clients repeat any 408, 409, 429 and 5xx, unless an answer says
that they should not: `x-should-retry`, which OpenAI's and Anthropic's clients read. They wait for a
minute at most, so that they are not to repeat what is served hours later."""


def error_answer(error: RequestRefused) -> Answer:
    """Answer with the error's status and envelope, and whether and when to come back."""
    headers: Headers
    if error.code in _WAITING_HELPS or "retry_after_s" in error.details:
        retry_after_s = error.details.get("retry_after_s", RETRY_AFTER_S)
        is_soon = b"true" if retry_after_s <= LONGEST_RETRY_AFTER_S else b"false"
        headers = ((b"Retry-After", b"%d" % retry_after_s), (b"x-should-retry", is_soon))
    else:
        headers = ((b"x-should-retry", b"false"),)
    if "queue_position" in error.details:
        position = b"%d" % error.details["queue_position"]
        headers = (*headers, (b"X-Queue-Position", position))
    if "allowed" in error.details:
        headers = (*headers, (b"Allow", ", ".join(error.details["allowed"]).encode()))
    if "accepted_encodings" in error.details:  # RFC 9110, 12.5.3
        accepted = ", ".join(error.details["accepted_encodings"]).encode()
        headers = (*headers, (b"Accept-Encoding", accepted))
    status = STATUS_BY_CODE.get(error.code, 500)
    return json_answer(error_body(error), status=status, headers=headers)


def error_body(error: RequestRefused) -> dict[str, Any]:
    """Return `{"error": {message, type, code, …details}}`."""
    status = STATUS_BY_CODE.get(error.code, 500)
    error_type = "rate_limit_error" if status == 429 else "invalid_request_error"
    error_type = "server_error" if status >= 500 else error_type
    return {
        "error": {"message": error.message, "type": error_type, "code": error.code, **error.details}
    }
