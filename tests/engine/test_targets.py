"""What a model's name and a profile's mean as something that a switch can make live."""

from pathlib import Path

from supervisor.config.holder import ConfigurationHolder
from supervisor.config.load import load
from supervisor.engine.targets import Targets
from tests.conftest import write_configuration
from tests.host_alone import HostAlone


def test_a_fallback_that_overrides_contradict_does_not_take_the_model_away(
    tmp_path: Path, profiles_dir: Path
) -> None:
    models = {"chat": {"path": "chat.gguf", "overrides": {"main_gpu": 1}}}
    files = {
        "models.yaml": {"models": models},
        "other.yaml": {"extends": "generation", "fallback_profile": "on-host"},
        "on-host.yaml": {"extends": "generation", "device": "cpu"},
    }
    write_configuration(tmp_path, profiles_dir, None, files)
    targets = Targets(ConfigurationHolder(load(tmp_path, Path("/models"), {})), HostAlone())

    target = targets.target("chat", "other")

    assert (target.profile, target.fallback) == ("other", None)
