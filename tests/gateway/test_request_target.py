"""Every form of a target, and every other way of beginning a request, has its right answer."""

import pytest

from tests.conftest import RunningController
from tests.gateway.conftest import raw_request

HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("start", "headers", "status"),
    [
        pytest.param(b"CONNECT a.example:443 HTTP/1.1", HOST, 405, id="CONNECT"),
        pytest.param(b"OPTIONS * HTTP/1.1", HOST, 204, id="OPTIONS *"),
        pytest.param(b"GET * HTTP/1.1", HOST, 400, id="GET *"),
        pytest.param(b"GET /a\x0bb HTTP/1.1", HOST, 400, id="control character"),
        pytest.param(b"GET /a%0Ab HTTP/1.1", HOST, 200, id="an encoded newline is relayed"),
        pytest.param(b"GET /a?b=c#d HTTP/1.1", HOST, 400, id="fragment"),
        pytest.param(b"GET http://localhost/a#d HTTP/1.1", HOST, 400, id="fragment of a URL"),
        pytest.param(
            b"GET /a HTTP/1.1", b"Host: localhost:x\r\n", 400, id="a Host that is not one"
        ),
        pytest.param(b"GET /a HTTP/1.1", b"Host: a\xffb\r\n", 400, id="a Host that is not text"),
        pytest.param(
            b"POST /unload HTTP/1.1", HOST + b"Origin: http://\xff\r\n", 403, id="such an Origin"
        ),
        pytest.param(
            b"GET /status HTTP/1.1", HOST + b"Origin: \xff\r\n", 200, id="one that only reads"
        ),
        pytest.param(
            b"POST /completion HTTP/1.1",
            HOST + b"Expect: \xff\r\nContent-Length: 1\r\n",
            417,
            id="such an expectation",
        ),
        pytest.param(b"GET ftp://a/b HTTP/1.1", HOST, 400, id="another scheme"),
        pytest.param(b"GET / HTTP/2.0", HOST, 505, id="HTTP/2.0"),
        pytest.param(
            b"GET /echo HTTP/1.1",
            HOST + b"Connection: keep-alive\r\nConnection: close, X-Own\r\nX-Own: 1\r\n",
            200,
            id="Connection twice",
        ),
    ],
)
async def test_request_gets_the_right_status(
    faulty: RunningController, start: bytes, headers: bytes, status: int
) -> None:
    request = start + b"\r\n" + headers + b"\r\n"
    async with raw_request(faulty, request) as (reader, _):
        first = await reader.readline()

    assert int(first.split()[1]) == status, first


@pytest.mark.parametrize(
    ("target", "relayed"),
    [
        (b"http://localhost:8000/echo?x=1", b"/echo?x=1"),
        (b"HTTP://127.0.0.1", b"/"),
        (b"http://localhost?x=1", b"/?x=1"),
    ],
)
async def test_absolute_form_is_relayed_as_its_path(
    faulty: RunningController, target: bytes, relayed: bytes
) -> None:
    request = b"GET " + target + b" HTTP/1.1\r\nHost: other.example\r\nConnection: close\r\n\r\n"
    async with raw_request(faulty, request) as (reader, _):
        answer = await reader.read()

    assert b'"target": "' + relayed + b'"' in answer


async def test_absolute_form_of_a_foreign_host_is_refused(faulty: RunningController) -> None:
    request = b"GET http://evil.example/health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with raw_request(faulty, request) as (reader, _):
        assert b" 403 " in await reader.readline()
