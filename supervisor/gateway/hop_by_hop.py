"""Which headers go on from one side to the other, and which end here (RFC 9110, section 7.6.1)."""

from supervisor.gateway.call import Headers

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_NOT_SENT = _HOP_BY_HOP | {
    *(b"host", b"content-length", b"expect"),  # the channel's own, or met at the door
    *(b"authorization", b"x-api-key", b"x-request-id"),  # ours in their place
}
_NOT_ANSWERED = _HOP_BY_HOP | {b"date", b"x-request-id"}  # ours in their place
_CORS = b"access-control-"


def request_headers(headers: Headers) -> Headers:
    """Return those of a client's headers that a backend is sent."""
    dropped = _NOT_SENT | _named_for_one_hop(headers)
    return tuple(each for each in headers if each[0].lower() not in dropped)


def answer_headers(headers: Headers) -> Headers:
    """Return those of a backend's headers that its client gets; CORS is ours."""
    dropped = _NOT_ANSWERED | _named_for_one_hop(headers)
    named = ((each[0].lower(), each) for each in headers)
    return tuple(each for name, each in named if name not in dropped and not name.startswith(_CORS))


def _named_for_one_hop(headers: Headers) -> set[bytes]:
    """Return the names that Connection headers list: whoever wrote them meant the next one only."""
    listed = [value for name, value in headers if name.lower() == b"connection"]
    return {option.strip().lower() for value in listed for option in value.split(b",")}
