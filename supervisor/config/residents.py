"""What is chosen for single models and can have no effect, or more of it than was meant."""

from collections.abc import Collection, Iterator

from supervisor.config.configuration import Configuration
from supervisor.config.profile import Profile


def residents_warnings(configuration: Configuration) -> Iterator[str]:
    """Yield a sentence for each such choice, with its place in the catalogue."""
    devices = configuration.settings.devices
    for name, entry in configuration.catalogue.models.items():
        given = [devices[each] for each in _named(configuration, name) if each in devices]
        is_on_gpu = configuration.resolve(name).profile.device != "cpu"
        if entry.idle_unload_s is not None and is_on_gpu and not any(d.budget_bytes for d in given):
            yield configuration.located(
                ("models", name, "idle_unload_s"),
                "gains nothing where no other program uses the GPU: an idle model makes room by "
                "itself. Where one does, tell its share with devices.gpu0.budget_bytes",
            )
        if entry.pinned and any(device.exclusive for device in given):
            yield configuration.located(
                ("models", name, "pinned"),
                f"its device is exclusive: no other model runs there while '{name}' is live",
            )


def visibility_warnings(configuration: Configuration, variables: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each variable of a model's `env` that shows or hides devices.

    `variables`: the names of all that do.
    """
    told = {
        configuration.located_field(
            name,
            f"{section}.{variable}",
            "replaces the devices that the controller chooses for the server, and counts its "
            "memory on; leave it out, and name devices in device",
        ): None
        for name in configuration.catalogue.models
        for section, given in _environments(configuration.resolve(name).profile)
        for variable in variables
        if variable in given
    }
    yield from told  # once, however many models have the profile


def _environments(profile: Profile) -> Iterator[tuple[str, Collection[str]]]:
    """Yield the names of the variables that a profile gives its server, with their field."""
    yield "env", profile.env
    if profile.command is not None:
        yield "command.env", profile.command.env


def _named(configuration: Configuration, name: str) -> tuple[str, ...]:
    """Return the devices that a model may be on, as far as the settings name them."""
    profile: Profile = configuration.resolve(name).profile
    if profile.device == "cpu":
        return ("host",)
    chosen = profile.device if isinstance(profile.device, tuple) else (profile.device,)
    if "gpu" in chosen:
        return tuple(configuration.settings.devices)
    return tuple(str(device) for device in chosen)
