"""Calls a child past the product, with a client that is not ours."""

import aiohttp

from supervisor.engine.port import Address


def open_session(address: Address) -> aiohttp.ClientSession:
    """Open a client whose requests go to the child, whatever the host in their URL."""
    if address.socket_path is None:
        return aiohttp.ClientSession(f"http://127.0.0.1:{address.port}")
    connector = aiohttp.UnixConnector(str(address.socket_path))
    return aiohttp.ClientSession("http://localhost", connector=connector)
