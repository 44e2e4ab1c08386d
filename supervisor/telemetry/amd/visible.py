"""The rules of ROCr and HIP for which AMD devices a program sees."""

from collections.abc import Mapping, Sequence

from supervisor.telemetry.visible_devices import UUID_PREFIXES, apply_variable, choose, names_in

CHILD_VARIABLE = "HIP_VISIBLE_DEVICES"
"""What shows a child its devices."""


def select_visible_amd(
    uuids: Sequence[str], environment: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Choose from the AMD devices; give the positions that ROCr leaves, and those that HIP does.

    ROCR_VISIBLE_DEVICES holds indices or UUIDs (`GPU-` and 16 hexadecimal digits). Indices in
    HIP_VISIBLE_DEVICES count within what it leaves, and so does the CUDA_VISIBLE_DEVICES that HIP
    takes where its own variable is not set. Source: ROCm documentation, "GPU isolation
    techniques".

    Raises TelemetryError when a variable of AMD's names devices and none of them is here. One of
    NVIDIA's may mean NVIDIA's devices on a machine that has both, and then shows none of AMD's.
    """
    given = tuple(range(len(uuids)))
    for_rocr = apply_variable("ROCR_VISIBLE_DEVICES", given, uuids, environment)
    shared = environment.get("CUDA_VISIBLE_DEVICES")
    if CHILD_VARIABLE not in environment and shared is not None and _holds_indices(shared):
        return for_rocr, choose(shared, for_rocr, uuids)
    return for_rocr, apply_variable(CHILD_VARIABLE, for_rocr, uuids, environment)


def _holds_indices(wish: str) -> bool:
    """Whether a variable of both vendors can mean AMD devices; UUIDs in it are NVIDIA's."""
    return not any(name.startswith(UUID_PREFIXES) for name in names_in(wish))
