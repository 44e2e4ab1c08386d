"""The route by which documents come in; part of the table of reserved routes (routes.py)."""

from supervisor.gateway.documents import Documents, NewDocumentParameters
from supervisor.gateway.route import Route, Scope

DOCUMENT_ROUTES: tuple[Route, ...] = (
    Route(
        method="POST",
        path="/documents",
        purpose="Embed a document, whole and in chunks, and store it in `collection` in place of "
        "what was stored under its `id`: a `file` in a form, or `text` in JSON; optional `model`, "
        "`metadata`, `priority` and `callback_url`. With `store: false` the vectors are the "
        "answer. Waits for 30 s unless `wait` is false; then, 202 with the job.",
        owner=Documents,
        handler=Documents.add,
        parameters=NewDocumentParameters,
        upload_limit="documents.max_bytes",
        answers=(200, 202),
        refusals=(
            "document_unreadable",
            "document_not_embedded",
            "model_not_found",
            "model_type_mismatch",
            "collection_mismatch",
            "job_cancelled",
            "callback_not_allowed",
            "body_too_large",
            "storage_full",
            "queue_unreachable",
            "extra_missing",
            "store_failed",
        ),
        scope=Scope.INFERENCE,
    ),
)
