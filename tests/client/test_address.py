"""Where the controller is expected that commands ask."""

from pathlib import Path

import pytest
import yaml

from supervisor.client.address import address_of


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://gpu.example:8000/", "http://gpu.example:8000"),
        ("gpu.example:8000", "http://gpu.example:8000"),
        ("https://gpu.example", "https://gpu.example"),
    ],
)
def test_named_address_is_taken(given: str, url: str, tmp_path: Path) -> None:
    assert address_of(given, tmp_path, {}) == url


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
def test_settings_lead_to_it_otherwise(
    host: object, url: str, tmp_path: Path, profiles_dir: Path
) -> None:
    for name in ("models.yaml", "generation.yaml", "embedding.yaml"):
        (tmp_path / name).write_text((profiles_dir / name).read_text())
    settings = {"server": {"host": host, "port": 9000}}
    (tmp_path / "supervisor.yaml").write_text(yaml.safe_dump(settings))

    assert address_of(None, tmp_path, {}) == url


def test_default_address_is_that_of_the_default_settings(tmp_path: Path) -> None:
    assert address_of(None, tmp_path / "none", {}) == "http://127.0.0.1:8000"
