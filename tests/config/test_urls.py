"""URLs as operators write them: what is put in for variables, and what is refused unseen."""

from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import pytest
from pydantic import ValidationError

from supervisor.config.settings import JobSettings, ServerSettings, VectorSettings


def queue_url(written: str, **environ: str) -> str:
    settings = JobSettings.model_validate({"queue_url": written}, context={"environ": environ})
    assert settings.queue_url is not None
    return settings.queue_url


def require_refused_unshown(read: Callable[[str], object], written: str) -> None:
    """Have a URL refused in a sentence without the parts of it that begin with `hid`."""
    with pytest.raises(ValidationError) as refused:
        read(written)
    [problem] = refused.value.errors()
    assert problem["type"] == "value_error"
    assert "hid" not in problem["msg"]


@pytest.mark.parametrize("password", ["a/b", "a#b", "a?b", "a@b", "1/b=", "%2F", "plain"])
def test_password_of_a_variable_is_what_the_server_gets(password: str) -> None:
    parts = urlsplit(queue_url("redis://:${PASSWORD}@${AT}/3", PASSWORD=password, AT="redis:6380"))
    assert unquote(parts.password or "") == password
    assert (parts.hostname, parts.port, parts.path) == ("redis", 6380, "/3")


def test_variable_may_hold_the_whole_url() -> None:
    url = "rediss://user:a%2Fb@redis:6379/0?ssl_cert_reqs=none"
    assert queue_url("${URL}", URL=url) == url
    assert queue_url("${URL:-redis://:secret@redis}") == "redis://:secret@redis"


@pytest.mark.parametrize(
    "written",
    [
        "redis://:hid/den@redis:6379/0",
        "redis://:12/hidden@redis:6379/0",
        "redis://user:12/hidden@redis:6379/0",
        "redis://user:12?hidden@redis:6379/0",
        "redis://user:12#hidden@redis:6379/0",
        "redis://:hidden@",
        "redis://:hidden@redis?decode_responses=True",
        "rediss://:hidden@redis?ssl_cert_reqs=none&protocol=3",
        "unix:///run/redis.sock?max_connections=",
        "redis://:hidden@redis:port",
        "redis://:hidden@[::1",
        "redis://:${hidden@redis",
        "redis://:${PASSWORD-hidden}@redis",
        "unix://",
        "hidden@redis:6379",
    ],
)
def test_url_without_a_server_is_refused_without_being_shown(written: str) -> None:
    require_refused_unshown(queue_url, written)


@pytest.mark.parametrize(
    "written", ["redis://redis", "unix:///run/redis.sock?db=1", "redis://[::1]:1"]
)
def test_url_of_a_server_is_taken_as_it_is(written: str) -> None:
    assert queue_url(written) == written


@pytest.mark.parametrize(
    ("field", "written", "said"),
    [
        ("cors_origins", "chat.example", "with its scheme"),
        ("cors_origins", "https://chat.example/", "without a path"),
        ("cors_origins", "https://chat.example/page", "without a path"),
        ("cors_origins", "https://Chat.example", "in lower case"),
        ("cors_origins", "https://chat.example:443", "leave :443 out"),
        ("allowed_hosts", "https://llm.example", "without scheme, port and path"),
        ("allowed_hosts", "llm.example:8000", "without scheme, port and path"),
        ("allowed_hosts", "llm.example/v1", "without scheme, port and path"),
        ("allowed_hosts", "*.example", "each name by itself"),
    ],
)
def test_what_no_request_can_match_is_refused(field: str, written: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServerSettings.model_validate({field: [written]})


@pytest.mark.parametrize(
    "written", ["https://hooks.example", "hooks.example/path", "Hooks.example", "hooks.example:x"]
)
def test_host_that_no_callback_can_name_is_refused(written: str) -> None:
    with pytest.raises(ValidationError, match="with a port or without"):
        JobSettings.model_validate({"callback_hosts": [written], "callback_key_env": "KEY"})


def test_origins_and_hosts_are_taken_as_they_match() -> None:
    origins = ("*", "null", "https://chat.example", "http://[::1]:3000", "app://obsidian.md")
    hosts = ("llm", "Gate.internal", "llm.ns.svc.cluster.local", "10.0.0.5", "::1")
    callbacks = ("hooks.example", "hooks.example:8443", "10.0.0.5:8080", "::1")
    server = ServerSettings(cors_origins=origins, allowed_hosts=hosts)
    jobs = JobSettings(callback_hosts=callbacks, callback_key_env="KEY")
    assert (server.cors_origins, server.allowed_hosts) == (origins, hosts)
    assert jobs.callback_hosts == callbacks


@pytest.mark.parametrize(
    "written",
    [
        "qdrant:6333",
        "htp://qdrant",
        "http://",
        "http://hid den",
        "http://[::1",
        "http://hid:99999",
        "http://:hidden@qdrant",
    ],
)
def test_url_without_a_store_is_refused_without_being_shown(written: str) -> None:
    require_refused_unshown(lambda url: VectorSettings(url=url), written)


@pytest.mark.parametrize(
    "written",
    ["http://qdrant:6333", "https://q.example./store", "http://[::1]", "http://10.0.0.5:6333/"],
)
def test_url_of_a_store_is_taken_as_it_is(written: str) -> None:
    assert VectorSettings(url=written).url == written
