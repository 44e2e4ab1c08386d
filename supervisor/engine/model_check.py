"""What can be wrong with a model beyond the YAML: its file, and what its engine can honour."""

from collections.abc import Iterator

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.source import Place
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.models.model_source import look_at_model, require_stated_need
from supervisor.engine.port import Engine
from supervisor.errors import EngineError, ModelFileError, UnfitProfile


def model_problems(configuration: Configuration, engines: Engines) -> Iterator[str]:
    """Yield `file:line: field: what is wrong` for every model that cannot start as it stands.

    What stands in a profile is told once, whatever the number of models that run with it.
    """
    told: set[str] = set()
    for name in configuration.catalogue.models:
        for problem in _problems_of(configuration, engines, name):
            if problem not in told:
                told.add(problem)
                yield problem


def _problems_of(configuration: Configuration, engines: Engines, name: str) -> Iterator[str]:
    resolved = configuration.resolve(name)
    place: Place = ("models", name)
    try:
        engine = engines.choose(resolved.profile.engine)
    except EngineError as error:
        yield configuration.located_field(name, "engine", str(error))
        return
    for look in (_check_model, _check_profile):
        try:
            look(resolved, engine)
        except ModelFileError as error:
            yield configuration.located((*place, "path"), str(error))
        except UnfitProfile as error:
            for field, sentence in error.problems.items():
                yield configuration.located_field(name, field, sentence)
        except EngineError as error:
            yield configuration.located((*place, "profile"), str(error))


def _check_model(resolved: ResolvedModel, engine: Engine) -> None:
    if look_at_model(resolved, engine.abilities(resolved)) is None:
        require_stated_need(resolved)


def _check_profile(resolved: ResolvedModel, engine: Engine) -> None:
    engine.check(resolved)
