"""The forms that a request's target may have (RFC 9112, 3.2), brought into one."""

import re
from urllib.parse import urlsplit

from msgspec.structs import replace

from supervisor.errors import RequestRefused
from supervisor.gateway.call import RequestHead

ORIGIN_FORM = re.compile(r"/[^\x00-\x20\x7f#]*")
"""What nearly every target is, and what all become."""

_NOT_IN_A_TARGET = re.compile(r"[\x00-\x20\x7f#]")
"""A server cuts a fragment off: what we judge, and what it does, would be two targets."""

SERVED_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def in_origin_form(head: RequestHead) -> RequestHead:
    """Return the head with path and query as its target, and with the host that this names.

    An absolute form, as clients send it that take us for a proxy, names its host in the target,
    whatever its Host says. `*` stays as it is. Raises RequestRefused for what is not a target of
    ours.
    """
    target = head.target
    if head.method == "CONNECT":
        raise RequestRefused(
            "method_not_allowed",
            "this is not a proxy: CONNECT is not supported",
            {"allowed": SERVED_METHODS},
        )
    if _NOT_IN_A_TARGET.search(target):
        raise RequestRefused(
            "bad_request",
            "the request's target contains a space, a control character or a fragment (#)",
        )
    if target.startswith("/") or (target == "*" and head.method == "OPTIONS"):
        return head
    if not target.lower().startswith(("http://", "https://")):
        raise RequestRefused("bad_request", "the request's target is neither a path nor a URL")
    path_at = re.compile(r"[/?]|$").search(target, target.index("://") + 3)
    rest = target[path_at.start() if path_at else len(target) :]
    host = urlsplit(target).netloc.rpartition("@")[2].encode("utf-8", "surrogateescape")
    others = tuple(each for each in head.headers if each[0].lower() != b"host")
    path = rest if rest.startswith("/") else f"/{rest}"
    headers = ((b"Host", host), *others)
    return replace(head, target=path, headers=headers, fields={**head.fields, b"host": host})
