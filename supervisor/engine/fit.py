"""Whether a model fits, device by device, and what would make it: what `fit` tells.

Room is what a start may take: the device's budget, or what is free (once our own servers have
stopped) less the margin that the release gate asks for, whichever is smaller.
"""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.core.sizing.fitting import (
    Alternative,
    Largest,
    largest_ctx_size,
    largest_parallel,
    mildest_fitting,
)
from supervisor.core.sizing.learned_need import CountedNeed, LearnedNeed, count_need
from supervisor.core.sizing.need import NeedSettings
from supervisor.engine.kinds.engines import Engines
from supervisor.engine.models.model_file import ModelFile
from supervisor.engine.models.model_source import look_at_model, require_stated_need
from supervisor.engine.needs.learned_needs import FILE_NAME, LearnedNeeds
from supervisor.engine.needs.model_need import (
    DeviceNeed,
    estimate_on,
    need_identity,
    need_settings,
    refuse_uneven_slots,
    smaller_settings,
)
from supervisor.engine.port import EngineIdentity
from supervisor.engine.servers.instance import running_children
from supervisor.errors import TelemetryError
from supervisor.telemetry.telemetry import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRoom:
    """What a device has, in bytes. `free_bytes` None: it cannot be read, for `problem`.

    `ours_bytes` is what a running controller's servers hold there, None where that is not told.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is to fit: a model with its profile, as the engine that will run it takes both.

    `file` and `settings` are None where no GGUF header tells the need, and the profile states it.
    """

    resolved: ResolvedModel
    build: EngineIdentity
    file: ModelFile | None
    settings: NeedSettings | None

    @property
    def stated_bytes(self) -> int | None:
        """The need that the profile states."""
        return self.resolved.profile.memory.need_bytes

    def identity_on(self, device: str) -> str | None:
        """Return the name under which its need on a device is learned; None: it is not."""
        if self.file is None or self.stated_bytes is not None:
            return None
        return need_identity(self.resolved, self.file, self.build, device)

    def estimate_on(self, device: str) -> DeviceNeed | None:
        """Estimate the need on a device; None without a header. Raises EngineError."""
        if self.file is None or self.settings is None:
            return None
        return estimate_on(self.file.headers, self.settings, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFit:
    """Whether the model fits on one device. `fits` None: the device cannot be read.

    The largest values are None where they cannot be computed: the need is stated.
    """

    room: DeviceRoom
    need_bytes: int
    parts: DeviceNeed | None
    learned: LearnedNeed | None
    learned_sentence: str
    margin_bytes: int
    fits: bool | None
    largest_ctx_size: Largest | None = None
    largest_parallel: Largest | None = None
    would_fit: tuple[Alternative, ...] = ()


def look_at_subject(resolved: ResolvedModel, engines: Engines) -> Subject:
    """Look at the model's file, and at how its engine takes the profile.

    Raises EngineError and ModelFileError when it could not start.
    """
    engine = engines.choose(resolved.profile.engine)
    engine.check(resolved)
    abilities = engine.abilities(resolved)
    file = look_at_model(resolved, abilities)
    if file is None:
        require_stated_need(resolved)
    else:
        refuse_uneven_slots(resolved, file)
    return Subject(
        resolved=resolved,
        build=engine.identity,
        file=file,
        settings=need_settings(resolved, abilities) if file is not None else None,
    )


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
    """The answer of `fit`: `device` is the one that the profile chooses, of all in `devices`."""

    subject: Subject
    device: str
    devices: tuple[DeviceFit, ...]
    has_forgotten: bool = False

    @property
    def fits(self) -> bool:
        """Whether it fits on the device that it would run on; unread memory carries nothing."""
        return any(one.room.device == self.device and one.fits for one in self.devices)


async def report_fit(
    subject: Subject, configuration: Configuration, data_dir: Path, *, forget: bool = False
) -> FitReport:
    """Read the devices, and judge each. `data_dir` tells what was learned, and what runs now.

    With `forget` what was learned of the need on its device is dropped before. Raises EngineError
    for settings that the model cannot have.
    """
    needs_path = data_dir / FILE_NAME
    with (
        contextlib.closing(LearnedNeeds(needs_path))
        if needs_path.exists()
        else (contextlib.nullcontext()) as needs
    ):
        async with Telemetry() as telemetry:
            device = telemetry.device_for(subject.resolved.profile.device)
            rooms = await read_rooms(telemetry, configuration, running_children(data_dir))
        identity = subject.identity_on(device)
        has_forgotten = bool(forget and needs and identity and needs.forget(identity))
        return FitReport(
            subject=subject,
            device=device,
            devices=tuple(judge_fit(subject, room, needs) for room in rooms),
            has_forgotten=has_forgotten,
        )


def judge_fit(subject: Subject, room: DeviceRoom, needs: LearnedNeeds | None) -> DeviceFit:
    """Hold the model's need against the room. Raises EngineError for settings it cannot have."""
    margin_bytes = subject.resolved.profile.memory.margin_bytes
    room_bytes = room.room_bytes(margin_bytes)
    parts = subject.estimate_on(room.device)
    identity = subject.identity_on(room.device)
    learned = needs.get(identity) if needs is not None and identity is not None else None
    counted = _count(subject, parts, learned)
    fit = DeviceFit(
        room=room,
        margin_bytes=margin_bytes,
        need_bytes=counted.need_bytes,
        parts=parts,
        learned=learned,
        learned_sentence=counted.sentence,
        fits=None if room_bytes is None else counted.need_bytes <= room_bytes,
    )
    if room_bytes is None or subject.stated_bytes is not None or parts is None:
        return fit
    return _with_what_would_fit(fit, subject, parts, room_bytes)


def _count(subject: Subject, parts: DeviceNeed | None, learned: LearnedNeed | None) -> CountedNeed:
    if subject.stated_bytes is not None or parts is None:
        return CountedNeed(need_bytes=require_stated_need(subject.resolved))
    return count_need(parts.total_bytes, learned)


def _with_what_would_fit(
    fit: DeviceFit, subject: Subject, parts: DeviceNeed, room_bytes: int
) -> DeviceFit:
    file, settings = subject.file, subject.settings
    if file is None or settings is None:
        return fit
    # What was seen beyond the estimate is taken for something that no setting changes.
    unseen_bytes = fit.need_bytes - parts.total_bytes

    def fits(changed: NeedSettings) -> bool:
        need = estimate_on(file.headers, changed, fit.room.device)
        return need.total_bytes + unseen_bytes <= room_bytes

    smaller = smaller_settings(file.headers, settings, parts.beside_bytes + unseen_bytes)
    fit = replace(fit, would_fit=() if fit.fits else mildest_fitting(smaller, room_bytes))
    if parts.estimate.kv_assumed_because is not None:
        return fit  # an assumed cache is as large for every context
    return replace(
        fit,
        largest_ctx_size=largest_ctx_size(file.header, settings, fits),
        largest_parallel=largest_parallel(file.header, settings, fits),
    )
