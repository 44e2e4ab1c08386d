"""Reads a call out of a request's head and body, for every door in the same way."""

import time
from itertools import count
from secrets import token_hex
from urllib.parse import parse_qsl, unquote

from supervisor.config.configuration import Configuration
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.values import Mode, Target
from supervisor.core.scheduling.values import Priority
from supervisor.engine.servers.framing import Request
from supervisor.engine.spilling import is_small_body
from supervisor.engine.targets import Targets
from supervisor.engine.tasks import ModelTask
from supervisor.errors import RequestRefused
from supervisor.gateway.body_fields import (
    BrokenFields,
    opens_object,
    read_fields,
    unknown_encoding,
)
from supervisor.gateway.call import Call, CallHead, Headers, RequestHead
from supervisor.gateway.hop_by_hop import request_headers
from supervisor.gateway.relayed_routes import ANY_OTHER, ROUTE_BY_PATH, RelayedRoute

_request_id_prefix = token_hex(4)
_request_numbers = count(1)


UPSTREAM = "/upstream/"
"""What the model's name follows in the path of a request to the raw server of a model."""

_MAX_MEANINGS = 1024

_MAX_NAME_SEGMENTS = 8
"""How many slashes a model's name in a path may have; each is looked up."""

_SAFE_METHODS = frozenset({"GET", "HEAD"})

_MOVE_SLOTS = frozenset({("action", "save"), ("action", "restore")})
"""A backend takes the last of repeated values: any of them counts."""

_PRIORITIES = {priority.value.encode(): priority for priority in Priority}


class CallReader:
    """Makes calls, and knows what they may name."""

    def __init__(self, configuration: ConfigurationHolder, targets: Targets) -> None:
        self.configuration = configuration
        """What is in force: with another one, a head may say something else."""
        self._targets = targets
        self._meanings: dict[
            tuple[str | None, ModelTask | None], tuple[Target | None, Priority]
        ] = {}
        """What names and routes were found to mean."""
        self._meanings_of: Configuration | None = None
        """What has them mean that."""

    def read_head(self, head: RequestHead, *, is_raw: bool = False) -> CallHead:
        """Read what the head says, as the configuration in force has it.

        `is_raw`: the request target begins with `/upstream/` and a model's name, and the backend is
        sent what follows. Raises RequestRefused for a priority that is not one.
        """
        named, request_target = (
            self._behind_upstream(head) if is_raw else (None, head.request_target)
        )
        raw_path, _, raw_query = request_target.partition("?")
        path = unquote(raw_path)
        route = ROUTE_BY_PATH.get(path, ANY_OTHER)
        is_post, is_form = head.method == "POST", _is_form(head)
        is_work = is_post and route.computes and (not is_raw or self._is_able(named, route.task))
        auto_switch = self.configuration.current.settings.scheduler.auto_switch
        query = tuple(parse_qsl(raw_query, keep_blank_values=True)) if raw_query else ()
        return CallHead(
            method=head.method,
            path=path,
            request_target=request_target,
            query=query,
            moves_slots=path.startswith("/slots/")
            and (any(each in _MOVE_SLOTS for each in query) or is_form),
            sent=request_headers(head.headers),
            is_form=is_form,
            content_type=head.fields.get(b"content-type", b""),
            body_fault=_hidden_model(head.fields.get(b"content-encoding", b"")),
            named=named,
            task=route.task if is_post and not is_raw else None,
            may_switch=is_work and auto_switch,
            priority=_priority(head.fields.get(b"x-priority")),
            may_repeat=route.may_repeat or head.method in _SAFE_METHODS,
            may_stream=is_post and _may_stream(route) and head.takes_chunks,
        )

    def read(
        self, head: CallHead, body: bytes, request_id: str, content: bytes | None = None
    ) -> Call:
        """Read everything that is decided upon.

        `content` is the inflated body where it came compressed. Raises RequestRefused for a model
        that is unknown, cannot be read, or is not able to do what the path asks.
        """
        configuration = self.configuration.current
        queue = configuration.settings.queue
        fields = read_fields(head.content_type, content or body)
        named = head.named or (
            _one_model(fields.model, head.query, configuration) if head.query else fields.model
        )
        if configuration is not self._meanings_of:
            self._meanings, self._meanings_of = {}, configuration
        meaning = self._meanings.get((named, head.task))
        wanted, priority = meaning or self._find(configuration, named, head)
        urgency = head.priority or priority
        fault = head.body_fault if body else None
        if isinstance(fields, BrokenFields):
            why = f"the JSON body cannot be read: {fields.why}"
            fault = RequestRefused("bad_request", why)
        return Call(
            head=head,
            request=Request(
                method=head.method,
                path=head.request_target,
                headers=_sent_with(head, body) if head.is_form else head.sent,
                body=body,
                request_id=request_id,
            ),
            named=named,
            wanted=wanted,
            priority=urgency,
            streams=head.may_stream and fields.stream is True,
            may_repeat=head.may_repeat or queue.retry_generation,
            may_spill=wanted is not None
            and wanted.spill is not None
            and head.may_repeat  # what computes vectors or tokens, and changes nothing
            and head.method == "POST"
            and urgency is Priority.INTERACTIVE
            and is_small_body(len(body)),
            deadline_at=time.monotonic() + queue.hold_timeout_s,
            fault=fault,
        )

    def _find(
        self, configuration: Configuration, named: str | None, head: CallHead
    ) -> tuple[Target | None, Priority]:
        """Return what a name means, or the route where none is named, and how urgent that is."""
        wanted = None
        if named is not None:
            refuses = configuration.catalogue.unknown_models == "refuse"
            if refuses or configuration.model_name(named) is not None:
                wanted = self._targets.target(named)
        if wanted is None and head.task is not None:
            wanted = self._targets.target(self._targets.default_for(head.task))
        if wanted is None:
            return None, configuration.priority_of(None)
        if head.task is not None:
            self._targets.require_able(wanted, head.task, head.path)
        meaning = wanted, configuration.priority_of(wanted.model)
        if len(self._meanings) < _MAX_MEANINGS:
            self._meanings[named, head.task] = meaning
        return meaning

    def _is_able(self, name: str | None, task: ModelTask | None) -> bool:
        """Whether a model that may be unknown can do what a route asks."""
        known = self.configuration.current.model_name(name or "")
        return task is None or (known is not None and self._targets.is_able(known, task))

    def _behind_upstream(self, head: RequestHead) -> tuple[str, str]:
        """Return the model that the path names, which may have slashes, and what follows."""
        path, question_mark, query = head.request_target.removeprefix(UPSTREAM).partition("?")
        segments = path.split("/")
        for size in range(min(len(segments) - 1, _MAX_NAME_SEGMENTS), 1, -1):
            name = unquote("/".join(segments[:size]))
            if self.configuration.current.model_name(name) is not None:
                break
        else:
            size, name = 1, unquote(segments[0])
        return name, f"/{'/'.join(segments[size:])}{question_mark}{query}"


def _is_form(head: RequestHead) -> bool:
    """Whether llama-server's HTTP library reads the body as more of the query."""
    content_type = head.fields.get(b"content-type", b"")
    return content_type.lower().startswith(b"application/x-www-form-urlencoded")


def _sent_with(head: CallHead, body: bytes) -> Headers:
    """Return the headers that a backend is sent with what claims to be a form.

    `curl -d` says so of JSON, too. llama-server's HTTP library takes no more than 1 MiB of a form.
    """
    if not opens_object(body):
        return head.sent
    others = tuple(each for each in head.sent if each[0].lower() != b"content-type")
    return (*others, (b"Content-Type", b"application/json"))


def _hidden_model(encodings: bytes) -> RequestRefused | None:
    """Return why a body of these encodings does not tell its model; None where it may."""
    fault = unknown_encoding(encodings)
    if fault is None:
        return None
    why = f"{fault.message}, so that the model it names is not known; name one in the query"
    return RequestRefused(fault.code, f"{why} (?model=)", fault.details)


def _may_stream(route: RelayedRoute) -> bool:
    return route.task is not None and route.task.mode is Mode.GENERATION


def _priority(given: bytes | None) -> Priority | None:
    if given is not None and given not in _PRIORITIES:
        raise RequestRefused("bad_request", "X-Priority must be `interactive` or `batch`")
    return None if given is None else _PRIORITIES[given]


def _one_model(
    in_body: str | None, query: tuple[tuple[str, str], ...], configuration: Configuration
) -> str | None:
    """Return the model that a call names in its body or its query, which may not disagree.

    A model and its alias are one.
    """
    named = {value for name, value in query if name == "model" and value}
    if in_body:
        named.add(in_body)
    if len({configuration.model_name(each) or each for each in named}) > 1:
        raise RequestRefused("bad_request", f"two models are named: {', '.join(sorted(named))}")
    return in_body or next(iter(named), None)


def read_head(
    method: str, request_target: str, headers: Headers, *, takes_chunks: bool
) -> RequestHead:
    """Read what stands before a body; `request_target` as it came."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        key = name.lower()
        fields[key] = value if key not in fields else fields[key] + b", " + value
    return RequestHead(
        method=method,
        request_target=request_target,
        raw_path=request_target.partition("?")[0],
        headers=headers,
        fields=fields,
        takes_chunks=takes_chunks,
    )


def request_id_of(head: RequestHead) -> str:
    """Return what the client calls its request, where it can be sent on, else a name of ours."""
    given = head.fields.get(b"x-request-id")
    if given and given.isascii() and (name := given.decode("ascii")).isprintable():
        return name
    return new_request_id()


def new_request_id() -> str:
    """Return a name for a request, unique over this run, and unlikely to repeat over others."""
    return f"{_request_id_prefix}-{next(_request_numbers)}"
