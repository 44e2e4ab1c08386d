"""What becomes of a call after it was read: a lease, an exchange with the backend, a reply.

One implementation for every door. Streams are passed on as they come, never collected. A client
that leaves cancels the call, which cuts the connection to the backend and so frees the slot.
"""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
import structlog

from supervisor.arbiter.arbiter import Arbiter
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Target
from supervisor.engine.servers.backend import Backend
from supervisor.engine.targets import Targets
from supervisor.errors import RequestRefused
from supervisor.gateway.call import Call, Headers, header
from supervisor.gateway.reply import EVENT_STREAM, REQUEST_ID, Reply, ReplyState
from supervisor.gateway.upstream import BackendAnswer, exchange

log = structlog.get_logger()

MAX_REPEATS = 3
"""Servers that one request may see die before its client is told."""

COLLECT_UP_TO_BYTES = 1024 * 1024
"""Answers up to this length are read whole before they are sent: a backend that dies in the middle
of one is a 502, and its turn does not wait for a slow reader."""

_SHOWN_BYTES = 64 * 1024
"""How much of a backend's error a client is shown in an event."""

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)  # RFC 9110, section 7.6.1
_OURS = frozenset({"authorization", "x-api-key", "x-request-id", "content-length", "expect"})
_OURS_IN_ANSWERS = frozenset({"x-request-id"})


class Relay:
    """Has calls answered by backends."""

    def __init__(
        self, *, arbiter: Arbiter, targets: Targets, configuration: ConfigurationHolder
    ) -> None:
        self._arbiter = arbiter
        self._targets = targets
        self._configuration = configuration

    async def answer(self, call: Call, reply: Reply) -> None:
        """Answer the call by the backend of its model, or with the reason why not."""
        try:
            await self._lease_and_exchange(call, reply)
        except RequestRefused as error:
            await reply.refuse(error)
        finally:
            await reply.stop_comments()

    async def _lease_and_exchange(self, call: Call, reply: Reply) -> None:
        """Lease a backend and ask it, once more where it died before its first byte."""
        target = self._targets.target(call.model) if call.model is not None else None
        repeats_left = MAX_REPEATS if call.may_repeat else 0
        after_s = self._configuration.current.settings.queue.early_answer_after_s
        is_early = after_s is not None and call.streams
        due_at = time.monotonic() + (after_s or 0.0)
        while True:
            if is_early:
                reply.comment_from(
                    due_at, lambda: describe_wait(self._arbiter.snapshot, call.model)
                )
            async with self._arbiter.lease(target, call.mode, len(call.body)) as lease:
                refuse_slot_files(call, lease.backend)
                reply.epoch, reply.model = lease.backend.epoch, lease.backend.model
                reply.waited_s += lease.waited_s
                try:
                    return await ask_backend(call, lease.backend, reply)
                except RequestRefused:  # the client has not got a byte of the answer yet
                    if not repeats_left or not await lease.backend.is_found_dead():
                        raise
            repeats_left -= 1
            log.info("request.repeated", request_id=call.request_id, epoch=lease.backend.epoch)


async def ask_backend(call: Call, backend: Backend, reply: Reply) -> None:
    """Send the call to a leased backend, and what it answers to the client.

    Raises RequestRefused as long as the client has not got a byte of the answer.
    """
    if reply.state is ReplyState.NOT_BEGUN:
        await reply.stop_comments()
    headers = request_headers(call, backend)
    async with exchange(backend, call.method, call.target, headers, call.body) as answer:
        await reply.stop_comments()
        if reply.state is ReplyState.EARLY:
            if not _is_event_stream(answer):
                return await reply.break_off(await _other_answer(answer, backend))
            reply.state = ReplyState.STREAMING
            return await _stream(answer, reply)
        kept = answer_headers(answer.headers)
        if _is_short(call, answer):
            return await reply.send_whole(answer.status, answer.reason, kept, await answer.read())
        await reply.begin(answer.status, answer.reason, kept)
        return await _stream(answer, reply)


def _is_short(call: Call, answer: BackendAnswer) -> bool:
    """Whether the whole answer is there soon, and is not long."""
    is_short = answer.length is not None and answer.length <= COLLECT_UP_TO_BYTES
    return is_short or call.method == "HEAD"


async def _stream(answer: BackendAnswer, reply: Reply) -> None:
    """Pass the backend's answer on into a reply that has begun, and end it as that ends."""
    try:
        async for chunk in answer:
            await reply.pass_on(chunk)
    except RequestRefused as error:
        await reply.break_off(error)
    else:
        await reply.end()


def request_headers(call: Call, backend: Backend) -> Headers:
    """Return the client's headers for the backend: hop-by-hop ones out, its key and the id in."""
    kept = [*_without_hop_by_hop(call.headers, _OURS), ("Authorization", backend.authorization)]
    if backend.launch.abilities.takes_request_id:
        kept.append((REQUEST_ID, call.request_id))
    return tuple(kept)


def answer_headers(headers: Headers) -> Headers:
    """Return the backend's headers for the client, hop-by-hop ones out."""
    return tuple(_without_hop_by_hop(headers, _OURS_IN_ANSWERS))


def _without_hop_by_hop(headers: Headers, others: frozenset[str]) -> Iterable[tuple[str, str]]:
    dropped = _HOP_BY_HOP | others
    for name, value in headers:
        if name.lower() == "connection":  # it may stand there twice
            dropped |= {option.strip().lower() for option in value.split(",")}
    return ((name, value) for name, value in headers if name.lower() not in dropped)


def refuse_slot_files(call: Call, backend: Backend) -> None:
    """Keep clients off the files of slots that the controller itself saves and restores.

    Raises RequestRefused. A backend takes the last of repeated values: any of them counts.
    """
    acts_on_files = not {"save", "restore"}.isdisjoint(call.query_values("action"))
    if backend.launch.prompt_files is None or not acts_on_files:
        return
    if call.path.startswith("/slots/"):
        raise RequestRefused(
            "slot_files_reserved",
            "this model's prompts are kept over switches by the controller (keep_prompt_cache), "
            "and its slots are saved and restored by nobody else; set keep_prompt_cache: false to "
            "do it yourself",
        )


def describe_wait(snapshot: Snapshot, model: str | None) -> str:
    """Say what a call for this model waits for: `loading embedding model minilm`."""
    loading = _what_is_loading(snapshot, model)
    if loading is not None:
        return f"loading {loading.mode} model {loading.model}"
    return "waiting for the answer" if snapshot.switch is None else "unloading"


def _what_is_loading(snapshot: Snapshot, model: str | None) -> Target | None:
    if snapshot.switch is not None:
        return snapshot.switch.target
    down = snapshot.recovery(model) or next(iter(snapshot.recoveries), None)
    return down.target if down is not None else None


def _is_event_stream(answer: BackendAnswer) -> bool:
    """Whether the answer's bytes may follow in a reply that has begun as an event stream."""
    is_plain = header(answer.headers, "content-encoding") in {None, "identity"}
    content_type = (header(answer.headers, "content-type") or "").partition(";")[0]
    return answer.status < 400 and is_plain and content_type.strip().lower() == EVENT_STREAM


async def _other_answer(answer: BackendAnswer, backend: Backend) -> RequestRefused:
    """Tell a client that has its 200 already what the backend answered instead of a stream."""
    content = b""
    try:
        async for chunk in answer:
            content += chunk
            if len(content) >= _SHOWN_BYTES:
                break
    except RequestRefused:
        content = b""  # it broke on the way; the status is told
    return RequestRefused(
        "no_event_stream",
        f"the server of '{backend.model}' answered {answer.status} {answer.reason}, not with "
        "an event stream; its answer is in `answer`",
        {"status": answer.status, "answer": _as_json(content[:_SHOWN_BYTES])},
    )


def _as_json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except msgspec.MsgspecError:
        return content.decode(errors="replace")
