"""A head that came before is not read again, and yet means what it would mean alone."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.gateway.lane.lane import MAX_BODY_BYTES
from supervisor.gateway.lane.plain_head import read_plain_head
from supervisor.gateway.lane.server import LaneServer, split_length
from tests.conftest import RunningController, StartController

names = st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"])
colons = st.sampled_from([b":", b": ", b":  ", b" : "])
lengths = st.one_of(st.integers(0, 10**8).map(b"%d".__mod__), st.sampled_from([b"-1", b"1e3", b""]))
others = st.sampled_from(
    [
        b"",
        b"X: a\r\n",
        b"Connection: close\r\n",
        b"Content-Length: 7\r\n",
        b"Expect: 100-continue\r\n",
    ]
)


def head(*lines: bytes) -> bytes:
    return b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\n" + b"".join(lines) + b"\r\n"


@given(before=others, name=names, colon=colons, length=lengths, behind=others)
def test_a_head_without_its_length_is_read_as_the_whole_head(
    before: bytes, name: bytes, colon: bytes, length: bytes, behind: bytes
) -> None:
    whole = head(before, name + colon + length + b"\r\n", behind)
    shape, taken_out = split_length(whole)

    alone, known = read_plain_head(whole), read_plain_head(shape)

    assert (known is None) == (alone is None)
    if alone is not None and known is not None:
        assert (known.length if taken_out is None else taken_out) == alone.length
        assert known.keeps_alive == alone.keeps_alive
        assert without_length(known.head.headers) == without_length(alone.head.headers)


def without_length(headers: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    return [each for each in headers if each[0].lower() != b"content-length"]


@pytest.fixture
async def lanes(start_controller: StartController) -> tuple[RunningController, LaneServer]:
    controller = await start_controller()
    assert isinstance(controller.server, LaneServer)
    return controller, controller.server


async def test_heads_that_differ_in_length_alone_are_one(
    lanes: tuple[RunningController, LaneServer],
) -> None:
    _, server = lanes
    known = [server.recognise(head(b"Content-Length: %d\r\n" % size)) for size in (5, 12_345)]

    (first, short), (second, long) = (each for each in known if each is not None)

    assert first is second
    assert (short, long) == (5, 12_345)


async def test_another_configuration_reads_them_anew(
    lanes: tuple[RunningController, LaneServer],
) -> None:
    controller, server = lanes
    holder = controller.parts.configuration
    content = head(b"Content-Length: 5\r\n")
    before = server.recognise(content)
    settings = holder.current.settings
    shorter = settings.server.model_copy(update={"max_body_bytes": 4})

    holder.apply(replace(holder.current, settings=settings.model_copy(update={"server": shorter})))

    after = server.recognise(content)
    assert before is not None
    assert after is not None
    assert (before[0].max_body_bytes, after[0].max_body_bytes) == (MAX_BODY_BYTES, 4)


async def test_many_different_heads_are_not_all_kept(
    lanes: tuple[RunningController, LaneServer],
) -> None:
    _, server = lanes
    first = server.recognise(head(b"X: first\r\n"))
    for number in range(300):
        server.recognise(head(b"X: %d\r\n" % number))

    again = server.recognise(head(b"X: first\r\n"))

    assert first is not None
    assert again is not None
    assert again[0] is not first[0]
