"""Runs the controller: listens, loads the default model, and drains when it is asked to end."""

import asyncio
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Callable, Iterator

import structlog
from aiohttp import web

from supervisor import __version__
from supervisor.app import Controller, build
from supervisor.config.configuration import Configuration
from supervisor.errors import RequestRefused
from supervisor.listening import BACKLOG, open_sockets, url_of
from supervisor.wiring.ground import Options

log = structlog.get_logger()

GC_THRESHOLD = (10_000, 10, 100)
"""Objects until a young collection, and its multiples: while thousands of requests wait, each full
collection looks through all of them, and holds every answer up meanwhile."""

DEFAULT_MODEL = "default model"
"""What an impairment is called while the default model cannot be loaded."""


class Signals:
    """The signals that end us: the first drains, the second ends the draining.

    While we start, the first one cuts that short: there is nothing to drain yet.
    """

    def __init__(self) -> None:
        self.came = asyncio.Queue[signal.Signals]()
        self.starting: asyncio.Task[None] | None = None
        """What starts us; None once we serve."""

    def take(self, number: signal.Signals) -> None:
        """Note a signal."""
        self.came.put_nowait(number)
        if self.starting is not None:
            log.info("controller.stopping", signal=number.name, drain_timeout_s=0.0)
            self.starting.cancel()
            self.starting = None


async def serve(configuration: Configuration, options: Options) -> None:
    """Run the controller until SIGTERM or SIGINT, then drain, stop the children and return.

    A second signal stops at once. Raises SupervisorError when it cannot start.
    """
    raise_open_files_limit()
    with _signals() as signals:
        task = signals.starting = asyncio.create_task(
            _serve(configuration, options, signals), name="serve"
        )
        await asyncio.wait([task])
        if not task.cancelled():
            await task  # which raises what it did
    log.info("controller.stopped")


async def _serve(configuration: Configuration, options: Options, signals: Signals) -> None:
    async with build(configuration, options) as controller:
        runner = controller.door.runner()
        await runner.setup()
        try:
            await _listen(runner, configuration, options)
            await load_first_model(controller)
            # What stands now stays until the end: no collection need look through it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLD)
            signals.starting = None
            await _run_until_signalled(controller, signals)
        finally:
            await runner.cleanup()


def raise_open_files_limit() -> None:
    """Allow ourselves as many open files as we may: each request takes two, and 1024 is usual."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _listen(runner: web.BaseRunner, configuration: Configuration, options: Options) -> None:
    server = configuration.settings.server
    hosts = options.hosts or server.hosts
    port = server.port if options.port is None else options.port
    for one in open_sockets(hosts, port):
        await web.SockSite(runner, one, backlog=BACKLOG).start()
        log.info("controller.listening", url=url_of(one), version=__version__, pid=os.getpid())


async def load_first_model(controller: Controller) -> None:
    """Begin to load what the schedule has now, else the default model.

    One whose device cannot be used is an impairment, and loaded once that can be.
    """
    read = await controller.schedule.read(controller.arbiter.snapshot.agenda.over)
    controller.arbiter.post(read)
    if read.periods and read.periods[0].target is not None:
        return
    default = controller.configuration.current.catalogue.default_model
    if default is not None and _is_loadable(controller, default):
        _load_default(controller, default)


def _is_loadable(controller: Controller, model: str) -> bool:
    """Whether the model's devices can be used now; if not, it is loaded when they can be."""
    try:
        controller.targets.require_device(controller.targets.target(model))
    except RequestRefused as refusal:
        loop = asyncio.get_running_loop()
        reason = f"'{model}' is not loaded: {refusal.message}"
        if controller.impairments.note(
            DEFAULT_MODEL,
            reason,
            lambda: _soon(loop, lambda: _load_at_last(controller, model)),
        ):
            log.warning("startup.default_model_waits", model=model, reason=refusal.message)
        return False
    controller.impairments.clear(DEFAULT_MODEL)
    return True


def _soon(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call on the loop, from whichever thread; one that has ended calls nothing any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def _load_at_last(controller: Controller, model: str) -> None:
    """Load the default model where its devices have come, and nobody else has them already."""
    snapshot = controller.arbiter.snapshot
    if snapshot.is_closing or snapshot.switch is not None or not _is_loadable(controller, model):
        return
    if not snapshot.sharing(*controller.targets.target(model).devices):
        _load_default(controller, model)


def _load_default(controller: Controller, model: str) -> None:
    try:
        controller.arbiter.request_switch(controller.targets.target(model), "startup")
    except RequestRefused as refusal:  # a client was faster, and its model is on the way
        log.info("startup.default_model_left_out", model=model, reason=refusal.message)


async def _run_until_signalled(controller: Controller, signals: Signals) -> None:
    """Wait for the first signal, drain; the second signal ends the draining."""
    first = await signals.came.get()
    drain_s = controller.configuration.current.settings.switch.shutdown_drain_timeout_s
    log.info("controller.stopping", signal=first.name, drain_timeout_s=drain_s)
    draining = asyncio.create_task(controller.shut_down(drain_s), name="shutdown")
    again = asyncio.create_task(signals.came.get(), name="second-signal")
    await asyncio.wait([draining, again], return_when=asyncio.FIRST_COMPLETED)
    if not draining.done():
        log.info("controller.stopping_now")
        await controller.arbiter.shut_down(0)
    again.cancel()
    await draining


@contextlib.contextmanager
def _signals() -> Iterator[Signals]:
    """Take the signals that end us, as long as the context lasts.

    A terminal that closes sends SIGHUP, which ends us, too. Where there was none when we began,
    somebody means a daemon to read its configuration anew, which is noted and nothing more. One
    that is ignored, as under nohup, stays so.
    """
    signals = Signals()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.take, number)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        if _has_terminal():
            loop.add_signal_handler(signal.SIGHUP, signals.take, signal.SIGHUP)
        else:
            loop.add_signal_handler(signal.SIGHUP, _note_hangup)
    yield signals


def _note_hangup() -> None:
    log.info("controller.signal_ignored", signal="SIGHUP", hint="send SIGTERM to stop it")


def _has_terminal() -> bool:
    """Whether a terminal controls us, whatever our standard streams are."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
