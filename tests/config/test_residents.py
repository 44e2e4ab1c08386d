"""What is chosen for single models: what contradicts itself is refused, what is in vain is told."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from supervisor.config.configuration import Configuration
from supervisor.config.load import load
from supervisor.config.residents import residents_warnings, visibility_warnings
from supervisor.core.machine.rules import ModelRules
from supervisor.errors import ConfigError
from supervisor.telemetry.vendors import hiding_variables


@pytest.fixture
def folder(tmp_path: Path, profiles_dir: Path) -> Path:
    return Path(shutil.copytree(profiles_dir, tmp_path / "profiles"))


def configured(
    folder: Path,
    *,
    devices: dict[str, Any] | None = None,
    idle_model: str | None = None,
    **chosen: Any,
) -> Configuration:
    """Load the shipped configuration with what is chosen for `minilm`."""
    catalogue = yaml.safe_load((folder / "models.yaml").read_text())
    catalogue["models"]["minilm"].update(chosen)
    catalogue["idle_model"] = idle_model
    (folder / "models.yaml").write_text(yaml.safe_dump(catalogue))
    settings = yaml.safe_load((folder / "supervisor.yaml").read_text()) or {}
    settings["devices"] = devices or {}
    (folder / "supervisor.yaml").write_text(yaml.safe_dump(settings))
    return load(folder, Path("/models"), {})


def test_only_models_for_which_something_is_chosen_have_rules(folder: Path) -> None:
    configuration = configured(folder, idle_unload_s="10m", max_concurrency=8)
    chosen = ModelRules(idle_unload_s=600.0, max_concurrency=8)
    assert configuration.rules().models == {"minilm": chosen}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"pinned": True, "idle_unload_s": 60}, "pinned stays, and idle_unload_s unloads"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"idle_unload_s": 0}, "idle_unload_s"),
        ({"idle_model": "minilm", "idle_unload_s": 60}, "idle_model loads it again"),
        ({"idle_model": "minilmm"}, "did you mean 'minilm'?"),
    ],
)
def test_what_contradicts_itself_is_refused(
    folder: Path, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError) as error:
        configured(folder, **wrong)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("devices", "chosen", "told"),
    [
        ({}, {"idle_unload_s": 60}, ["models.minilm.idle_unload_s"]),
        ({"gpu0": {"budget_bytes": "20GiB"}}, {"idle_unload_s": 60}, []),
        ({}, {"idle_unload_s": 60, "overrides": {"device": "cpu"}}, []),
        ({"gpu0": {"exclusive": True}}, {"pinned": True}, ["models.minilm.pinned"]),
        ({"gpu0": {"exclusive": False}}, {"pinned": True}, []),
    ],
)
def test_what_has_no_effect_is_told(
    folder: Path, devices: dict[str, Any], chosen: dict[str, Any], told: list[str]
) -> None:
    configuration = configured(folder, devices=devices, **chosen)
    warnings = list(residents_warnings(configuration))
    assert [warning.split(": ")[1] for warning in warnings] == told


def test_a_variable_that_replaces_the_chosen_devices_is_told_where_it_stands(folder: Path) -> None:
    configuration = configured(folder, overrides={"env": {"CUDA_VISIBLE_DEVICES": "1", "A": "b"}})
    (warning,) = visibility_warnings(configuration, hiding_variables())
    assert "models.minilm.overrides.env.CUDA_VISIBLE_DEVICES: " in warning


def test_a_variable_of_a_profile_is_told_once_for_all_its_models(folder: Path) -> None:
    profile = folder / "generation.yaml"
    given = yaml.safe_load(profile.read_text()) | {"env": {"ROCR_VISIBLE_DEVICES": "0"}}
    profile.write_text(yaml.safe_dump(given))
    catalogue = yaml.safe_load((folder / "models.yaml").read_text())["models"]
    assert sum(entry["type"] == "generation" for entry in catalogue.values()) > 1
    (warning,) = visibility_warnings(configured(folder), hiding_variables())
    assert warning.startswith(f"{profile}:")
    assert ": env.ROCR_VISIBLE_DEVICES: " in warning


def test_what_the_server_gets_of_its_command_is_told_too(folder: Path) -> None:
    section = {"argv": ["serve", "{port}"], "env": {"HIP_VISIBLE_DEVICES": "1"}}
    chosen = {"engine": "command", "command": section}
    configuration = configured(folder, overrides=chosen)
    (warning,) = visibility_warnings(configuration, hiding_variables())
    assert "overrides.command.env.HIP_VISIBLE_DEVICES: " in warning
