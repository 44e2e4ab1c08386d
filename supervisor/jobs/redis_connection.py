"""The way to the Redis server that several controllers share; needs the extra `[redis]`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import TimeoutError as NoAnswer

from supervisor.errors import ConfigError, RequestRefused
from supervisor.jobs.redis_common import COMMON

PREFIX = "llama-supervisor:"
"""What the names of our keys begin with: another product may have others there."""

_ANSWER_S = 15.0
_LOOK_S = 1.0
_NOT_WRITTEN = "MISCONF"
"""How an error begins of a server that cannot write to its disk."""

_REFUSES_NOW = (ClusterDownError, ReadOnlyError)
_REFUSES_NOW_WORDS = ("BUSY", "NOREPLICAS", "UNBLOCKED")
"""Errors of a server that is there and does no work for us, as while another becomes the master;
those that the library has no class for, by how they begin."""


class RedisConnection:
    """Sends commands and scripts, once more where the connection was stale.

    So each must be one that does no harm when it is done twice.

    Every method raises RequestRefused: `queue_unreachable` where the server does not answer,
    `storage_full` where it takes nothing more.
    """

    def __init__(self, url: str) -> None:
        """Connect at the first use. Raises ConfigError for a URL that the library cannot use."""
        # No time-out of the library's: it is kept by `asyncio.wait_for`, which before Python 3.12
        # swallows a cancellation that comes at the same moment as the answer.
        try:
            self._redis: Any = Redis.from_url(
                url, protocol=2, socket_timeout=None, retry=Retry(NoBackoff(), retries=1)
            )
            _require_known_parameters(self._redis)
        except (TypeError, ValueError, NoConnection) as error:
            raise ConfigError((f"jobs.queue_url: cannot be used: {error}",)) from error

    async def ask(self, *command: Any) -> Any:
        """Send one command."""
        async with self._speaking():
            return await self._redis.execute_command(*command)

    async def ask_all(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands in one go; others' may come in between."""
        async with self._speaking(), self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, Exception):  # the library would put the command before it
                    raise answer
        return answers

    async def run(self, script: str, *words: Any) -> Any:
        """Run one of our scripts, which happens wholly or not at all."""
        async with self._speaking():
            return await self._redis.register_script(COMMON + script)(keys=[PREFIX], args=words)

    async def why_it_passes(self) -> str | None:
        """Say why what the server was told may be lost; None where nothing speaks against it."""
        try:
            async with asyncio.timeout(_LOOK_S):
                asked = (("INFO", "persistence"), ("INFO", "memory"))
                persistence, memory = await self.ask_all(*asked)
        except (RequestRefused, TimeoutError):
            return "the server does not answer"
        except ResponseError:
            return None  # it may not be asked
        if not persistence["aof_enabled"]:
            return (
                "the server keeps no append-only file, so that a restart loses the last minutes, "
                "or all; set appendonly yes"
            )
        policy = memory["maxmemory_policy"]
        if policy != "noeviction":
            return f"the server drops what it has when memory is short ({policy}); set noeviction"
        return None

    async def close(self) -> None:
        """Let go."""
        await self._redis.aclose()

    @asynccontextmanager
    async def _speaking(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_ANSWER_S):
                yield
        except (NoConnection, NoAnswer, OSError) as error:
            reason = str(error) or f"it was silent for {_ANSWER_S:.0f} s"
            raise RequestRefused(
                "queue_unreachable",
                f"the server of the queue of jobs (jobs.queue_url) does not answer: {reason}",
            ) from error
        except ResponseError as error:
            if isinstance(error, _REFUSES_NOW) or str(error).startswith(_REFUSES_NOW_WORDS):
                # The name in the URL may mean another server by now.
                await self._redis.connection_pool.disconnect(inuse_connections=False)
                raise RequestRefused(
                    "queue_unreachable",
                    f"the server of the queue of jobs (jobs.queue_url) does nothing now: {error}",
                ) from error
            if not (isinstance(error, OutOfMemoryError) or str(error).startswith(_NOT_WRITTEN)):
                raise
            raise RequestRefused(
                "storage_full",
                f"the server of the queue of jobs (jobs.queue_url) takes nothing more: {error}; "
                "give it more room",
            ) from error


def _require_known_parameters(redis: Any) -> None:
    """Raise what the library does where no connection takes a parameter; none is opened."""
    redis.connection_pool.make_connection()
