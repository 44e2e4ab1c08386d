"""Runs batches by OpenAI's own client, and prints what it gets as JSON.

    python run_batches.py URL

Runs in an environment of its own (requirements.lock), without this project.
"""

import json
import sys
import time
from typing import Any

from openai import NotFoundError, OpenAI

TEXT = "a cat sits on a mat"


def run(client: OpenAI) -> dict[str, Any]:
    """Return what the client gets of a batch that is answered, one that expires, and so on."""
    whole = _run(client, [_line("good", TEXT), _line("bad", "word " * 3000)])
    over = _run(client, [_line("late", TEXT)], completion_window="1ms")
    stopped = _begin(client, [_line("a", TEXT)], extra_body={"not_before": "2999-01-01T00:00Z"})
    cancelling = client.batches.cancel(stopped.id)
    ended = [whole, over, _end(client, stopped.id)]
    wrong = _run(client, [_line("same", "a"), _line("same", "b")])
    listed = [each.id for each in client.batches.list(limit=2)]
    shown = client.files.retrieve(whole.input_file_id)
    deleted = client.files.delete(shown.id)
    try:
        client.files.content(shown.id)
        refusal = None
    except NotFoundError as error:
        refusal = error.code
    return {
        "states": [each.status for each in ended],
        "counts": whole.request_counts.model_dump(),
        "usage": whole.usage.total_tokens,
        "output": _lines(client, whole.output_file_id),
        "errors": [_lines(client, each.error_file_id) for each in ended],
        "cancelling": cancelling.status,
        "wrong": [wrong.status, wrong.errors.data[0].code, wrong.errors.data[0].line],
        "listed": len(listed),
        "made": [whole.id, over.id, stopped.id, wrong.id],
        "all": listed,
        "files": [each.purpose for each in client.files.list(purpose="batch_output")],
        "file": [shown.filename, shown.purpose, shown.bytes],
        "deleted": deleted.deleted,
        "refusal": refusal,
    }


def _line(custom_id: str, text: str) -> dict[str, Any]:
    body = {"model": "minilm", "input": text}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}


def _begin(client: OpenAI, lines: list[dict[str, Any]], **options: Any) -> Any:
    content = "\n".join(json.dumps(line) for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    asked = {"completion_window": "24h", "metadata": {"for": "a test"}, **options}
    return client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", **asked)


def _end(client: OpenAI, batch_id: str) -> Any:
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in {"completed", "failed", "expired", "cancelled"}:
            return batch
        time.sleep(0.05)


def _run(client: OpenAI, lines: list[dict[str, Any]], **options: Any) -> Any:
    return _end(client, _begin(client, lines, **options).id)


def _lines(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    content = client.files.content(file_id).text if file_id else ""
    return [json.loads(line) for line in content.splitlines()]


if __name__ == "__main__":
    answer = run(OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="none", max_retries=0))
    json.dump(answer, sys.stdout)
