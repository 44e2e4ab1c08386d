"""Which of our variables a server inherits: those that it needs to run here, and no others.

Ours may hold tokens and passwords, and an engine is other people's code. Container images set
`LLAMA_ARG_HOST=0.0.0.0` and the like, which would put an unprotected server on the Pod's address:
`LLAMA_*` and `AIP_*` are never passed on, whatever a profile asks for.
"""

from collections.abc import Iterable, Mapping

PASSED_ON = (
    *("PATH", "HOME", "USER", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
    "SSL_CERT_*",
    *("CUDA_*", "NVIDIA_*"),
    *("HIP_*", "ROCR_*", "HSA_*"),
    *("ONEAPI_*", "ZE_*", "SYCL_*"),
    *("VK_*", "GGML_*", "OMP_*"),
)
"""Names that every server inherits; `*` stands for any ending."""

NEVER_PASSED_ON = ("LLAMA_", "AIP_")
"""How names begin that llama.cpp reads as settings."""


def inherited_environment(
    ours: Mapping[str, str], device: Mapping[str, str], passthrough: Iterable[str] = ()
) -> dict[str, str]:
    """Return what a server inherits: our variables that are listed, and those of its device.

    `passthrough`: further names of the profile (`env_passthrough`).
    """
    wanted = (*PASSED_ON, *passthrough)
    return {name: text for name, text in ours.items() if _is_passed_on(name, wanted)} | {**device}


def withheld_names(ours: Mapping[str, str], passthrough: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the names of our variables that a server does not inherit, sorted."""
    wanted = (*PASSED_ON, *passthrough)
    return tuple(sorted(name for name in ours if not _is_passed_on(name, wanted)))


def _is_passed_on(name: str, wanted: Iterable[str]) -> bool:
    if name.startswith(NEVER_PASSED_ON):
        return False
    return any(
        name.startswith(each.removesuffix("*")) if each.endswith("*") else name == each
        for each in wanted
    )
