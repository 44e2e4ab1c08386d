"""The configuration in force, in one place, so that another can be applied at any time."""

from collections.abc import Callable

import structlog

from supervisor.config.configuration import Configuration

log = structlog.get_logger()


class ConfigurationHolder:
    """Holds the current `Configuration`. Nobody else keeps one: they ask for `current` each time.

    What is decided once, at the start (where to listen, the engines, the data folder), stays as it
    was until the next start. Use `apply()` on the event loop only; `current` from any thread.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.current = configuration
        """The configuration in force now. Only `apply` sets it."""
        self._listeners: list[Callable[[Configuration], None]] = []

    def on_apply(self, listener: Callable[[Configuration], None]) -> None:
        """Have `listener` called with each later configuration, for what must be pushed on."""
        self._listeners.append(listener)

    def apply(self, configuration: Configuration) -> None:
        """Put another configuration in force, at once and for everybody."""
        self.current = configuration
        for listener in self._listeners:
            listener(configuration)
        log.info(
            "configuration.applied",
            models=len(configuration.catalogue.models),
            profiles=len(configuration.profiles),
        )
