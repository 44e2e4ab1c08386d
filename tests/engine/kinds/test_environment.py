"""What a server inherits of our environment."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from supervisor.config.profile import Profile
from supervisor.core.machine.values import Mode
from supervisor.engine.kinds.environment import inherited_environment, withheld_names
from supervisor.engine.kinds.program_output import ProgramOutputs

NEEDED = {
    "PATH": "/bin",
    "HOME": "/root",
    "USER": "me",
    "TZ": "UTC",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "LC_ALL": "C",
    "LD_LIBRARY_PATH": "/l",
    "SSL_CERT_FILE": "/c",
    "CUDA_VISIBLE_DEVICES": "1",
    "NVIDIA_DRIVER_CAPABILITIES": "all",
    "HIP_PLATFORM": "amd",
    "ROCR_VISIBLE_DEVICES": "0",
    "HSA_OVERRIDE_GFX_VERSION": "1",
    "ONEAPI_ROOT": "/o",
    "ZE_AFFINITY_MASK": "0",
    "SYCL_CACHE_DIR": "/s",
    "VK_ICD_FILENAMES": "/v",
    "GGML_CUDA_NO_VMM": "1",
    "OMP_NUM_THREADS": "2",
}
SECRET = {"HF_TOKEN": "t", "AWS_SECRET_ACCESS_KEY": "s", "DATABASE_URL": "d", "PATHS": "p"}


def test_a_server_inherits_what_it_needs_to_run_and_nothing_else() -> None:
    assert inherited_environment(NEEDED | SECRET, {}) == NEEDED
    assert withheld_names(NEEDED | SECRET) == tuple(sorted(SECRET))


def test_a_profile_passes_further_variables_on_by_name_or_beginning() -> None:
    assert inherited_environment(SECRET, {}, ["HF_*", "PATHS"]) == {"HF_TOKEN": "t", "PATHS": "p"}
    assert withheld_names(SECRET, ["HF_*", "PATHS"]) == ("AWS_SECRET_ACCESS_KEY", "DATABASE_URL")


def test_foreign_settings_of_llama_cpp_do_not_reach_the_child() -> None:
    base = {"PATH": "/bin", "LLAMA_ARG_HOST": "0.0.0.0", "AIP_MODE": "PREDICTION", "HOME": "/root"}
    assert inherited_environment(base, {}) == {"PATH": "/bin", "HOME": "/root"}
    assert inherited_environment(base, {}, ["*"]) == {"PATH": "/bin", "HOME": "/root"}


def test_a_child_sees_the_device_that_it_was_given() -> None:
    base = {"TZ": "ours", "CUDA_VISIBLE_DEVICES": "ours"}
    assert inherited_environment(base, {"CUDA_VISIBLE_DEVICES": "0"}) == {
        "TZ": "ours",
        "CUDA_VISIBLE_DEVICES": "0",
    }


@pytest.mark.parametrize("name", ["LLAMA_*", "AIP_MODE", "A=B", "HF_*_X", "", "1A", 5])
def test_what_cannot_be_passed_on_is_refused_in_the_profile(name: object) -> None:
    with pytest.raises(ValidationError):
        Profile(mode=Mode.GENERATION, env_passthrough=(name,))


def test_a_program_that_is_asked_about_itself_sees_no_secrets_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "secret")
    printed = ProgramOutputs().of(("/usr/bin/env",), Path("/usr/bin/env"))
    assert "PATH=" in printed
    assert "DATABASE_PASSWORD" not in printed
