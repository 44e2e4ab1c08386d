"""The table of reserved routes: each answers, and none reaches a backend."""

import re

import pytest

from supervisor.gateway.routes import RESERVED_ROUTES, Route
from tests.conftest import RunningController
from tests.gateway.conftest import backend_of, until

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
BY_PATH = pytest.mark.parametrize("route", RESERVED_ROUTES, ids=lambda route: route.path)


@BY_PATH
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

    if route.path != "/unload":  # after it there is nobody to be reached
        await faulty.json("GET", "/marker")
        await until(lambda: has_arrived(faulty))
    assert {line for line in asked if line != "GET /health"} <= {"GET /marker"}


@BY_PATH
async def test_reserved_route_names_the_method_that_it_takes(
    faulty: RunningController, route: Route
) -> None:
    if route.method == "*":
        return

    async with faulty.client.request("PATCH", faulty.url + example(route)) as answer:
        error = (await answer.json())["error"]

    assert error["code"] == "method_not_allowed"
    assert f"takes {route.method}" in error["message"]
    assert route.method in answer.headers["Allow"].split(", ")


def test_no_path_stands_twice_in_the_table() -> None:
    paths = [route.path for route in RESERVED_ROUTES]

    assert len(paths) == len(set(paths))


def example(route: Route) -> str:
    """Return a path that the route matches: its variables are filled with their own names."""
    return re.sub(r"\{(\w+)[^}]*\}", r"\1", route.path)


async def has_arrived(controller: RunningController) -> bool:
    return "GET /marker" in backend_of(controller).process.last_lines
