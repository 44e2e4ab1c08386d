"""Environment variables that settings name for keys, and that are not there."""

from collections.abc import Iterator, Mapping

from supervisor.config.settings import SupervisorSettings


def key_warnings(settings: SupervisorSettings, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a sentence for each variable that is not set or empty, with what follows from it."""
    named = (
        ("vectors.api_key_env", settings.vectors.api_key_env, "the store is asked without a key"),
        ("jobs.callback_key_env", settings.jobs.callback_key_env, "callbacks are refused"),
    )
    for field, variable, consequence in named:
        if variable is not None and not environ.get(variable):
            yield f"supervisor.yaml: {field}: {variable} is not set here; without it, {consequence}"
