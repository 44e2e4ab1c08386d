"""Watches the processes all the time: on an exclusive device two servers never run at once."""

import asyncio
from collections.abc import Callable

from chaos_runner.controller import Controller
from chaos_runner.ledger import Ledger

_POLL_S = 0.02


async def watch_servers(
    controller: Controller, ledger: Ledger, is_over: Callable[[], bool]
) -> None:
    """Look at the controller's servers until the storm is over; each pair is told once."""
    told: set[tuple[int, ...]] = set()
    while not is_over():
        servers = tuple(controller.servers())
        if controller.life.is_exclusive and len(servers) > 1 and servers not in told:
            told.add(servers)
            ledger.violate("two servers", f"{servers} run at once on an exclusive device")
        await asyncio.sleep(_POLL_S)
