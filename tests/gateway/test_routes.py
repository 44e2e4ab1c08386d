"""The table of reserved routes: each answers, and none reaches a backend."""

import io
import json
import re
from typing import Any

import pytest

from supervisor.gateway.document_routes import DOCUMENT_ROUTES
from supervisor.gateway.job_routes import JOB_ROUTES
from supervisor.gateway.routes import RESERVED_ROUTES
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import backend_of, until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


PATHS = tuple(dict.fromkeys(route.path for route in RESERVED_ROUTES))


@pytest.mark.parametrize("path", PATHS)
async def test_reserved_path_answers_and_never_reaches_a_backend(
    faulty: RunningController, path: str
) -> None:
    asked = backend_of(faulty).process.last_lines
    taken = {method for route in RESERVED_ROUTES if route.path == path for method in route.methods}

    for method in sorted(METHODS, key=lambda method: method in taken):
        async with faulty.client.request(method, faulty.url + example(path)) as answer:
            content = await answer.read()
            is_taken = bool(taken & {"*", method})
            assert (answer.status != 405) is is_taken, method
            assert (content == b"") is (method == "HEAD"), method
            assert answer.content_type == "application/json"
            if method == "PATCH" and not is_taken:
                assert json.loads(content)["error"]["code"] == "method_not_allowed"
                assert taken == set(answer.headers["Allow"].split(", "))

    if path != "/unload":  # after it there is nobody to be reached
        await faulty.json("GET", "/marker")
        await until(lambda: has_arrived(faulty))
    ours = {"GET /health", "GET /slots"}  # what the controller itself asks
    assert set(asked) - ours <= {"GET /marker"}


BODIES: dict[str, Any] = {
    "/v1/files": {"data": {"purpose": "batch", "file": io.BytesIO(b"{}")}},
    "/v1/batches": {"json": {"input_file_id": "file-1", "endpoint": "/v1/embeddings"}},
    "/documents": {"json": {"text": "A cat sits on the mat."}},
}


async def test_routes_that_need_the_queue_tell_that_it_may_be_away(
    start_controller: StartController,
) -> None:
    away = {"supervisor.yaml": {"jobs": {"queue_url": "redis://127.0.0.1:1"}}}
    controller = await start_controller(files=away)
    routes = [*JOB_ROUTES, *DOCUMENT_ROUTES]

    for route in routes:
        given = BODIES.get(route.path, {}) if route.method == "POST" else {}
        url = controller.url + example(route.path)
        async with controller.client.request(route.method, url, **given) as answer:
            code = (await answer.json())["error"]["code"]
        assert code == "queue_unreachable", route.path
        assert code in route.refusals, route.path


def test_no_path_stands_twice_in_the_table_with_one_method() -> None:
    places = [(route.path, method) for route in RESERVED_ROUTES for method in route.methods]

    assert len(places) == len(set(places))


def example(path: str) -> str:
    """Return a path that a route matches: its variables are filled with their own names."""
    return re.sub(r"\{(\w+)[^}]*\}", r"\1", path)


async def has_arrived(controller: RunningController) -> bool:
    return "GET /marker" in backend_of(controller).process.last_lines
