"""Which addresses let others than this machine in."""

import pytest

from supervisor.config.exposure import describe_exposure


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_addresses_are_open_to_this_machine_only(host: str) -> None:
    assert describe_exposure([host]) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "2001:db8::1", "gpu.example"])
def test_any_other_address_is_named(host: str) -> None:
    exposure = describe_exposure(["127.0.0.1", host])
    assert exposure is not None
    assert f"on {host} without a key" in exposure
