"""A thread for one vendor's library, which may stop answering for good."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from supervisor.errors import TelemetryError

T = TypeVar("T")


class VendorThread:
    """Runs blocking calls one after another, each with a deadline, in a daemon thread.

    A call that misses its deadline cannot be interrupted: it is left behind, and until it
    returns every further call is refused at once. `concurrent.futures` would do the same work, but
    joins its threads when the process exits, so that a hung driver would hold the exit up.
    """

    def __init__(self, vendor: str) -> None:
        self._vendor = vendor
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._calls = queue.SimpleQueue()
        self._left_behind: Future[Any] | None = None
        self._thread = threading.Thread(target=self._serve, name=f"{vendor} driver", daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T], *, deadline_s: float) -> T:
        """Run `call` and give its result or its exception.

        Raises TelemetryError when the driver did not answer in time, now or since an earlier call.
        """
        future = self._submit(call)
        try:
            async with asyncio.timeout(deadline_s):
                return await asyncio.wrap_future(future)
        except TimeoutError as exc:
            raise self._give_up(future, deadline_s) from exc

    def run_blocking(self, call: Callable[[], T], *, deadline_s: float) -> T:
        """Do the same as `run` where there is no event loop to keep free."""
        future = self._submit(call)
        try:
            return future.result(timeout=deadline_s)
        except TimeoutError as exc:
            raise self._give_up(future, deadline_s) from exc

    def stop(self) -> None:
        """End the thread once it is idle. A call that hangs is left to the process's exit."""
        self._calls.put(None)

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        if self._left_behind is not None and not self._left_behind.done():
            raise TelemetryError(
                f"the {self._vendor} driver still does not answer an earlier call; {_REMEDY}"
            )
        future: Future[T] = Future()
        self._calls.put((future, call))
        return future

    def _give_up(self, future: Future[Any], deadline_s: float) -> TelemetryError:
        if not future.cancel():  # it had begun: only its own return frees the thread
            self._left_behind = future
        return TelemetryError(
            f"the {self._vendor} driver did not answer within {deadline_s:g} s; {_REMEDY}"
        )

    def _serve(self) -> None:
        while (job := self._calls.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as exc:  # noqa: BLE001 - it belongs to whoever waits for it
                    future.set_exception(exc)


_REMEDY = (
    "see the kernel log (NVRM, Xid, amdgpu); a driver that hangs needs a GPU reset or a reboot"
)
