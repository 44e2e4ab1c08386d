"""What the fast lane serves, what it hands over, and that nobody can tell which door it was."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.gateway.lane.lane import MAX_BODY_BYTES, FastLane
from supervisor.gateway.lane.plain_head import may_be_plain, read_plain_head
from tests.conftest import RunningController, StartController
from tests.gateway.conftest import ENDLESS, until

HOST = b"Host: localhost\r\n"
TOKENIZE = b'{"content": "Hello world"}'


def request(
    head: bytes = HOST,
    *,
    method: bytes = b"POST",
    target: bytes = b"/tokenize",
    body: bytes = TOKENIZE,
) -> bytes:
    """A request; `head` are whole lines, to which the length is added where there is a body."""
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\n%b%b\r\n%b" % (method, target, head, length, body)


class Client:
    """A connection on which bytes are sent and answers read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, headers in lower case, body."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        start, *lines = head.strip().split("\r\n")
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readexactly(2)
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return int(start.split()[1]), headers, body

    async def ask(self, content: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes and read the answer."""
        self.writer.write(content)
        return await self.answer()

    async def is_closed(self) -> bool:
        """Whether the server closes the connection, with nothing more to read."""
        return await self._reader.read() == b""


def holds(condition: Callable[[], bool]) -> Callable[[], Awaitable[bool]]:
    """Make a condition one that `until` can await."""

    async def ask() -> bool:
        return condition()

    return ask


async def connect(controller: RunningController) -> Client:
    host, _, port = controller.url.removeprefix("http://").partition(":")
    return Client(*await asyncio.open_connection(host, int(port)))


@pytest.fixture
async def embedding(start_controller: StartController) -> RunningController:
    """A controller with an embedding model live."""
    controller = await start_controller()
    await controller.switch_to("minilm")
    return controller


@pytest.fixture
async def client(embedding: RunningController) -> AsyncIterator[Client]:
    """A connection to it."""
    made = await connect(embedding)
    yield made
    made.writer.close()


PLAIN = {
    "a call": request(),
    "a call of a model's raw server": request(target=b"/upstream/minilm/tokenize"),
    "a GET": request(method=b"GET", target=b"/props", body=b""),
    "a model that is named": request(body=b'{"model": "minilm", "content": "x"}'),
    "a connection to be closed": request(HOST + b"Connection: close\r\n"),
}


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
async def test_plain_request_does_not_come_to_the_other_door(
    embedding: RunningController, client: Client, content: bytes
) -> None:
    before = embedding.server.requests_count

    status, headers, body = await client.ask(content)

    assert (status, embedding.server.requests_count - before) == (200, 0)
    assert json.loads(body)
    assert headers["x-request-id"]


@pytest.mark.parametrize(
    "content",
    [
        request(),
        request(target=b"/v1/embeddings", body=b'{"input": "a"}'),
        request(target=b"/v1/embeddings", body=b'{"input": []}'),
        request(target=b"/api/embed", body=b"no JSON"),
    ],
    ids=["of the server", "of ours", "a refusal", "a refusal in Ollama's form"],
)
async def test_answers_of_both_doors_have_the_same_headers(client: Client, content: bytes) -> None:
    odd = content.replace(HOST, HOST + b"TE: trailers\r\n")

    (one, plain, _), (other, headers, _) = await client.ask(content), await client.ask(odd)

    assert (one, plain.keys()) == (other, headers.keys())
    assert parsedate_to_datetime(plain["date"]).tzinfo is UTC
    assert plain.get("server") == headers.get("server")


ODD = {
    "a route of ours": (request(method=b"GET", target=b"/status", body=b""), 200),
    "two requests at once": (request() + request(), 200),
    "a method of its own": (request(method=b"PUT"), 404),
    "an old version": (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
    "a chunked body": (
        b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        b"1a\r\n" + TOKENIZE + b"\r\n0\r\n\r\n",
        200,
    ),
    "a compressed body": (request(HOST + b"Content-Encoding: identity\r\n"), 200),
    "two hosts": (request(HOST + HOST), 400),
    "no host": (request(b""), 400),
    "lengths that differ": (request(HOST + b"Content-Length: 1\r\n"), 400),
    "a header over two lines": (request(HOST + b"X: a\r\n b\r\n"), 400),
    "half a line's end": (request(HOST + b"X: a\n"), 400),
    "another protocol": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
    "an unknown model": (request(body=b'{"model": "nobody", "content": "a"}'), 404),
    "a model that is not live": (request(body=b'{"model": "demo-chat", "content": "a"}'), 409),
    "a long head": (request(HOST + b"X: " + b"x" * 8150 + b"\r\n"), 200),
    "a long body": (request(body=b'{"content": "%b"}' % (b"x" * MAX_BODY_BYTES)), 200),
}


@pytest.mark.parametrize(("content", "status"), ODD.values(), ids=ODD)
async def test_other_request_is_answered_by_the_other_door(
    embedding: RunningController, client: Client, content: bytes, status: int
) -> None:
    before = len(embedding.server.connections)

    answered, _, _ = await client.ask(content)

    assert answered == status
    assert status == 400 or len(embedding.server.connections) == before + 1


@pytest.mark.parametrize("name", ["a route of ours", "a model that is not live"])
async def test_connection_comes_back_behind_a_plain_request(
    embedding: RunningController, client: Client, name: str
) -> None:
    before = embedding.server.requests_count
    content, expected = ODD[name]

    answers = [await client.ask(each) for each in (content, request(), content, request())]

    assert [status for status, _, _ in answers] == [expected, 200] * 2
    assert embedding.server.requests_count - before == 2
    connections = [each for each in embedding.server.connections if each.transport is not None]
    assert len(connections) == 1  # that of the fixture, which has switched


@pytest.mark.parametrize("name", ["two requests at once", "a chunked body", "an old version"])
async def test_connection_stays_where_it_is_not_sure_where_a_request_ends(
    embedding: RunningController, client: Client, name: str
) -> None:
    before = embedding.server.requests_count
    content, _ = ODD[name]
    count = 2 if name == "two requests at once" else 1
    content = content.replace(b"HTTP/1.0\r\n", b"HTTP/1.0\r\nConnection: keep-alive\r\n")

    client.writer.write(content)
    statuses = [(await client.answer())[0] for _ in range(count)]
    statuses.append((await client.ask(request()))[0])

    assert statuses == [200] * (count + 1)
    assert embedding.server.requests_count - before == count + 1


async def test_request_that_does_not_wait_for_an_answer_of_ours_is_answered_behind_it(
    embedding: RunningController, client: Client
) -> None:
    client.writer.write(ODD["a route of ours"][0])
    await asyncio.sleep(0)
    client.writer.write(request())

    answers = [await client.answer(), await client.answer()]

    assert [status for status, _, _ in answers] == [200, 200]
    assert json.loads(answers[1][2]) == {"tokens": [7592, 2088]}


async def test_request_that_comes_in_pieces_is_served(
    embedding: RunningController, client: Client
) -> None:
    content, before = request(), embedding.server.requests_count

    for at in range(0, len(content), 7):
        client.writer.write(content[at : at + 7])
        await asyncio.sleep(0)
    status, _, _ = await client.answer()

    assert (status, embedding.server.requests_count - before) == (200, 0)


async def test_request_that_does_not_come_whole_in_time_goes_to_the_other_door(
    embedding: RunningController, client: Client
) -> None:
    content = request()
    client.writer.write(content[:-1])

    await until(holds(lambda: bool(embedding.server.connections)))
    status, _, _ = await client.ask(content[-1:])

    assert status == 200


async def test_next_request_waits_for_the_answer_before_it(
    embedding: RunningController, client: Client
) -> None:
    client.writer.write(request(body=b'{"content": "one"}'))
    await client.writer.drain()
    client.writer.write(request(body=b'{"content": "two and more"}'))

    one, two = await client.answer(), await client.answer()

    assert (one[0], two[0]) == (200, 200)
    assert len(json.loads(one[2])["tokens"]) < len(json.loads(two[2])["tokens"])
    assert embedding.parts.arbiter.snapshot.backends[0].in_flight == 0


async def test_connection_closes_behind_the_answer_where_its_client_asks_for_it(
    client: Client,
) -> None:
    status, headers, _ = await client.ask(PLAIN["a connection to be closed"])

    assert (status, headers["connection"]) == (200, "close")
    assert await client.is_closed()


async def test_client_that_sends_no_more_gets_its_answer(client: Client) -> None:
    client.writer.write(request())
    client.writer.write_eof()

    status, _, body = await client.answer()

    assert (status, json.loads(body)["tokens"]) == (200, [7592, 2088])
    assert await client.is_closed()


async def test_client_that_leaves_gives_lease_and_slot_back(
    start_controller: StartController,
) -> None:
    controller = await start_controller()
    await controller.switch_to("bench-chat")
    client = await connect(controller)
    client.writer.write(request(target=b"/completion", body=json.dumps(ENDLESS).encode()))
    await until(holds(lambda: controller.parts.arbiter.snapshot.backends[0].in_flight == 1))

    client.writer.transport.abort()

    await until(holds(lambda: controller.parts.arbiter.snapshot.backends[0].in_flight == 0))


async def test_call_that_would_wait_waits_at_the_other_door(
    embedding: RunningController, client: Client
) -> None:
    body = b'{"model": "demo-chat", "content": "Hello"}'
    switching = asyncio.create_task(embedding.switch_to("demo-chat"))
    await until(holds(lambda: embedding.parts.arbiter.snapshot.switch is not None))

    status, _, _ = await client.ask(request(body=body))

    assert status == 200
    assert len(embedding.server.connections) >= 1
    await switching


async def test_door_can_be_closed(start_controller: StartController) -> None:
    settings = {"server": {"fast_lane": False}, "devices": {"host": {"exclusive": True}}}
    controller = await start_controller(files={"supervisor.yaml": settings})
    await controller.switch_to("minilm")
    before = controller.server.requests_count

    client = await connect(controller)
    status, _, _ = await client.ask(request())
    client.writer.close()

    assert (status, controller.server.requests_count - before) == (200, 1)


@pytest.mark.parametrize(
    "line",
    [
        b"Expect: 100-continue",
        b"TE: trailers",
        b"Transfer-Encoding: chunked",
        b"Upgrade: h2c",
        b"Content-Encoding: gzip",
        b"Origin: http://h",
        b"Sec-Fetch-Site: cross-site",
        b"Connection: keep-alive, x",
        b"Connection: close\r\nConnection: close",
        b"Content-Length: +3",
        b"Content-Length : 3",
        b"X: a\r\n\tb",
        b"X: \0",
    ],
)
def test_head_with_such_a_line_is_not_plain(line: bytes) -> None:
    plain = read_plain_head(b"POST /x HTTP/1.1\r\nHost: h\r\n\r\n")
    odd = read_plain_head(b"POST /x HTTP/1.1\r\nHost: h\r\n" + line + b"\r\n\r\n")

    assert (plain is not None, odd) == (True, None)


@pytest.mark.parametrize(
    "target", [b"//x", b"x", b"*", b"http://h/x", b"/x#y", b"/\xc3\xa4", b"/\\x"]
)
def test_target_of_another_form_is_not_plain(target: bytes) -> None:
    assert read_plain_head(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n") is None


def test_head_may_become_plain_as_long_as_it_begins_so() -> None:
    assert may_be_plain(b"PO")
    assert may_be_plain(b"GET /x")
    assert not may_be_plain(b"PUT")
    assert not may_be_plain(b"\x16\x03")


class Broken:
    """A client's connection, and all that stands behind it: its answers break off."""

    def __init__(self) -> None:
        self.crossed = 0
        self.is_closed = False

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: self

    def get_extra_info(self, _: str) -> None:
        """Nobody knows who it is."""

    def recognise(self, _: bytes) -> tuple[Any, int]:
        plain = SimpleNamespace(keeps_alive=True)
        return SimpleNamespace(plain=plain, max_body_bytes=0), 0

    def cross(self, *_: Any) -> Any:
        self.crossed += 1
        return self

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


def test_nothing_is_answered_behind_an_answer_that_broke_off() -> None:
    """Its bytes would pass for those that are missing."""
    world: Any = Broken()
    lane = FastLane(world, 0.0)
    lane.connection_made(world)
    for _ in range(2):  # the second one waits
        lane.data_received(b"GET / HTTP/1.1\r\n\r\n")
    lane.pause_writing()
    lane.cut()
    lane.resume_writing()
    assert world.crossed == 1
