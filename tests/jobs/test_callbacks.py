"""Messages to receivers: signed as their libraries verify it, and only where operators allow it."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from supervisor.config.settings import JobSettings
from supervisor.errors import RequestRefused
from supervisor.jobs import callback_jobs
from supervisor.jobs.callback_jobs import CallbackHandler
from supervisor.jobs.callbacks import CallbackFailed, Caller, check_url, read_key
from supervisor.jobs.disk_files import DiskFiles
from supervisor.jobs.handling import Begun, Outcome
from supervisor.jobs.insisting import Insisting
from supervisor.jobs.port import FileStore, JobQueue
from supervisor.jobs.runner import JobRunner
from supervisor.jobs.values import Job, JobKind, JobState, Line, LineResult
from supervisor.jobs.worker import MAX_ATTEMPTS
from supervisor.observability.impairments import Impairments
from tests.jobs.conftest import add_running, has_room, new_job
from tests.patience import PATIENCE_S

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
    return Caller(KEY, lambda: hosts)


async def test_receiver_verifies_the_message_with_the_schemes_own_library(
    receiver: Receiver,
) -> None:
    await caller("127.0.0.1").send(receiver.url, "msg_1", MESSAGE)

    ((body, headers),) = receiver.taken
    assert Webhook(KEY).verify(body, headers) == MESSAGE
    assert headers["webhook-id"] == "msg_1"
    with pytest.raises(WebhookVerificationError):
        Webhook(KEY).verify(body + b" ", headers)


def test_key_without_the_schemes_prefix_is_taken_as_it_is_written() -> None:
    assert read_key("any words") == b"any words"


@pytest.mark.parametrize("key", ["", "whsec_", "whsec_no base64!"])
def test_nobody_is_called_without_a_key(key: str) -> None:
    with pytest.raises(RequestRefused, match="cannot be signed"):
        Caller(key, lambda: ("127.0.0.1",)).check("http://127.0.0.1/")


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
    international = JobSettings(
        callback_hosts=("bücher.example",), callback_key_env="KEY"
    ).callback_hosts
    check_url("https://bücher.example/hook", international)
    check_url("https://xn--bcher-kva.example/hook", international)


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


class Running:
    """A queue whose batches end at once, and whose ends are told."""

    def __init__(self, queue: JobQueue, files: FileStore, host: str) -> None:
        self.queue = queue
        self.runner = JobRunner(
            queue,
            files,
            {
                JobKind.BATCH: EndsAtOnce(),
                JobKind.CALLBACK: CallbackHandler(queue, caller(host)),
            },
            insisting=Insisting(Impairments()),
            workers=1,
            keep_s=lambda: 9e9,
            require_room=has_room,
        )

    async def told(self, job_id: str, state: JobState) -> Job:
        """Wait until the callback of a job has come to a state."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                job = await self.queue.job(f"callback_{job_id}_1")
                if job is not None and job.state is state:
                    return job
                await asyncio.sleep(0.02)


class EndsAtOnce:
    max_claim = 1
    written_out = frozenset[JobState]()

    async def begin(self, job: Job) -> Begun:
        return Begun(job.entering(JobState.FAILED, 1001.0, reason="for a test"))

    def answer(self, lines: Sequence[Line]) -> AsyncIterator[Sequence[Outcome]]:
        raise NotImplementedError

    def failure(self, line: Line, code: str, reason: str) -> LineResult:
        raise NotImplementedError

    async def end(self, job: Job) -> Job:
        raise NotImplementedError


@pytest.fixture
async def running(
    queue: JobQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setattr(callback_jobs, "PAUSES_S", (0.05,) * 7)
    found = Running(queue, DiskFiles(tmp_path), "127.0.0.1")
    found.runner.start()
    yield found
    await found.runner.stop()


async def test_end_of_a_job_is_told_once_in_the_form_of_openais_webhooks(
    running: Running, receiver: Receiver
) -> None:
    await running.queue.add(new_job("batch_1", spec={"callback_url": receiver.url}))
    await running.queue.add(new_job("batch_2"))
    await running.told("batch_1", JobState.COMPLETED)

    ((body, headers),) = receiver.taken
    assert Webhook(KEY).verify(body, headers) == {
        "object": "event",
        "id": "callback_batch_1_1",
        "type": "batch.failed",
        "created_at": 1001,
        "data": {"id": "batch_1", "state": "failed", "round": 1},
    }
    assert headers["webhook-id"] == "callback_batch_1_1"
    assert await running.queue.job("callback_batch_2_1") is None


async def test_receiver_that_fails_is_told_again_under_the_same_id(
    running: Running, receiver: Receiver
) -> None:
    receiver.status = 503
    await running.queue.add(new_job("batch_1", spec={"callback_url": receiver.url}))
    async with asyncio.timeout(PATIENCE_S):
        while len(receiver.taken) < 3:
            await running.queue.wait(0.02)
    receiver.status = 200
    job = await running.told("batch_1", JobState.COMPLETED)

    assert {headers["webhook-id"] for _, headers in receiver.taken} == {"callback_batch_1_1"}
    assert job.counts.repeats >= 3
    assert "answered 503" in job.reason


async def test_receiver_that_never_takes_it_is_given_up_with_the_reason(
    running: Running, receiver: Receiver
) -> None:
    receiver.status = 500
    await running.queue.add(new_job("batch_1", spec={"callback_url": receiver.url}))
    job = await running.told("batch_1", JobState.FAILED)

    assert len(receiver.taken) == MAX_ATTEMPTS
    assert "after 8 attempts" in job.reason
    assert "answered 500" in job.reason


async def test_receiver_that_is_gone_is_not_asked_again(
    running: Running, receiver: Receiver
) -> None:
    receiver.status = 410
    await running.queue.add(new_job("batch_1", spec={"callback_url": receiver.url}))
    await running.told("batch_1", JobState.FAILED)

    assert len(receiver.taken) == 1


async def test_end_that_is_not_known_yet_is_not_told(running: Running, receiver: Receiver) -> None:
    job = new_job("batch_1", spec={"callback_url": receiver.url}, lines=1, not_before=9e9)
    ended = job.entering(JobState.COMPLETED, 1002.0)
    await running.runner.stop()  # which would end it before it is in progress
    await add_running(running.queue, job)
    running.runner.start()
    callback = callback_jobs.callback_of(ended)
    assert callback is not None
    await running.queue.add(callback)
    async with asyncio.timeout(PATIENCE_S):
        while not (await running.queue.job(callback.id) or callback).counts.repeats:
            await running.queue.wait(0.02)
    assert receiver.taken == []
    assert await running.queue.change(ended, JobState.IN_PROGRESS)
    await running.told("batch_1", JobState.COMPLETED)

    ((body, _),) = receiver.taken
    assert json.loads(body)["type"] == "batch.completed"
