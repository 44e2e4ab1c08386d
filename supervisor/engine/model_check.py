"""What can be wrong with a model beyond the YAML: its file, and what its engine can honour."""

from collections.abc import Iterator
from pathlib import Path

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.source import FieldPath
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.kinds.program_output import package_file
from supervisor.engine.models.model_file import inspect_model_file
from supervisor.engine.models.model_scan import is_utf8, printable
from supervisor.engine.models.model_source import look_at_model, require_stated_need
from supervisor.engine.models.tokenizer_file import READER, REMEDY, read_tokenizer_file
from supervisor.engine.needs.assessment import assess, examine
from supervisor.engine.port import Engine
from supervisor.errors import ConfigError, EngineError, ModelFileError, RequestRefused, UnfitProfile
from supervisor.telemetry.port import HOST


def require_models_dir(configuration: Configuration) -> None:
    """Raise ConfigError when a models folder is not there, or its name cannot be printed."""
    folder = configuration.models_dir
    if not is_utf8(folder):
        raise ConfigError((f"--models {printable(folder)}: its name is not UTF-8; rename it",))
    catalogue = configuration.catalogue
    relative = [
        name
        for name, entry in catalogue.models.items()
        if Path(entry.path).suffix == ".gguf" and not Path(entry.path).is_absolute()
    ]
    scans = catalogue.models_dir is not None and not Path(catalogue.models_dir).is_absolute()
    if folder.is_dir() or not (relative or scans):
        _require_scanned_dir(configuration)
        return
    whose = f"the files of {', '.join(sorted(relative))}" if relative else "the models to be found"
    raise ConfigError((f"--models {folder}: there is no such folder; it should hold {whose}",))


def _require_scanned_dir(configuration: Configuration) -> None:
    """Raise ConfigError where the folder to look for models in is not there."""
    given = configuration.catalogue.models_dir
    if given is not None and not (folder := configuration.models_dir / given).is_dir():
        problem = f"{folder}: there is no such folder; correct it, make it, or leave it out"
        raise ConfigError((configuration.located(("models_dir",), problem),))


def model_problems(configuration: Configuration, engines: Engines | None) -> Iterator[str]:
    """Yield `file:line: field: what is wrong` for every model that cannot start as it stands.

    What stands in a profile is said once, whatever the number of models that run with it. Models
    whose profile is faulty are passed over: that has been said. Without engines the files alone
    are looked at.
    """
    said: set[str] = set()
    for name in configuration.catalogue.models:
        try:
            resolved = configuration.resolve(name)
        except (RequestRefused, ConfigError):
            continue
        problems = [
            *_problems_of(configuration, engines, resolved),
            *_problems_of_twin(configuration, engines, resolved),
        ]
        for problem in dict.fromkeys(problems):
            if problem not in said:
                said.add(problem)
                yield problem


def _problems_of_twin(
    configuration: Configuration, engines: Engines | None, own: ResolvedModel
) -> Iterator[str]:
    """Yield why a model's twin cannot start, or would make other vectors of one text."""
    spill = configuration.catalogue.models[own.name].spill
    if spill is None or engines is None:
        return
    place: FieldPath = ("models", own.name, "spill")
    try:
        twin = configuration.resolve(own.name, spill)
    except (RequestRefused, ConfigError):
        return  # its profile is not there, or faulty: that has been said
    try:
        takes_ids = [
            engines.choose(each.profile.engine).abilities(each).takes_token_ids
            for each in (own, twin)
        ]
        _check_profile(twin, engines.choose(twin.profile.engine))
        _check_start(twin, engines.choose(twin.profile.engine))
    except (EngineError, ModelFileError) as error:
        yield configuration.located(place, f"'{spill}' cannot be its twin's profile: {error}")
        return
    if own.tokenizer_path is not None and takes_ids[0] is not takes_ids[1]:
        yield configuration.located(
            place,
            f"the model names a tokenizer, and one of '{own.profile_name}' and '{spill}' takes "
            "token ids and the other texts: the two would make other vectors of one text; choose "
            "an engine that takes ids",
        )


def _problems_of(
    configuration: Configuration, engines: Engines | None, resolved: ResolvedModel
) -> Iterator[str]:
    name = resolved.name
    place: FieldPath = ("models", name)
    try:
        engine = engines.choose(resolved.profile.engine) if engines else None
    except EngineError as error:
        yield configuration.located_field(name, "engine", str(error))
        return
    is_sound = True
    for look in (_check_model, _check_projector, _check_tokenizer, _check_profile, _check_start):
        if look is _check_start and not is_sound:
            return  # the start would fail of what has been said
        try:
            look(resolved, engine)
        except ModelFileError as error:
            field = "mmproj" if look is _check_projector else "path"
            field = "tokenizer" if look is _check_tokenizer else field
            yield configuration.located((*place, field), str(error))
        except UnfitProfile as error:
            for field, sentence in error.problems.items():
                yield configuration.located_field(name, field, sentence)
        except EngineError as error:
            yield configuration.located((*place, "profile"), str(error))
        else:
            continue
        is_sound = False


def _check_model(resolved: ResolvedModel, engine: Engine | None) -> None:
    if engine is None:
        if resolved.path.suffix == ".gguf":
            inspect_model_file(resolved.path)
    elif look_at_model(resolved, engine.abilities(resolved)) is None:
        require_stated_need(resolved)


def _check_projector(resolved: ResolvedModel, _engine: Engine | None) -> None:
    if resolved.projector_path is not None:
        inspect_model_file(resolved.projector_path)


def _check_tokenizer(resolved: ResolvedModel, _engine: Engine | None) -> None:
    if resolved.tokenizer_path is not None:
        read_tokenizer_file(resolved.tokenizer_path)
        if package_file(READER) is None:
            raise ModelFileError(
                f"{resolved.tokenizer_path}: what reads it is not installed, and embeddings are "
                f"refused: {REMEDY}"
            )


def _check_profile(resolved: ResolvedModel, engine: Engine | None) -> None:
    if engine is not None:
        engine.check(resolved)


def _check_start(resolved: ResolvedModel, engine: Engine | None) -> None:
    if engine is not None:
        assess(examine(resolved, engine), HOST, None)
