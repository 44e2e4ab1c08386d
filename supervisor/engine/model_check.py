"""What can be wrong with a model beyond the YAML: its file, and what its engine can honour."""

from collections.abc import Iterator

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.source import Place
from supervisor.engine.engines import Engines
from supervisor.engine.model_file import inspect_model_file
from supervisor.errors import EngineError, ModelFileError


def model_problems(configuration: Configuration, engines: Engines) -> Iterator[str]:
    """Yield `file:line: field: what is wrong` for every model that cannot start as it stands."""
    for name in configuration.catalogue.models:
        resolved = configuration.resolve(name)
        place: Place = ("models", name)
        try:
            inspect_model_file(resolved.path)
        except ModelFileError as error:
            yield configuration.located((*place, "path"), str(error))
        engine_error = _engine_error(resolved, engines)
        if engine_error is not None:
            yield configuration.located((*place, "profile"), engine_error)


def _engine_error(resolved: ResolvedModel, engines: Engines) -> str | None:
    try:
        engines.choose(resolved.profile.engine).check(resolved)
    except EngineError as error:
        return str(error)
    return None
