"""Asks the controller what it may refuse."""

import json
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

from bench_runner.servers import ANSWER_TIMEOUT_S, Endpoint


def ask(endpoint: Endpoint, method: str, path: str, content: object = None) -> tuple[int, Any]:
    """Send a request with a JSON body, or none; return the status and the JSON of the answer.

    Raises OSError and HTTPException where there is no answer.
    """
    connection = HTTPConnection("localhost", timeout=ANSWER_TIMEOUT_S)
    connection.sock = endpoint.connect(ANSWER_TIMEOUT_S)
    headers = {"Content-Type": "application/json"}
    with closing(connection):
        connection.request(method, path, json.dumps(content) if content else None, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
