"""Keys that settings name by a variable: told where they are not there."""

from supervisor.config.keys import key_warnings
from supervisor.config.settings import SupervisorSettings

NAMED = SupervisorSettings.model_validate(
    {
        "vectors": {"url": "http://qdrant:6333", "api_key_env": "STORE_KEY"},
        "jobs": {"callback_hosts": ["hooks.example"], "callback_key_env": "CALLBACK_KEY"},
    }
)


def test_variables_that_are_named_and_not_set_are_told_with_what_follows() -> None:
    store, callbacks = key_warnings(NAMED, {"CALLBACK_KEY": ""})

    assert "vectors.api_key_env: STORE_KEY is not set here" in store
    assert "the store is asked without a key" in store
    assert "jobs.callback_key_env: CALLBACK_KEY is not set here" in callbacks
    assert "callbacks are refused" in callbacks


def test_nothing_is_told_of_keys_that_are_there_or_not_named() -> None:
    assert not list(key_warnings(NAMED, {"STORE_KEY": "a", "CALLBACK_KEY": "b"}))
    assert not list(key_warnings(SupervisorSettings(), {}))
