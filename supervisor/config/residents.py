"""What is chosen for single models and can have no effect, or more of it than was meant."""

from collections.abc import Iterator

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


def _named(configuration: Configuration, name: str) -> tuple[str, ...]:
    """Return the devices that a model may be on, as far as the settings name them."""
    profile: Profile = configuration.resolve(name).profile
    if profile.device == "cpu":
        return ("host",)
    chosen = profile.device if isinstance(profile.device, tuple) else (profile.device,)
    if "gpu" in chosen:
        return tuple(configuration.settings.devices)
    return tuple(str(device) for device in chosen)
