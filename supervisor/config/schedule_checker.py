"""Finds what the schedule names and the catalogue does not have."""

from collections.abc import Iterator

from supervisor.config.configuration import Configuration
from supervisor.config.problems import nearest
from supervisor.config.schedule import ServedSettings
from supervisor.config.source import FieldPath, Source, dotted


def schedule_problems(source: Source, configuration: Configuration) -> Iterator[str]:
    """Yield each model that is not there, and each mode without a model that it could make live."""
    schedule = configuration.settings.schedule
    if schedule is None:
        return
    places: list[tuple[FieldPath, ServedSettings]] = [(("schedule", "baseline"), schedule.baseline)]
    places += [
        (("schedule", "entries", number), entry) for number, entry in enumerate(schedule.entries)
    ]
    for place, served in places:
        for field, sentence in _problems(configuration, served):
            where = (*place, field)
            yield f"{source.at(where)}: {dotted(where)}: {sentence}"


def _problems(configuration: Configuration, served: ServedSettings) -> Iterator[tuple[str, str]]:
    models = configuration.catalogue.models
    if served.model is not None and configuration.model_name(served.model) is None:
        hint = nearest(served.model, list(models)) or f"; there are: {', '.join(sorted(models))}"
        yield "model", f"there is no model '{served.model}'{hint}"
    mode = served.served_mode
    if mode is None or configuration.default_of(mode) is not None:
        return
    able = sorted(name for name, entry in models.items() if entry.type is mode)
    if able:
        sentence = (
            f"several models are for {mode} ({', '.join(able)}), and none is the default; set "
            f"default_models.{mode} in the catalogue, or write `model` in place of `mode`"
        )
        yield "mode", sentence
    else:
        yield "mode", f"there is no model for {mode}; add one to the catalogue"
