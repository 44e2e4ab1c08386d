"""The table of reserved routes: each answers, and none reaches a backend."""

import json
import re

import pytest

from supervisor.gateway.routes import RESERVED_ROUTES, Route
from tests.conftest import RunningController
from tests.gateway.conftest import backend_of, until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@pytest.mark.parametrize("route", RESERVED_ROUTES, ids=lambda route: route.path)
async def test_reserved_route_answers_and_never_reaches_a_backend(
    faulty: RunningController, route: Route
) -> None:
    asked = backend_of(faulty).process.last_lines

    for method in sorted(METHODS, key=lambda method: method == route.method):
        async with faulty.client.request(method, faulty.url + example(route)) as answer:
            content = await answer.read()
            is_taken = route.method in {"*", method} or (route.method, method) == ("GET", "HEAD")
            assert (answer.status != 405) is is_taken, method
            assert (content == b"") is (method == "HEAD"), method
            assert answer.content_type == "application/json"
            if method == "PATCH" and not is_taken:
                assert json.loads(content)["error"]["code"] == "method_not_allowed"
                assert route.method in answer.headers["Allow"].split(", ")

    if route.path != "/unload":  # after it there is nobody to be reached
        await faulty.json("GET", "/marker")
        await until(lambda: has_arrived(faulty))
    ours = {"GET /health", "GET /slots"}  # what the controller itself asks
    assert set(asked) - ours <= {"GET /marker"}


def test_no_path_stands_twice_in_the_table() -> None:
    paths = [route.path for route in RESERVED_ROUTES]

    assert len(paths) == len(set(paths))


def example(route: Route) -> str:
    """Return a path that the route matches: its variables are filled with their own names."""
    return re.sub(r"\{(\w+)[^}]*\}", r"\1", route.path)


async def has_arrived(controller: RunningController) -> bool:
    return "GET /marker" in backend_of(controller).process.last_lines
