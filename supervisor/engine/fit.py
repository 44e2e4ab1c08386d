"""Whether a model fits, device by device, and what would make it: the answer of `fit`.

Room is what a start may take: the device's budget, or what is free (once our own servers have
stopped) less the margin that the release gate asks for, whichever is smaller.
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.config.configuration import Configuration
from supervisor.core.sizing.estimate import MemorySettings
from supervisor.core.sizing.fitting import (
    Alternative,
    Largest,
    largest_ctx_size,
    largest_parallel,
    mildest_fitting,
)
from supervisor.engine.devices import candidates_of, devices_of, unusable_together
from supervisor.engine.needs.assessment import Assessment, Candidate, assess
from supervisor.engine.needs.learned_store import FILE_NAME, LearnedStore
from supervisor.engine.servers.children import running_children
from supervisor.errors import EngineError, TelemetryError
from supervisor.telemetry.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRoom:
    """What a device has, in bytes. `free_bytes` None: it cannot be read, for `problem`.

    `ours_bytes` is what a running controller's servers hold there, None where that is not known.
    """

    device: str
    name: str
    budget_bytes: int
    free_bytes: int | None = None
    ours_bytes: int | None = 0
    problem: str | None = None

    def room_bytes(self, margin_bytes: int) -> int | None:
        """Return what a start may take; None where the device cannot be read."""
        if self.free_bytes is None:
            return None
        return min(self.budget_bytes, self.free_bytes + (self.ours_bytes or 0) - margin_bytes)


Rooms = Mapping[str, int | None]
"""What a start may take of each device, in bytes; None where it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFit:
    """Whether the model fits on one device. `fits` None: the device cannot be read.

    The largest values are None where they cannot be computed: the need is stated.
    """

    room: DeviceRoom
    assessment: Assessment
    margin_bytes: int
    fits: bool | None
    largest_ctx_size: Largest | None = None
    largest_parallel: Largest | None = None
    would_fit: tuple[Alternative, ...] = ()


async def read_rooms(
    telemetry: Telemetry, configuration: Configuration, child_pids: Collection[int]
) -> tuple[DeviceRoom, ...]:
    """Read what every device has. `child_pids` are the servers of a controller that runs."""
    rooms = []
    for info in telemetry.devices():
        free_bytes, ours_bytes, problem = None, None, None
        try:
            sample = await telemetry.sample(info.device, child_pids)
            free_bytes, ours_bytes = sample.free_bytes, sample.children_bytes
        except TelemetryError as error:
            problem = str(error)
        rooms.append(
            DeviceRoom(
                device=info.device,
                name=info.name,
                budget_bytes=configuration.settings.budget_bytes(info.device, info.total_bytes),
                free_bytes=free_bytes,
                ours_bytes=ours_bytes,
                problem=problem,
            )
        )
    return tuple(rooms)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """The answer of `fit`: `device` is the one that the profile chooses, of all in `devices`.

    `split_over`: the GPUs that it divides the layers over, the device among them. `choices`: those
    of which it leaves the choice, of which the device is only the first.
    """

    candidate: Candidate
    device: str
    devices: tuple[DeviceFit, ...]
    split_over: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    has_forgotten: bool = False

    @property
    def fits(self) -> bool:
        """Whether it fits on a device that it may run on; unread memory carries nothing."""
        return any(one.room.device in self.may_run_on and one.fits for one in self.devices)

    @property
    def may_run_on(self) -> tuple[str, ...]:
        """The devices of which each can be the one that counts as its own."""
        return self.choices or (self.device,)


async def report_fit(
    candidate: Candidate, configuration: Configuration, data_dir: Path, *, forget: bool = False
) -> FitReport:
    """Read the devices, and judge each. `data_dir` holds what was learned, and what runs.

    With `forget` what was learned of the need on its device is dropped before. Raises EngineError
    for settings that the model cannot have, and GPUs that are not here.
    """
    store_path = data_dir / FILE_NAME
    with (
        contextlib.closing(LearnedStore(store_path))
        if store_path.exists()
        else (contextlib.nullcontext()) as store
    ):
        async with Telemetry() as telemetry:
            profile = candidate.resolved.profile
            shown = devices_of(profile, telemetry.gpus(), telemetry.devices)
            choices = candidates_of(profile, telemetry.gpus())
            fault = unusable_together(shown, telemetry.devices())
            rooms = await read_rooms(telemetry, configuration, running_children(data_dir))
        if fault is not None:
            raise EngineError(fault)
        device, split_over = shown[0], shown if len(shown) > 1 else ()
        identities = [candidate.identity_on(each) for each in choices or (device,)]
        forgotten = [forget and store and each and store.forget(each) for each in identities]
        return FitReport(
            candidate=candidate,
            device=device,
            devices=tuple(
                judge_fit(assess(candidate, room.device, store, split_over), room, rooms)
                for room in rooms
            ),
            split_over=split_over,
            choices=choices,
            has_forgotten=any(forgotten),
        )


def judge_fit(
    assessment: Assessment, room: DeviceRoom, rooms: Collection[DeviceRoom] = ()
) -> DeviceFit:
    """Hold what was assessed on the room's device against the room.

    `rooms` are those of all devices, for layers that stay in host memory.
    """
    margin_bytes = assessment.candidate.resolved.profile.memory.margin_bytes
    room_bytes = {one.device: one.room_bytes(margin_bytes) for one in (*rooms, room)}
    fit = DeviceFit(
        room=room,
        margin_bytes=margin_bytes,
        assessment=assessment,
        fits=_holds(room_bytes, assessment.footprint),
    )
    return fit if fit.fits is None else _with_what_would_fit(fit, room_bytes)


def _holds(room_bytes: Rooms, footprint: Mapping[str, int]) -> bool | None:
    """Whether each device has room for its part; None where one of them cannot be read."""
    found = {device: room_bytes.get(device) for device in footprint}
    if any(room is None for room in found.values()):
        return None
    return all(footprint[device] <= (room or 0) for device, room in found.items())


def _with_what_would_fit(fit: DeviceFit, room_bytes: Rooms) -> DeviceFit:
    assessment = fit.assessment
    file, settings = assessment.candidate.file, assessment.candidate.settings
    estimate = assessment.estimate
    if file is None or settings is None or estimate is None or assessment.is_stated:
        return fit
    smaller = assessment.smaller()
    here_bytes = room_bytes[fit.room.device] or 0
    fit = replace(fit, would_fit=() if fit.fits else mildest_fitting(smaller, here_bytes))
    if estimate.memory.kv_assumed_because is not None:
        return fit  # an assumed cache is as large for every context

    def fits(changed: MemorySettings) -> bool:
        return bool(_holds(room_bytes, assessment.footprint_with(changed)))

    return replace(
        fit,
        largest_ctx_size=largest_ctx_size(file.header, settings, fits),
        largest_parallel=largest_parallel(file.header, settings, fits),
    )
