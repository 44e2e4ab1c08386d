"""Messages to receivers: signed as their libraries verify it, and only where operators allow it."""

import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from supervisor.errors import RequestRefused
from supervisor.jobs.callbacks import CallbackFailed, Caller, check_url, read_key

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = {"type": "job.completed", "data": {"id": "batch_1", "state": "completed"}}


@dataclass(slots=True)
class Receiver:
    """Answers each message with `status`, and keeps what came."""

    url: str = ""
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    taken: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.taken.append((await request.read(), dict(request.headers)))
        return web.Response(status=self.status, headers=self.headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield found
    await runner.cleanup()


def caller(*hosts: str) -> Caller:
    return Caller(read_key(KEY), lambda: hosts)


async def test_receiver_verifies_the_message_with_the_schemes_own_library(
    receiver: Receiver,
) -> None:
    await caller("127.0.0.1").send(receiver.url, "msg_1", MESSAGE)

    ((body, headers),) = receiver.taken
    assert Webhook(KEY).verify(body, headers) == MESSAGE
    assert headers["webhook-id"] == "msg_1"
    with pytest.raises(WebhookVerificationError):
        Webhook(KEY).verify(body + b" ", headers)


def test_key_that_is_no_base64_is_taken_as_it_is_written() -> None:
    assert read_key("any words") == b"any words"


@pytest.mark.parametrize(
    ("status", "is_final"), [(302, False), (404, False), (410, True), (500, False)]
)
async def test_whatever_is_not_2xx_is_a_failure_and_a_redirect_is_not_followed(
    receiver: Receiver, status: int, is_final: bool
) -> None:
    receiver.status, receiver.headers = status, {"Location": receiver.url + "/elsewhere"}

    with pytest.raises(CallbackFailed, match=f"answered {status}") as failed:
        await caller("127.0.0.1").send(receiver.url, "msg_1", MESSAGE)

    assert failed.value.is_final is is_final
    assert len(receiver.taken) == 1


async def test_receiver_that_is_not_there_is_a_failure_that_may_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    with pytest.raises(CallbackFailed, match="cannot be reached") as failed:
        await caller("127.0.0.1").send(f"http://127.0.0.1:{port}/", "msg_1", MESSAGE)

    assert not failed.value.is_final


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/hook",
        "http://127.0.0.1.example.org/",
        "http://127.0.0.1@example.org/",
        "http://name:password@127.0.0.1/",
        "ftp://127.0.0.1/",
        "//127.0.0.1/",
        "127.0.0.1",
        "http://",
        "http://[::1",
        "http://127.0.0.1:port/",
        "http://hooks.example:444/",
    ],
)
def test_urls_to_other_hosts_are_refused_however_they_are_written(url: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        check_url(url, ("127.0.0.1", "hooks.example:443"))

    assert refused.value.code == "callback_not_allowed"


def test_host_is_allowed_on_any_port_or_on_the_one_that_is_named() -> None:
    check_url("http://127.0.0.1:8080/hook?x=1", ("127.0.0.1",))
    check_url("https://hooks.example/hook", ("hooks.example:443",))
    check_url("https://HOOKS.example/hook", ("hooks.example",))


async def test_host_that_is_no_longer_allowed_is_not_called(receiver: Receiver) -> None:
    with pytest.raises(CallbackFailed, match="not among") as failed:
        await caller().send(receiver.url, "msg_1", MESSAGE)

    assert failed.value.is_final
    assert receiver.taken == []


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:127.0.0.1"])
async def test_allowed_name_never_leads_to_this_machine_or_its_link(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", name_of(address))

    with pytest.raises(CallbackFailed, match="not an address of another machine"):
        await caller("hooks.example").send(
            receiver.url.replace("127.0.0.1", "hooks.example"), "msg_1", MESSAGE
        )

    assert receiver.taken == []


def name_of(address: str) -> Callable[..., Any]:
    """Answer as a name server does whose owner has changed their mind."""

    async def resolve(_: object, host: str, port: int = 0, family: int = 0) -> list[dict[str, Any]]:
        found = {"hostname": host, "host": address, "port": port, "family": family}
        return [{**found, "proto": 0, "flags": 0}]

    return resolve
