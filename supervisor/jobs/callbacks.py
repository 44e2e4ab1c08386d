"""Tells a URL that a job has ended: signed, and only where operators allow it.

Messages and signatures are those of Standard Webhooks 1.0.0 (https://www.standardwebhooks.com), so
that receivers verify them with its libraries.
"""

import base64
import errno
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable, Collection

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from supervisor.errors import RequestRefused, SupervisorError

TIMEOUT_S = 15.0
"""Standard Webhooks asks receivers to answer within 15 to 30 s."""

_KEY_PREFIX = "whsec_"


class CallbackFailed(SupervisorError):
    """A receiver did not take the message; `is_final`: it wants no further attempt."""

    def __init__(self, reason: str, *, is_final: bool = False) -> None:
        super().__init__(reason)
        self.is_final = is_final


def read_key(text: str) -> bytes:
    """Return the key of signatures: base64 behind `whsec_`, or the text's own bytes.

    Raises RequestRefused for an empty one, and for what is no base64.
    """
    try:
        coded = text.removeprefix(_KEY_PREFIX)
        key = base64.b64decode(coded, validate=True) if coded != text else text.encode()
    except ValueError:
        key = b""
    if not key:
        raise _refused(
            "callbacks cannot be signed: the variable that jobs.callback_key_env names must have "
            f"a text, or base64 behind {_KEY_PREFIX}"
        )
    return key


def signature(key: bytes, message_id: str, at: int, body: bytes) -> str:
    """Sign a message with HMAC-SHA256 over `id.timestamp.body`; `at` in seconds since 1970."""
    signed = b".".join((message_id.encode(), str(at).encode(), body))
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def check_url(text: str, allowed: Collection[str]) -> None:
    """Raise RequestRefused unless the URL leads to an allowed host (`host`, or `host:port`)."""
    try:
        url = URL(text)
        host, port = url.raw_host, url.port
    except ValueError as error:
        raise _refused(f"{text!r} is not a URL: {error}") from error
    if url.scheme not in {"http", "https"} or not host:
        raise _refused(f"{text!r} is not a URL that begins with https:// or http://")
    if url.user is not None or url.password is not None:
        raise _refused("it holds a name or a password; receivers know us by the signature")
    if not {host, f"{host}:{port}"} & set(allowed):
        raise _refused(f"{host} is not among jobs.callback_hosts; have it added there")


def _refused(reason: str) -> RequestRefused:
    return RequestRefused("callback_not_allowed", f"callback_url: {reason}")


class _NamesOnly(AbstractResolver):
    """Gives no address of this machine or its link for a name, whoever answers for that name.

    An operator who allows a host means what stands in the network under that name, never our own
    loopback or a cloud's metadata service. Addresses and `localhost` are not looked up by
    name: they are allowed as they are written.
    """

    def __init__(self) -> None:
        self._system = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses that may be called. Raises OSError where there is none."""
        found = await self._system.resolve(host, port, family)
        outside = [each for each in found if host == "localhost" or _is_outside(each["host"])]
        if not outside:
            addresses = ", ".join(each["host"] for each in found)
            reason = f"{host} is {addresses}, which is not an address of another machine"
            raise OSError(errno.EACCES, reason)
        return outside

    async def close(self) -> None:
        """End what looks names up."""
        await self._system.close()


def _is_outside(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    address = getattr(address, "ipv4_mapped", None) or address
    return not (
        address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_unspecified
    )


class Caller:
    """Sends messages. `allowed` returns the hosts of today, which may be fewer than yesterday's."""

    def __init__(self, key: str, allowed: Callable[[], Collection[str]]) -> None:
        """`key`: see `read_key`."""
        self._key = key
        self._allowed = allowed

    def check(self, url: str) -> None:
        """Raise RequestRefused where the URL may not be called, or messages cannot be signed."""
        check_url(url, self._allowed())
        read_key(self._key)

    async def send(self, url: str, message_id: str, content: object) -> None:
        """Send a message once. Raises CallbackFailed unless the receiver answers 2xx.

        `message_id` is the same for each attempt, and receivers tell repeats by it. Redirects are
        not followed: they could lead anywhere.
        """
        try:
            self.check(url)
        except RequestRefused as error:
            raise CallbackFailed(error.message, is_final=True) from error
        body, at = msgspec.json.encode(content), int(time.time())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(at),
            "webhook-signature": signature(read_key(self._key), message_id, at, body),
        }
        try:
            status = await self._post(url, body, headers)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise CallbackFailed(f"{url} cannot be reached: {error or 'no answer'}") from error
        if not 200 <= status < 300:
            # 410: the receiver is gone for good (Standard Webhooks, "Operational considerations").
            raise CallbackFailed(f"{url} answered {status}", is_final=status == 410)

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> int:
        connector = aiohttp.TCPConnector(resolver=_NamesOnly(), force_close=True)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as client,
            client.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return answer.status
