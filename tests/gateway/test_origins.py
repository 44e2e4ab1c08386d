"""No page of another origin drives the controller or reads its answers, and no name is rebound."""

from collections.abc import Mapping

import pytest

from supervisor.config.holder import ConfigurationHolder
from supervisor.errors import RequestRefused
from supervisor.gateway.call_reader import read_head
from supervisor.gateway.origins import Origins
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ask_json, shipped

EVIL = "http://evil.example"
FRIEND = "https://chat.example"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/unload", {"Origin": EVIL, "Content-Type": "text/plain"}, 403),
        ("POST", "/unload", {"Origin": "null"}, 403),
        ("POST", "/unload", {"Origin": "http://["}, 403),
        ("POST", "/unload", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", "/unload", {"Sec-Fetch-Site": "same-site", "Origin": EVIL}, 403),
        ("POST", "/tokenize", {"Origin": EVIL}, 403),
        ("GET", "/health", {"Host": "evil.example"}, 403),
        (
            "GET",
            "/health",
            {"Host": "evil.example:8000", "Origin": "http://evil.example:8000"},
            403,
        ),
        ("POST", "/unload", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("POST", "/unload", {"Sec-Fetch-Site": "none"}, 200),
        ("POST", "/unload", {"Origin": FRIEND, "Sec-Fetch-Site": "cross-site"}, 200),
        ("POST", "/unload", {"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ("POST", "/unload", {"Host": "gate.internal"}, 200),
        ("POST", "/unload", {"Host": "[::1]:8000"}, 200),
        ("GET", "/health", {"Origin": EVIL}, 200),
    ],
)
async def test_pages_of_other_origins_and_foreign_names_are_refused(
    start_controller: StartController,
    method: str,
    path: str,
    headers: Mapping[str, str],
    status: int,
) -> None:
    controller = await befriended(start_controller)

    async with controller.client.request(
        method, controller.url + path, headers=dict(headers)
    ) as answer:
        told = await answer.json()

    assert answer.status == status, told
    if status == 403:
        assert told["error"]["code"] in {"foreign_origin", "foreign_host"}
    is_readable = headers.get("Origin") == FRIEND
    assert ("Access-Control-Allow-Origin" in answer.headers) is is_readable


async def test_cors_is_answered_by_us_alone_also_on_errors(
    start_controller: StartController,
) -> None:
    controller = await befriended(start_controller)
    await controller.switch_to("demo-chat")
    allowed = []

    for path in ("/props", "/v1/models", "/v1/models/nobody", "/no/such/path"):
        for origin in (FRIEND, EVIL):
            async with controller.client.get(
                controller.url + path, headers={"Origin": origin}
            ) as answer:
                allowed.append(answer.headers.getall("Access-Control-Allow-Origin", []))
                assert "Access-Control-Allow-Credentials" not in answer.headers

    assert allowed == [[FRIEND], []] * 4


async def test_preflight_is_answered_at_once(start_controller: StartController) -> None:
    controller = await befriended(start_controller)
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }

    async with controller.client.options(
        f"{controller.url}/v1/chat/completions", headers={"Origin": FRIEND, **asked}
    ) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert answer.headers["Access-Control-Allow-Headers"] == "content-type"
    async with controller.client.options(
        f"{controller.url}/v1/chat/completions", headers={"Origin": EVIL, **asked}
    ) as answer:
        assert answer.status == 403


@pytest.mark.parametrize(
    ("hosts", "headers", "is_served"),
    [
        (("0.0.0.0",), ((b"Host", b"llm.apps.svc.cluster.local:8000"),), True),
        (("0.0.0.0",), ((b"Host", b"evil.example"), (b"Origin", b"http://evil.example")), False),
        (("0.0.0.0",), ((b"Host", b"evil.example"), (b"User-Agent", b"Mozilla/5.0 (X11)")), False),
        (("0.0.0.0",), ((b"Host", b"10.42.0.7:8000"), (b"User-Agent", b"Mozilla/5.0")), True),
        (("0.0.0.0",), ((b"Host", b"10.42.0.7:8000"),), True),
        (("127.0.0.1", "::1"), ((b"Host", b"llm.apps.svc.cluster.local:8000"),), False),
        (("127.0.0.1", "0.0.0.0"), ((b"Host", b"evil.example"),), True),
    ],
)
async def test_beyond_loopback_host_is_looked_at_for_browsers_only(
    start_controller: StartController,
    hosts: tuple[str, ...],
    headers: tuple[tuple[bytes, bytes], ...],
    is_served: bool,
) -> None:
    controller = await start_controller()
    configuration: ConfigurationHolder = controller.parts.configuration
    head = read_head("GET", "/", headers, takes_chunks=True)

    if is_served:
        Origins(configuration, hosts).check(head)
    else:
        with pytest.raises(RequestRefused, match="not a name of this controller"):
            Origins(configuration, hosts).check(head)


async def test_catalogue_shows_one_model_and_an_unknown_one_is_refused(
    start_controller: StartController,
) -> None:
    controller = await start_controller()

    for name in ("minilm", "sentence-transformers/all-MiniLM-L6-v2"):
        status, model = await ask_json(controller, "GET", f"/v1/models/{name}")
        assert (status, model["id"], model["object"]) == (200, "minilm", "model")
        assert model["created"] > 1_000_000_000
    async with controller.client.get(f"{controller.url}/v1/models/nobody") as answer:
        assert answer.status == 404
        assert answer.headers["X-Request-ID"]
        assert answer.headers["x-should-retry"] == "false"
    listed = await controller.json("GET", "/models")
    assert listed == await controller.json("GET", "/v1/models")


async def test_unknown_model_may_mean_the_default_of_its_route(
    start_controller: StartController,
) -> None:
    models = shipped("models.yaml", unknown_models="default", default_model=None)
    controller = await start_controller(files={"models.yaml": models})
    await controller.switch_to("minilm")

    body = {"model": "dummy", "input": "a"}
    assert (await ask_json(controller, "POST", "/v1/embeddings", body))[0] == 200


async def befriended(start_controller: StartController) -> RunningController:
    server = {"cors_origins": [FRIEND], "allowed_hosts": ["Gate.internal"]}
    settings = shipped("supervisor.yaml", server=server)
    return await start_controller(files={"supervisor.yaml": settings})


async def test_pages_may_read_our_own_headers(start_controller: StartController) -> None:
    controller = await befriended(start_controller)

    async with controller.client.get(controller.url + "/health", headers={"Origin": FRIEND}) as got:
        exposed = got.headers["Access-Control-Expose-Headers"].split(", ")

    assert {"X-Truncated", "X-Windowed", "Location", "X-Queue-Time-Ms"} <= set(exposed)
