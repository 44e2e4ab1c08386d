"""What an operator should know of a configuration though it can be served."""

from collections.abc import Collection, Iterator, Mapping

from supervisor.config.configuration import Configuration
from supervisor.config.keys import key_warnings
from supervisor.config.residents import residents_warnings, visibility_warnings
from supervisor.config.waits import wait_warnings
from supervisor.core.scheduling.estimates import Estimates


def all_warnings(
    configuration: Configuration,
    environ: Mapping[str, str],
    hiding_variables: Collection[str],
    estimates: Estimates,
) -> Iterator[str]:
    """Yield a sentence for each setting without effect, missing key, and wait that cannot be kept.

    `hiding_variables`: those that show or hide devices. `estimates`: what was learned of switches.
    """
    yield from residents_warnings(configuration)
    yield from visibility_warnings(configuration, hiding_variables)
    yield from key_warnings(configuration.settings, environ)
    yield from wait_warnings(configuration, estimates)
