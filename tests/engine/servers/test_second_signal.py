"""A server whose handler hangs on the first stop signal, and ends on the second.

llama-server does so when the signal interrupts its main thread while that holds the lock of its
queue: the handler then waits for the same lock.
"""

import signal
from collections.abc import Awaitable, Callable

from supervisor.engine.servers.process import ChildProcess, ProcessExit

HANGS_ON_THE_FIRST = "trap 'trap - TERM' TERM; echo up; while :; do sleep 0.05; done"


async def test_a_process_that_misses_the_first_signal_gets_a_second_before_the_grace_is_over(
    spawn: Callable[..., ChildProcess], eventually: Callable[..., Awaitable[None]]
) -> None:
    child = spawn(sh=HANGS_ON_THE_FIRST)
    await eventually(lambda: child.last_lines)

    assert await child.stop(30) == ProcessExit(exit_code=None, signal=signal.SIGTERM)
