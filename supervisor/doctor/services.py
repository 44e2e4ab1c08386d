"""Whether the servers that the configuration names can be reached: a connection, and no more."""

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import unquote, urlsplit

from supervisor.config.settings import SupervisorSettings
from supervisor.doctor.facts import ServiceFacts

_WAIT_S = 3.0
_REDIS_PORT, _QDRANT_PORT = 6379, 6333  # what their libraries take where a URL names none


def named_services(settings: SupervisorSettings) -> Iterator[ServiceFacts]:
    """Yield the servers that settings name. Their URLs are not kept: they may hold a password."""
    if settings.jobs.queue_url is not None:
        parts = urlsplit(settings.jobs.queue_url)
        if parts.scheme == "unix":
            yield ServiceFacts(setting="jobs.queue_url", host=unquote(parts.path), port=None)
        else:
            host, port = parts.hostname or "", parts.port or _REDIS_PORT
            yield ServiceFacts(setting="jobs.queue_url", host=host, port=port)
    if settings.vectors.url is not None:
        parts = urlsplit(settings.vectors.url)
        host, port = parts.hostname or "", parts.port or _QDRANT_PORT
        yield ServiceFacts(setting="vectors.url", host=host, port=port)


async def reach(service: ServiceFacts) -> ServiceFacts:
    """Connect to a server, let go again, and return it with what came of it; 3 s at most."""
    try:
        async with asyncio.timeout(_WAIT_S):
            if service.port is None:
                _, writer = await asyncio.open_unix_connection(service.host)
            else:
                _, writer = await asyncio.open_connection(service.host, service.port)
    except TimeoutError:
        return replace(service, problem=f"no answer in {_WAIT_S:.0f} s")
    except OSError as error:
        return replace(service, problem=_reason(error))
    writer.close()
    return service


def _reason(error: OSError) -> str:
    """Return the resolver's words or the kernel's: asyncio puts its own in the latter's place."""
    if isinstance(error, socket.gaierror) or error.errno is None:
        return error.strerror or str(error)
    return os.strerror(error.errno)
