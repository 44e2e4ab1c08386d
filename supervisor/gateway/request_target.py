"""The forms that a request target may have (RFC 9112, 3.2), brought into one."""

import re
from urllib.parse import urlsplit

from msgspec.structs import replace

from supervisor.errors import RequestRefused
from supervisor.gateway.call import RequestHead

ORIGIN_FORM = re.compile(r"/[^\x00-\x20\x7f#]*")
"""What nearly every request target is, and what all become."""

_NOT_IN_A_TARGET = re.compile(r"[\x00-\x20\x7f#]")
"""A server cuts a fragment off: what we judge, and what it does, would be two targets."""

SERVED_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def in_origin_form(head: RequestHead) -> RequestHead:
    """Return the head with path and query as its request target, and the host named there.

    An absolute form, as clients send it that take us for a proxy, names its host in it,
    whatever its Host says. `*` stays as it is. Raises RequestRefused for what is not one of
    ours.
    """
    request_target = head.request_target
    if head.method == "CONNECT":
        raise RequestRefused(
            "method_not_allowed",
            "this is not a proxy: CONNECT is not supported",
            {"allowed": SERVED_METHODS},
        )
    if _NOT_IN_A_TARGET.search(request_target):
        raise RequestRefused(
            "bad_request",
            "the request target contains a space, a control character or a fragment (#)",
        )
    if request_target.startswith("/") or (request_target == "*" and head.method == "OPTIONS"):
        return head
    if not request_target.lower().startswith(("http://", "https://")):
        raise RequestRefused("bad_request", "the request target is neither a path nor a URL")
    path_at = re.compile(r"[/?]|$").search(request_target, request_target.index("://") + 3)
    rest = request_target[path_at.start() if path_at else len(request_target) :]
    host = urlsplit(request_target).netloc.rpartition("@")[2].encode("utf-8", "surrogateescape")
    others = tuple(each for each in head.headers if each[0].lower() != b"host")
    path = rest if rest.startswith("/") else f"/{rest}"
    headers = ((b"Host", host), *others)
    return replace(
        head, request_target=path, headers=headers, fields={**head.fields, b"host": host}
    )
