"""Devices as profiles name them, and as they are here: which of them a model may be put on.

A name of ours counts through all vendors' GPUs (`gpu1`). A UUID is the vendor's own, which stays
the same whatever else is plugged in; its beginning is enough where it fits one device only.
"""

from collections.abc import Callable, Sequence

from supervisor.config.profile import Profile
from supervisor.config.settings import SupervisorSettings
from supervisor.core.machine.values import Device
from supervisor.telemetry.port import HOST, DeviceInfo


def devices_of(
    profile: Profile, gpus: Sequence[str], here: Callable[[], Sequence[DeviceInfo]]
) -> tuple[str, ...]:
    """Return the devices that a profile's server is shown, the one that counts as its own first.

    `gpus` are those of which any may be chosen (`candidates_of`): the first stands for them until
    one is, and without any, the host's memory does. A UUID that is not here (`here` tells all
    devices) is returned as it is written.
    """
    if profile.device == "cpu":
        return (HOST,)
    if profile.device != "gpu":
        names = profile.device if isinstance(profile.device, tuple) else (profile.device,)
        return tuple(_found(name, here) for name in names)
    if not gpus:
        return (HOST,)
    if profile.tensor_split is not None:
        return tuple(f"gpu{number}" for number in range(len(profile.tensor_split)))
    return (gpus[0] if profile.main_gpu is None else f"gpu{profile.main_gpu}",)


def candidates_of(profile: Profile, gpus: Sequence[str]) -> tuple[str, ...]:
    """Return the GPUs of which any may be chosen for a profile; none where there is no choice."""
    is_named = profile.device != "gpu" or profile.tensor_split is not None
    if is_named or profile.main_gpu is not None or len(gpus) < 2:
        return ()
    return tuple(gpus)


def unusable_together(devices: Sequence[str], here: Sequence[DeviceInfo]) -> str | None:
    """Return why no server can have these devices, in a sentence; None: one can."""
    infos = {info.device: info for info in here}
    for device in devices:
        if device not in infos:
            return (
                f"its profile names {device} (device, tensor_split, main_gpu), and no such device "
                f"is here; found: {', '.join(map(_described, here)) or 'none'}"
            )
    if len(set(devices)) < len(devices):
        return f"its profile names one device twice, by its name and its UUID: {', '.join(devices)}"
    together = [infos[device] for device in devices]
    if len({info.vendor for info in together}) > 1:
        named = ", ".join(f"{info.device} ({info.vendor})" for info in together)
        return f"its layers cannot be divided over GPUs of different vendors: {named}"
    parts = [info.device for info in together if info.mig_profile is not None]
    if parts and len(devices) > 1:
        return (
            f"its layers cannot be divided over parts of a GPU: a program sees one MIG device "
            f"only, and {', '.join(parts)} are such"
        )
    return None


def configured_device(info: DeviceInfo, settings: SupervisorSettings) -> Device:
    """Return what the core must know of a device, with the operator's budget for it."""
    given = settings.devices.get(info.device)
    return Device(
        name=info.device,
        budget_bytes=settings.budget_bytes(info.device, info.total_bytes),
        is_exclusive=given.exclusive if given else False,
        pool=HOST if info.shares_host_memory else info.device,
        is_host_memory=info.shares_host_memory or info.device == HOST,
    )


def _found(name: str, here: Callable[[], Sequence[DeviceInfo]]) -> str:
    """Return our name of a device that is named by its UUID, or by what that begins with."""
    if name.startswith("gpu"):
        return name
    known = [info for info in here() if info.uuid is not None]
    exact = [info.device for info in known if info.uuid == name]
    fitting = exact or [info.device for info in known if (info.uuid or "").startswith(name)]
    return fitting[0] if len(fitting) == 1 else name


def _described(info: DeviceInfo) -> str:
    return info.device if info.uuid is None else f"{info.device} ({info.uuid})"
