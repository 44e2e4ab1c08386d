"""The table of reserved routes: each answers, and none reaches a backend."""

import json
import re

import pytest

from supervisor.gateway.routes import RESERVED_ROUTES
from tests.conftest import RunningController
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


def test_no_path_stands_twice_in_the_table_with_one_method() -> None:
    places = [(route.path, method) for route in RESERVED_ROUTES for method in route.methods]

    assert len(places) == len(set(places))


def example(path: str) -> str:
    """Return a path that a route matches: its variables are filled with their own names."""
    return re.sub(r"\{(\w+)[^}]*\}", r"\1", path)


async def has_arrived(controller: RunningController) -> bool:
    return "GET /marker" in backend_of(controller).process.last_lines
