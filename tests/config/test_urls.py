"""URLs as operators write them: what is put in for variables, and what is refused unseen."""

from urllib.parse import unquote, urlsplit

import pytest
from pydantic import ValidationError

from supervisor.config.settings import JobSettings


def queue_url(written: str, **environ: str) -> str:
    settings = JobSettings.model_validate({"queue_url": written}, context={"environ": environ})
    assert settings.queue_url is not None
    return settings.queue_url


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
        "redis://:hidden@redis:port",
        "redis://:hidden@[::1",
        "unix://",
        "hidden@redis:6379",
    ],
)
def test_url_without_a_server_is_refused_without_being_shown(written: str) -> None:
    with pytest.raises(ValidationError) as refused:
        queue_url(written)
    [problem] = refused.value.errors()
    assert problem["type"] == "value_error"
    assert "hid" not in problem["msg"]


@pytest.mark.parametrize(
    "written", ["redis://redis", "unix:///run/redis.sock?db=1", "redis://[::1]:1"]
)
def test_url_of_a_server_is_taken_as_it_is(written: str) -> None:
    assert queue_url(written) == written
