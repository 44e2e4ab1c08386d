"""What becomes of a call after it was read: a lease, an exchange with the backend, a reply.

One implementation for every door. Streams are passed on as they come, never collected. A client
that leaves cancels the call, which cuts the connection to the backend and so frees the slot.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import structlog

from supervisor.arbiter.arbiter import Arbiter, Lease
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.placing import free_of_hands_at
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import BackendState, Target
from supervisor.engine.servers.answer import ServerAnswer
from supervisor.engine.servers.backend import MAX_REPEATS, Backend
from supervisor.engine.targets import Targets
from supervisor.errors import BackendUnreachable, RequestRefused
from supervisor.gateway.bodies import BodyAccount
from supervisor.gateway.call import SERVED_BY, Call, Headers
from supervisor.gateway.event_stream import EVENT_STREAM, media_type
from supervisor.gateway.hop_by_hop import answer_headers
from supervisor.gateway.reply import Reply, ReplyState
from supervisor.observability.request_log import RequestRecord

log = structlog.get_logger()

COLLECT_UP_TO_BYTES = 1024 * 1024
"""Answers up to this length are read whole before they are sent: a backend that dies in the middle
of one is a 502, and its permit does not wait for a slow reader."""

_SHOWN_BYTES = 64 * 1024
"""How much of a backend's error a client is shown in an event."""


class Relay:
    """Has calls answered by backends."""

    def __init__(
        self, *, arbiter: Arbiter, configuration: ConfigurationHolder, targets: Targets
    ) -> None:
        self.arbiter = arbiter
        """What grants leases."""
        self._configuration = configuration
        self._targets = targets

    async def answer(self, call: Call, reply: Reply) -> None:
        """Answer the call by the backend of its model, or with the reason why not."""
        try:
            await self._lease_and_exchange(call, reply)
        except RequestRefused as error:
            await reply.refuse(error)
        finally:
            if reply.comments is not None:
                await reply.stop_comments()

    async def _lease_and_exchange(self, call: Call, reply: Reply) -> None:
        """Lease a backend and ask it, once more where it died before its first byte."""
        repeats_left = MAX_REPEATS
        began_at = time.monotonic()
        lease_id = self.arbiter.new_request_id()
        while True:
            async with self._lease(call, reply, lease_id, began_at) as lease:
                backend, record = lease.backend, reply.record
                record.model, record.epoch = backend.model, backend.epoch
                record.waited_s += lease.waited_s
                try:
                    return await ask_backend(call, lease, reply)
                except BackendUnreachable as error:
                    is_streaming = reply.state is ReplyState.STREAMING
                    patience_s = _patience_s(call, error)
                    is_dead = not is_streaming and await backend.is_found_dead(patience_s)
                    if not is_dead or not repeats_left or not may_repeat(call, error):
                        raise self.explained(
                            error, backend, record, is_streaming=is_streaming
                        ) from error
            repeats_left -= 1
            log.info("request.repeated", request_id=call.request_id, epoch=backend.epoch)

    @asynccontextmanager
    async def _lease(
        self, call: Call, reply: Reply, lease_id: str, began_at: float
    ) -> AsyncIterator[Lease]:
        """Lease a backend, at once or when its turn has come. Raises RequestRefused."""
        lease = self.arbiter.lease_at_once(call.wanted, call.priority, may_spill=call.may_spill)
        if lease is not None:
            try:
                refuse_slot_files(call, lease.backend)
                yield lease
            finally:
                lease.end()
            return
        wanted = self._begin_to_wait(call, reply, lease_id, began_at)
        waits_since, has_waited_in_vain = time.monotonic(), True
        try:
            async with self.arbiter.lease(
                wanted,
                may_switch=call.head.may_switch and wanted is not None,
                may_spill=call.may_spill,
                priority=call.priority,
                request_id=lease_id,
            ) as lease:
                has_waited_in_vain = False
                if reply.account is not None:
                    reply.account.end_wait()
                refuse_slot_files(call, lease.backend)
                yield lease
        finally:
            if has_waited_in_vain:
                reply.record.waited_s += time.monotonic() - waits_since

    def _begin_to_wait(
        self, call: Call, reply: Reply, lease_id: str, began_at: float
    ) -> Target | None:
        """Count the body among those that wait, and have a stream shown signs of life.

        Returns what is wanted, on the device that it would have now. Raises RequestRefused:
        `bad_request` for what only a server that is live would be asked to refuse, `queue_full`, or
        `telemetry_lost` for a device that cannot be used.
        """
        if call.fault is not None and call.named is None:
            raise call.fault
        wanted = call.wanted
        if wanted is not None and call.head.may_switch:
            wanted = self._targets.target(wanted.model)
            wanted = self._targets.usable(wanted, may_spill=call.may_spill)
        reply.record.model = wanted.model if wanted else None
        if reply.account is not None:
            self.count_waiting(reply.account, reply.record.model)
        after_s = self._configuration.current.settings.queue.early_answer_after_s
        if after_s is not None and call.streams:
            reply.comment_from(
                began_at + after_s,
                lambda: describe_wait(self.arbiter.snapshot, wanted, lease_id, time.monotonic()),
            )
        return wanted

    def count_waiting(self, account: BodyAccount, model: str | None) -> None:
        """Count a body among those that wait for a model. Raises RequestRefused."""
        try:
            account.begin_to_wait(model)
        except RequestRefused as error:
            waiting = self.arbiter.snapshot.requests.waiting_for(model)
            error.details["queue_position"] = waiting + 1
            raise

    def explained(
        self,
        error: BackendUnreachable,
        backend: Backend,
        record: RequestRecord,
        *,
        is_streaming: bool,
    ) -> RequestRefused:
        """Say, too, what became of a server that broke its connection, or for what it was cut."""
        if backend.is_stopping:
            return RequestRefused(
                "backend_unreachable",
                f"the server of '{backend.model}' was stopped after {record.age_s:.1f} s of this "
                f"request, for {describe_cause(self.arbiter.snapshot)}",
                {**error.details, "after_s": round(record.age_s, 1)},
            )
        state = "" if is_streaming and backend.process.is_running else f"; {backend.standing}"
        return RequestRefused(error.code, f"{error.message}{state}", error.details)


def may_repeat(call: Call, error: BackendUnreachable) -> bool:
    """Whether a call whose server died under it may be sent to the next one."""
    return call.may_repeat or error.may_repeat


def _patience_s(call: Call, error: BackendUnreachable) -> float:
    """Return how long a call waits until its server, which cannot be reached, has died."""
    return max(0.0, call.deadline_at - time.monotonic()) if may_repeat(call, error) else 0.0


async def ask_backend(call: Call, lease: Lease, reply: Reply) -> None:
    """Send the call to a leased backend, and what it answers to the client.

    The lease ends with the backend's part: no switch waits for a client that reads slowly. Raises
    BackendUnreachable; the reply's state tells whether the client has got a byte by then.
    """
    backend = lease.backend
    if reply.comments is not None and reply.state is ReplyState.NOT_BEGUN:
        await reply.stop_comments()
    async with backend.exchange(call.request) as answer:
        answer.on_end(lease.end)
        if reply.comments is not None:
            await reply.stop_comments()
        status, reason, headers, length = (
            answer.status,
            answer.reason,
            answer.headers,
            answer.length,
        )
        if reply.state is ReplyState.EARLY:
            if not _is_event_stream(answer):
                return await reply.break_off(await _other_answer(answer, backend))
            reply.state = ReplyState.STREAMING
        elif call.head.method == "HEAD" or (length is not None and length <= COLLECT_UP_TO_BYTES):
            kept = (*answer_headers(headers), *served_by(call, backend))
            return await reply.send_whole(status, reason, kept, await answer.read())
        else:
            kept = (*answer_headers(headers), *served_by(call, backend))
            await reply.begin(status, reason, kept)
        async for chunk in answer:
            await reply.pass_on(chunk)
        return await reply.end()


def served_by(call: Call, backend: Backend) -> Headers:
    """Return what tells a client which of two servers of its model answered."""
    if call.wanted is None or call.wanted.spill is None:
        return ()
    return ((SERVED_BY, backend.launch.profile.encode()),)


def refuse_slot_files(call: Call, backend: Backend) -> None:
    """Keep clients off the files of slots that the controller itself saves and restores.

    Raises RequestRefused.
    """
    if call.head.moves_slots and backend.launch.prompt_files is not None:
        raise RequestRefused(
            "slot_files_reserved",
            "this model's prompts are kept over switches by the controller (keep_prompt_cache), "
            "and nobody else may save and restore its slots; set keep_prompt_cache: false to "
            "do it yourself",
        )


def describe_cause(snapshot: Snapshot) -> str:
    """Say for what servers are being stopped now: `a switch to 'minilm'`."""
    if snapshot.is_closing:
        return "the shutdown of the controller"
    if snapshot.switch is None:
        return "a switch that has ended"
    if snapshot.switch.target is None:
        return "an unload"
    return f"a switch to '{snapshot.switch.target.model}'"


def describe_wait(snapshot: Snapshot, wanted: Target | None, request_id: str, at: float) -> str:
    """Say where a call stands, and what it waits for: `position 2, loading … model minilm`."""
    position = snapshot.requests.position_of(request_id)
    awaited = _what_is_awaited(snapshot, wanted, at)
    return awaited if position is None else f"position {position}, {awaited}"


def _what_is_awaited(snapshot: Snapshot, wanted: Target | None, at: float) -> str:
    switch, model = snapshot.switch, wanted.model if wanted is not None else None
    if switch is not None:
        loading = "unloading" if switch.target is None else _loading(switch.target)
        leaving = [b for b in snapshot.backends if b.state is BackendState.DRAINING]
        running = sum(backend.in_flight for backend in leaving)
        return f"{loading} (in flight before it: {running})" if running else loading
    down = snapshot.recovery(model) or next(iter(snapshot.recoveries), None)
    if down is not None:
        return _loading(down.target)
    if wanted is None or model in snapshot.live_models():
        return "waiting for the answer"
    decision = snapshot.scheduling.decision
    decided = decision.reason if decision is not None else ""
    return _why_not_yet(snapshot, wanted, at) or decided or "waiting for the answer"


def _why_not_yet(snapshot: Snapshot, wanted: Target, at: float) -> str:
    """Say why the scheduler does not think of a model for now, so that no decision is about it."""
    setback = snapshot.scheduling.setbacks.get(wanted.model)
    free_at = free_of_hands_at(snapshot, wanted)
    if not snapshot.agenda.admits(wanted):
        return f"waiting for a period in which {wanted.model} is served"
    if setback is not None and setback.until > at:
        return f"{wanted.model} did not come up; it is tried again in {setback.until - at:.0f} s"
    if free_at > at:
        return f"somebody has chosen what is live by hand, for {free_at - at:.0f} s more"
    return ""


def _loading(target: Target) -> str:
    return f"loading {target.mode} model {target.model}"


def _is_event_stream(answer: ServerAnswer) -> bool:
    """Whether the answer's bytes may follow in a reply that has begun as an event stream."""
    is_plain = answer.value(b"content-encoding") in {None, b"identity"}
    return answer.status < 400 and is_plain and media_type(answer.headers) == EVENT_STREAM


async def _other_answer(answer: ServerAnswer, backend: Backend) -> RequestRefused:
    """Tell a client that has its 200 already what the backend answered instead of a stream."""
    content = b""
    try:
        async for chunk in answer:
            content += chunk
            if len(content) >= _SHOWN_BYTES:
                break
    except RequestRefused:
        content = b""  # it broke on the way; the status is there
    shown = _as_json(content[:_SHOWN_BYTES])
    return RequestRefused(
        "no_event_stream",
        f"the server of '{backend.model}' answered {answer.status} {answer.reason}, not with "
        f"an event stream{_reason_in(shown)}; its answer is in `answer`",
        {"status": answer.status, "answer": shown},
    )


def _reason_in(shown: Any) -> str:
    """Return what an error of llama-server's says, for clients that show no more than a message."""
    error = shown.get("error") if isinstance(shown, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return f" ({message})" if message else ""


def _as_json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.MsgspecError:
        return content.decode(errors="replace")
