"""Where the controller is expected that commands ask."""

from pathlib import Path

import pytest
import yaml

from supervisor.client.address import address_of
from supervisor.client.connection import NoController


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://gpu.example:8000/", "http://gpu.example:8000"),
        ("gpu.example:8000", "http://gpu.example:8000"),
        ("https://gpu.example", "https://gpu.example"),
    ],
)
def test_named_address_is_taken(given: str, url: str, tmp_path: Path) -> None:
    assert address_of(given, tmp_path) == url


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:9000"),
        ("::", "http://[::1]:9000"),
        ("fe80::1", "http://[fe80::1]:9000"),
        ("gpu.example", "http://gpu.example:9000"),
        (["192.0.2.1", "127.0.0.1"], "http://192.0.2.1:9000"),
    ],
)
def test_settings_lead_to_it_otherwise(host: object, url: str, tmp_path: Path) -> None:
    settings = {"server": {"host": host, "port": 9000}}
    (tmp_path / "supervisor.yaml").write_text(yaml.safe_dump(settings))

    assert address_of(None, tmp_path) == url


@pytest.mark.parametrize("models", ["models: {a: {}}", "- no fields", ": : :", None])
def test_what_is_wrong_elsewhere_hinders_nobody(models: str | None, tmp_path: Path) -> None:
    settings = "server: {port: 9000, prot: 1}\nqueue: {hold_timeout_s: soon}\nswich: {}\n"
    (tmp_path / "supervisor.yaml").write_text(settings)
    if models is not None:
        (tmp_path / "models.yaml").write_text(models)

    assert address_of(None, tmp_path) == "http://127.0.0.1:9000"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("server: {port: 9000", "supervisor.yaml:2: file: is not YAML"),
        ("server:\n  port: nine\n", "supervisor.yaml:2: server.port: must be a whole number"),
        ("server: 9000\n", "supervisor.yaml:1: server: must be fields"),
        ("server:\n  port: 1\n  port: 2\n", "supervisor.yaml:3: server.port: is given twice"),
    ],
)
def test_an_address_that_cannot_be_read_is_told_with_its_place(
    settings: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / "supervisor.yaml").write_text(settings)

    with pytest.raises(NoController) as raised:
        address_of(None, tmp_path)

    assert told in str(raised.value)
    assert "--url" in str(raised.value)


def test_settings_that_link_to_nothing_are_told(tmp_path: Path) -> None:
    (tmp_path / "supervisor.yaml").symlink_to(tmp_path / "nowhere.yaml")

    with pytest.raises(NoController, match=r"supervisor\.yaml:1: file: cannot be read: No such"):
        address_of(None, tmp_path)


def test_default_address_is_that_of_the_default_settings(tmp_path: Path) -> None:
    assert address_of(None, tmp_path / "none") == "http://127.0.0.1:8000"
