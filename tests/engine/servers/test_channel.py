"""The channel to a server: every framing of an answer, what is sent again, and who may send."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from supervisor.engine.port import Address
from supervisor.engine.servers import slow_readers
from supervisor.engine.servers.addresses import choose_address
from supervisor.engine.servers.answer import BUFFER_BYTES
from supervisor.engine.servers.channel import Channel, Exchange
from supervisor.engine.servers.connection import MAX_HEAD_BYTES
from supervisor.engine.servers.framing import Head, Request
from supervisor.errors import BackendUnreachable
from tests.engine.servers.fake_upstream import CLOSE, RESET, WAIT, FakeUpstream, listening
from tests.patience import PATIENCE_S

Eventually = Callable[..., Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(params=["unix socket", "TCP"])
def address(request: pytest.FixtureRequest, run_dir: Path) -> Address:
    """Where the fake server listens."""
    return choose_address(run_dir, 1, has_unix_socket=request.param == "unix socket")


@pytest.fixture
def upstream() -> FakeUpstream:
    """A server that answers `/hello`; a test writes further scripts."""
    return FakeUpstream(scripts={"/hello": [HELLO]})


OpenChannel = Callable[..., Awaitable[Channel]]


@pytest.fixture
async def open_channel(address: Address, upstream: FakeUpstream) -> AsyncIterator[OpenChannel]:
    """Opens channels to the fake server, and closes them."""
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(listening(upstream, address))

        async def start(permits: int = 100, *, is_alive: bool = True, **options: Any) -> Channel:
            channel = Channel(address, "Bearer key", permits, is_alive=lambda: is_alive, **options)
            stack.callback(channel.close)
            return channel

        yield start
        upstream.go_on.set()


class Recorder:
    """A receiver that notes what it gets."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.body = b""
        self.is_over = asyncio.Event()
        self.error: BackendUnreachable | None = None

    def take(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        if head is not None:
            self.events.append(head.form.status)
        self.body += data
        if is_end:
            self.events.append("end")
            self.is_over.set()

    def failed(self, error: BackendUnreachable) -> None:
        self.events.append("failed")
        self.error = error
        self.is_over.set()


def get(path: str) -> Request:
    return Request(method="GET", path=path)


async def ask(channel: Channel, path: str, method: str = "GET") -> tuple[int, bytes]:
    async with (
        asyncio.timeout(PATIENCE_S),
        channel.exchange(Request(method=method, path=path)) as answer,
    ):
        return answer.status, await answer.read()


async def fails(channel: Channel, path: str) -> BackendUnreachable:
    with pytest.raises(BackendUnreachable) as caught:
        await ask(channel, path)
    return caught.value


# Framings. Each is a script, what is read of it, and whether its connection may be used again.

FRAMINGS: dict[str, tuple[list[bytes], int, bytes, bool]] = {
    "length": ([HELLO], 200, b"hello", True),
    "length, head and body apart": ([HELLO[:-5], HELLO[-5:]], 200, b"hello", True),
    "length zero": ([OK + b"Content-Length: 0\r\n\r\n"], 200, b"", True),
    "byte by byte": ([bytes([b]) for b in HELLO], 200, b"hello", True),
    "no words behind the status": (
        [b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\na"],
        200,
        b"a",
        True,
    ),
    "chunked": ([CHUNKED, b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n", b"0\r\n\r\n"], 200, b"abcde", False),
    "chunked, with a trailer": ([CHUNKED + b"1\r\na\r\n0\r\nX-T: v\r\n\r\n"], 200, b"a", False),
    "chunked, byte by byte": (
        [bytes([b]) for b in CHUNKED + b"3\r\nabc\r\n0\r\n\r\n"],
        200,
        b"abc",
        False,
    ),
    "chunked and empty": ([CHUNKED + b"0\r\n\r\n"], 200, b"", False),
    "until the connection closes": ([OK + b"\r\nhel", b"lo", CLOSE], 200, b"hello", False),
    "until it closes, HTTP/1.0": ([b"HTTP/1.0 200 OK\r\n\r\nhello", CLOSE], 200, b"hello", False),
    "Connection: close": (
        [OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello"],
        200,
        b"hello",
        False,
    ),
    "204": ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b"", True),
    "204 with a chunked body": (
        [b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        204,
        b"",
        False,
    ),
    "304 that states a length": (
        [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n"],
        304,
        b"",
        True,
    ),
    "100 first": ([b"HTTP/1.1 100 Continue\r\n\r\n", HELLO], 200, b"hello", True),
    "103 and 100 in one piece": (
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n" + HELLO],
        200,
        b"hello",
        True,
    ),
    "an answer too many": ([HELLO + HELLO], 200, b"hello", False),
    "rubbish behind it": ([HELLO + b"rubbish"], 200, b"hello", False),
    "an error": ([b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\nno"], 503, b"no", True),
}


@pytest.mark.parametrize("name", FRAMINGS)
async def test_every_framing_is_read_whole_and_only_a_clean_connection_is_used_again(
    upstream: FakeUpstream, open_channel: OpenChannel, name: str
) -> None:
    script, status, body, is_kept = FRAMINGS[name]
    upstream.scripts["/odd"] = script
    channel = await open_channel()
    assert await ask(channel, "/odd") == (status, body)
    assert await ask(channel, "/hello") == (200, b"hello")
    assert upstream.connections == (1 if is_kept else 2)


async def test_a_late_byte_on_an_idle_connection_closes_it(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    upstream.scripts["/odd"] = [HELLO, WAIT, b"late"]
    channel = await open_channel()
    assert await ask(channel, "/odd") == (200, b"hello")
    upstream.go_on.set()
    await eventually(lambda: channel.open_connections == 0)
    assert await ask(channel, "/hello") == (200, b"hello")


@pytest.mark.parametrize("stray", [b"", b"hello"])
async def test_the_answer_to_a_head_ends_with_its_head(
    upstream: FakeUpstream, open_channel: OpenChannel, stray: bytes
) -> None:
    upstream.scripts["/head"] = [OK + b"Content-Length: 5\r\n\r\n" + stray]
    channel = await open_channel()
    async with channel.exchange(Request(method="HEAD", path="/head")) as answer:
        assert (answer.status, answer.length, await answer.read()) == (200, 5, b"")
    assert await ask(channel, "/hello") == (200, b"hello")


async def test_headers_are_kept_as_they_came(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    head = b"HTTP/1.1 201 Was Made\r\nX-A: 1\r\nx-a: 2\r\nX-E:\r\nContent-Length: 0\r\n\r\n"
    upstream.scripts["/odd"] = [head]
    async with (await open_channel()).exchange(get("/odd")) as answer:
        assert (answer.status, answer.reason) == (201, "Was Made")
        assert answer.headers == (
            (b"X-A", b"1"),
            (b"x-a", b"2"),
            (b"X-E", b""),
            (b"Content-Length", b"0"),
        )
        assert answer.value(b"x-a") == b"1"


BROKEN: dict[str, tuple[list[bytes], str]] = {
    "not HTTP": ([b"NOPE\r\n\r\n"], "not HTTP/1.1"),
    "two lengths": ([OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\na"], "not HTTP/1.1"),
    "length and chunked": (
        [OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na"],
        "not HTTP/1.1",
    ),
    "bare line feeds": ([b"HTTP/1.1 200 OK\nContent-Length: 0\n\n"], "not HTTP/1.1"),
    "a chunk size that is not a number": ([CHUNKED + b"zz\r\nabc\r\n"], "not HTTP/1.1"),
    "a switch of protocols": ([b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"], "not HTTP/1.1"),
    "a head without end": (
        [OK] + [b"X-A: " + b"a" * 1000 + b"\r\n"] * 80 + [WAIT],
        f"a head of more than {MAX_HEAD_BYTES} bytes",
    ),
    "a header without end": ([OK + b"X-A: ", b"a" * 100_000, WAIT], "a head of more than"),
    "closed before a byte": ([CLOSE], "closed the connection without an answer"),
    "reset before a byte": ([RESET], "without an answer"),
    "closed in the head": ([OK, CLOSE], "closed the connection in the middle"),
    "closed in the body": ([HELLO[:-1], CLOSE], "closed the connection in the middle"),
    "closed in a chunk": ([CHUNKED + b"5\r\nab", CLOSE], "closed the connection in the middle"),
    "closed between chunks": ([CHUNKED + b"1\r\na\r\n", CLOSE], "closed the connection in the"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_an_answer_that_is_not_whole_is_an_error_that_says_what_happened(
    upstream: FakeUpstream, open_channel: OpenChannel, name: str
) -> None:
    script, said = BROKEN[name]
    upstream.scripts["/odd"] = script
    channel = await open_channel()
    error = await fails(channel, "/odd")
    assert said in error.message
    assert not error.may_repeat
    assert len(upstream.requests) == 1
    assert await ask(channel, "/hello") == (200, b"hello")


# What is written


async def test_a_request_is_written_with_its_headers_and_ours(
    upstream: FakeUpstream, open_channel: OpenChannel, address: Address
) -> None:
    channel = await open_channel()
    request = Request(
        method="POST", path="/hello", headers=((b"X-A", b"1"), (b"X-A", b"2")), body=b"{}"
    )
    async with channel.exchange(request) as answer:
        await answer.read()
    host = b"localhost" if address.socket_path else b"127.0.0.1:%d" % (address.port or 0)
    assert upstream.requests == [
        b"POST /hello HTTP/1.1\r\nHost: " + host + b"\r\nAuthorization: Bearer key\r\n"
        b"X-A: 1\r\nX-A: 2\r\nContent-Length: 2\r\n\r\n{}"
    ]


@pytest.mark.parametrize(
    ("method", "is_stated"), [("GET", False), ("DELETE", False), ("PUT", True)]
)
async def test_a_request_without_body_states_a_length_where_one_is_expected(
    upstream: FakeUpstream, open_channel: OpenChannel, method: str, is_stated: bool
) -> None:
    await ask(await open_channel(), "/hello", method)
    assert (b"Content-Length: 0" in upstream.requests[0]) is is_stated


async def test_a_body_of_many_megabytes_arrives_whole(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    body = bytes(range(256)) * 40_000
    channel = await open_channel()
    async with channel.exchange(Request(method="POST", path="/hello", body=body)) as answer:
        assert await answer.read() == b"hello"
    assert upstream.requests[0].endswith(b"\r\n\r\n" + body)


@pytest.mark.parametrize(
    "request_",
    [
        get("/a b"),
        get("/a\r\nX: y"),
        get("/a\n"),
        Request(method="GET /x", path="/"),
        Request(method="GET", path="/", headers=((b"X-A", b"1\r\nX-B: 2"),)),
        Request(method="GET", path="/", headers=((b"X-A\n", b"1"),)),
        Request(method="GET", path="/", headers=((b"X-A", b"\0"),)),
    ],
)
async def test_what_would_be_read_as_two_requests_is_never_written(
    upstream: FakeUpstream, open_channel: OpenChannel, request_: Request
) -> None:
    channel = await open_channel()
    with pytest.raises(ValueError, match="line break"):
        async with channel.exchange(request_):
            pass
    assert channel.activity.requests == 0
    assert upstream.connections == 0


# Connections


async def test_the_connection_that_was_used_last_is_used_first(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    upstream.scripts["/wait"] = [WAIT, HELLO]
    channel = await open_channel()
    asking = [asyncio.create_task(ask(channel, "/wait")) for _ in range(5)]
    await eventually(lambda: len(upstream.requests) >= 5)
    upstream.go_on.set()
    await asyncio.gather(*asking)
    for _ in range(20):
        await ask(channel, "/hello")
    assert upstream.connections == 5
    in_use = channel.pool._idle[-1]
    assert in_use._uses == 21
    assert sorted(c._uses for c in channel.pool._idle) == [1, 1, 1, 1, 21]


async def test_an_idle_connection_is_closed_before_the_server_would(
    upstream: FakeUpstream,
    open_channel: OpenChannel,
    eventually: Eventually,
) -> None:
    channel = await open_channel(keepalive_s=0.05)
    await ask(channel, "/hello")
    assert channel.open_connections == 1
    await eventually(lambda: upstream.open_connections == 0)
    assert channel.open_connections == 0
    await ask(channel, "/hello")
    assert upstream.connections == 2


@pytest.mark.parametrize("how", [CLOSE, RESET])
async def test_a_stale_connection_costs_nothing_and_the_request_is_sent_once_more(
    upstream: FakeUpstream, open_channel: OpenChannel, how: bytes
) -> None:
    channel = await open_channel()
    await ask(channel, "/hello")
    upstream.first_scripts["/hello"] = [how]
    assert await ask(channel, "/hello") == (200, b"hello")
    assert len(upstream.requests) == 3
    assert upstream.connections == 2


async def test_a_used_connection_that_breaks_after_a_byte_is_not_sent_again(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    channel = await open_channel()
    await ask(channel, "/hello")
    upstream.scripts["/odd"] = [b"H", CLOSE]
    assert not (await fails(channel, "/odd")).may_repeat
    assert len(upstream.requests) == 2


async def test_a_request_whose_server_died_on_a_used_connection_is_not_sent_again(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    channel = await open_channel(is_alive=False)
    await ask(channel, "/hello")
    upstream.scripts["/odd"] = [CLOSE]
    assert not (await fails(channel, "/odd")).may_repeat
    assert len(upstream.requests) == 2


async def test_what_could_not_connect_may_be_repeated(address: Address) -> None:
    channel = Channel(address, "Bearer key", 1)
    for _ in range(3):  # its permit is given back each time
        error = await fails(channel, "/hello")
        assert "cannot be reached" in error.message
        assert error.may_repeat
    channel.close()


async def test_a_queue_of_connections_that_is_full_is_waited_for(
    run_dir: Path, eventually: Eventually
) -> None:
    address = choose_address(run_dir, 1, has_unix_socket=True)
    channel = Channel(address, "Bearer key", 10)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address.socket_path))
        listener.listen(0)
        recorders = [Recorder() for _ in range(6)]
        for recorder in recorders:
            channel.send(get("/hello"), recorder)
        await eventually(lambda: channel.open_connections >= 1)
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in recorders:
            async with asyncio.timeout(PATIENCE_S):
                client, _ = await loop.sock_accept(listener)
            with client:
                await loop.sock_recv(client, 65536)
                await loop.sock_sendall(client, HELLO)
        async with asyncio.timeout(PATIENCE_S):
            for recorder in recorders:
                await recorder.is_over.wait()
    assert [recorder.body for recorder in recorders] == [b"hello"] * 6
    channel.close()


# Permits


async def test_permits_are_given_in_order_and_those_who_wait_open_no_connection(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    channel = await open_channel(permits=2)
    for n in range(6):
        upstream.scripts[f"/{n}"] = [WAIT, HELLO]
    recorders = [Recorder() for _ in range(6)]
    for n, recorder in enumerate(recorders):
        channel.send(get(f"/{n}"), recorder)
    await eventually(lambda: len(upstream.requests) >= 2)
    assert channel.activity.requests == 2
    upstream.go_on.set()
    for recorder in recorders:
        await recorder.is_over.wait()
    paths = [request.split(b" ")[1] for request in upstream.requests]
    assert sorted(paths[:2]) == [b"/0", b"/1"]
    assert sorted(paths[2:4]) == [b"/2", b"/3"]
    assert sorted(paths[4:]) == [b"/4", b"/5"]
    assert upstream.connections == 2
    assert channel.activity.requests == 0


async def test_our_own_questions_do_not_wait_behind_requests(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    channel = await open_channel(permits=1)
    upstream.scripts["/wait"] = [WAIT, HELLO]
    channel.send(get("/wait"), Recorder())
    waiting = Recorder()
    channel.send(get("/hello"), waiting)
    async with (
        asyncio.timeout(PATIENCE_S),
        channel.exchange(get("/hello"), takes_permit=False) as answer,
    ):
        assert await answer.read() == b"hello"
    assert not waiting.events


async def test_one_that_leaves_the_queue_gives_its_permit_to_nobody_and_loses_none(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    channel = await open_channel(permits=1)
    upstream.scripts["/wait"] = [WAIT, HELLO]
    first, leaver, last = Recorder(), Recorder(), Recorder()
    channel.send(get("/wait"), first)
    channel.send(get("/hello"), leaver).cancel()
    channel.send(get("/hello"), last)
    upstream.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        await last.is_over.wait()
    assert not leaver.events
    assert await ask(channel, "/hello") == (200, b"hello")


async def test_cancelling_cuts_the_connection_and_frees_the_permit(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    channel = await open_channel(permits=1)
    upstream.scripts["/wait"] = [WAIT]
    left, following = Recorder(), Recorder()
    exchange = channel.send(get("/wait"), left)
    channel.send(get("/hello"), following)
    await eventually(lambda: upstream.requests)
    exchange.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await following.is_over.wait()
    assert following.body == b"hello"
    assert not left.events
    assert upstream.connections == 2


async def test_cancelling_before_the_connection_stands_leaves_nothing(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    channel = await open_channel(permits=1)
    recorder = Recorder()
    channel.send(get("/hello"), recorder).cancel()
    assert channel.activity.requests == 0
    assert await ask(channel, "/hello") == (200, b"hello")
    assert not recorder.events


class Canceller(Recorder):
    """Cancels its exchange when something comes."""

    exchange: Exchange

    def take(self, head: Head | None, data: bytes, *, is_end: bool) -> None:
        super().take(head, data, is_end=is_end)
        self.exchange.cancel()


@pytest.mark.parametrize("came", [b"", b"he"], ids=["head", "data"])
async def test_a_receiver_may_cancel_from_within_a_call(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually, came: bytes
) -> None:
    first = HELLO.removesuffix(b"hello") + came
    upstream.scripts["/apart"] = [first, HELLO.removeprefix(first)]
    channel = await open_channel()
    receiver = Canceller()
    receiver.exchange = channel.send(get("/apart"), receiver)
    await eventually(lambda: receiver.events)
    await eventually(lambda: channel.open_connections == 0)
    assert receiver.events == [200]
    assert receiver.body == came


# Slow readers


async def test_a_small_answer_frees_its_permit_however_slowly_it_is_read(
    upstream: FakeUpstream, open_channel: OpenChannel
) -> None:
    body = b"x" * (BUFFER_BYTES // 2)
    upstream.scripts["/small"] = [OK + b"Content-Length: %d\r\n\r\n" % len(body), body]
    channel = await open_channel(permits=1)
    async with channel.exchange(get("/small")) as slow:
        assert await ask(channel, "/hello") == (200, b"hello")
        assert await slow.read() == body


LARGE = [OK + b"Content-Length: %d\r\n\r\n" % (65536 * 400), *[b"x" * 65536] * 400]


async def test_a_large_answer_is_read_no_faster_than_it_is_taken(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    upstream.scripts["/large"] = LARGE
    channel = await open_channel()
    async with channel.exchange(get("/large")) as slow:
        await eventually(lambda: channel.activity.held == 1)
        assert channel.activity.requests == 1
        for _ in range(50):
            await asyncio.sleep(0)
        assert upstream.written_bytes < 10 * BUFFER_BYTES
        assert len(await slow.read()) == 65536 * 400
    assert channel.activity.held == 0


async def test_a_reader_that_leaves_in_a_pause_is_not_held_for_ever(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    piece = b"x" * 65536
    upstream.scripts["/large"] = [OK + b"\r\n", *[piece] * 400]
    channel = await open_channel(permits=1)
    async with channel.exchange(get("/large")):
        await eventually(lambda: channel.activity.held == 1)
    assert (channel.activity.held, channel.activity.requests) == (0, 0)
    assert await ask(channel, "/hello") == (200, b"hello")


async def test_a_reader_that_keeps_its_server_waiting_gives_its_permit_to_who_waits_for_one(
    upstream: FakeUpstream,
    open_channel: OpenChannel,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upstream.scripts["/large"] = LARGE
    monkeypatch.setattr(slow_readers, "CROWDED_PATIENCE_S", 0.05)
    channel = await open_channel(permits=1)
    async with channel.exchange(get("/large")) as slow:
        await eventually(lambda: channel.activity.held == 1)
        await asyncio.sleep(0.2)  # alone it may go on
        assert channel.activity.held == 1
        assert await ask(channel, "/hello") == (200, b"hello")
        with pytest.raises(BackendUnreachable, match="while others waited") as caught:
            await slow.read()
    assert not caught.value.may_repeat
    assert (channel.activity.held, channel.activity.requests) == (0, 0)


async def test_all_pauses_of_a_reader_count_together(
    upstream: FakeUpstream, open_channel: OpenChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A permit may be wanted by a switch, too: nobody holds it for ever, a piece at a time."""
    upstream.scripts["/wait"] = [HELLO[:-1], WAIT]
    monkeypatch.setattr(slow_readers, "CROWDED_PATIENCE_S", 0.05)
    monkeypatch.setattr(slow_readers, "PATIENCE_S", 0.2)
    channel = await open_channel(permits=1)
    recorder = Recorder()
    exchange = channel.send(get("/wait"), recorder)
    while not recorder.is_over.is_set():
        exchange.pause()
        await asyncio.sleep(0.02)
        exchange.resume()
        await asyncio.sleep(0)
    assert recorder.events == [200, "failed"]
    assert "for its client" in str(recorder.error)


# The end


async def test_closing_fails_what_is_in_flight_and_says_what_may_be_repeated(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    channel = await open_channel(permits=1)
    upstream.scripts["/wait"] = [HELLO[:-1], WAIT]
    reading, waiting, late = Recorder(), Recorder(), Recorder()
    channel.send(get("/wait"), reading)
    channel.send(get("/hello"), waiting)
    await eventually(lambda: reading.body)
    channel.close()
    channel.send(get("/hello"), late)
    assert not late.events, "a receiver hears nothing before it has its exchange"
    await late.is_over.wait()
    assert reading.events == [200, "failed"]
    assert [r.error.may_repeat for r in (reading, waiting, late) if r.error] == [False, True, True]
    assert all("is stopped" in r.error.message for r in (reading, waiting, late) if r.error)
    upstream.go_on.set()
    await eventually(lambda: upstream.open_connections == 0)


async def test_activity_counts_what_is_with_the_server_and_what_moves(
    upstream: FakeUpstream, open_channel: OpenChannel, eventually: Eventually
) -> None:
    channel = await open_channel()
    upstream.scripts["/wait"] = [CHUNKED + b"1\r\na\r\n", WAIT, b"1\r\nb\r\n0\r\n\r\n"]
    receiver = Recorder()
    channel.send(get("/wait"), receiver)
    await eventually(lambda: receiver.body == b"a")
    seen = channel.activity.signs
    assert channel.activity.requests == 1
    upstream.go_on.set()
    await receiver.is_over.wait()
    assert channel.activity.signs > seen
    assert channel.activity.requests == 0


async def test_our_own_questions_are_no_signs_of_life(open_channel: OpenChannel) -> None:
    channel = await open_channel()
    assert await channel.ask("GET", "/hello") == (200, b"hello")
    assert (channel.activity.signs, channel.activity.requests) == (0, 0)
