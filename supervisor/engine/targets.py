"""Targets: what a model's name and a profile's mean as something that a switch can make live.

The configuration's part is computed once and kept until another configuration is applied. The
device is asked for each time, because drivers come and go; whether it can be used, at each switch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog
from msgspec.structs import replace

from supervisor.config.configuration import Configuration, ResolvedModel
from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.memory import OnUnconfirmed
from supervisor.core.machine.values import Device, Mode, Patience, Target
from supervisor.core.sizing.estimate import is_embedding_model
from supervisor.engine.devices import (
    candidates_of,
    configured_device,
    devices_of,
    unusable_together,
)
from supervisor.engine.kinds.flags import SERVER_FIELDS
from supervisor.engine.models.model_file import inspect_model_file
from supervisor.engine.models.model_scan import safe_name
from supervisor.engine.prompts.prompt_cache import identity_of
from supervisor.engine.tasks import ModelTask, tasks_of, what_is_lacking
from supervisor.errors import RequestRefused
from supervisor.telemetry.port import HOST, DeviceInfo

log = structlog.get_logger()


class DeviceSource(Protocol):
    """What is asked of telemetry."""

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each vendor or device that cannot be read."""
        ...

    def devices(self) -> Sequence[DeviceInfo]:
        """Give the devices that were found."""
        ...

    def gpus(self) -> tuple[str, ...]:
        """Name the GPUs of which any may be chosen, that which works first of all."""
        ...


class Targets:
    """Finds what is meant by a name, and where it would run.

    `on_device` is called with each device that a switch is about to use, as it is configured now:
    a driver may have come to life since the start.
    """

    def __init__(
        self,
        configuration: ConfigurationHolder,
        devices: DeviceSource,
        on_device: Callable[[Device], None] = lambda _: None,
    ) -> None:
        self._configuration = configuration
        self._devices = devices
        self._on_device = on_device
        self._known = _Known(configuration.current)

    def named(self, name_or_alias: str) -> str:
        """Return the catalogue's name of a model. Raises RequestRefused `model_not_found`."""
        return self._configuration.current.named(name_or_alias)

    def resolved(self, target: Target) -> ResolvedModel:
        """Return the target's model and profile as configured now. Raises as `target()`."""
        return self._configuration.current.resolve(target.catalogue_name, target.profile)

    def target(self, name_or_alias: str, profile_name: str | None = None) -> Target:
        """Return the target of a model with a profile (None: its own), and its fallback, if any.

        Cheap enough for every request. Raises RequestRefused: `model_not_found`,
        `unknown_profile` or `profile_conflict`.
        """
        known = self._known_now()
        key = name_or_alias, profile_name, self._devices.gpus()
        target = known.targets.get(key)
        if target is None:
            target = self._build(known.configuration, name_or_alias, profile_name)
            if target.device == HOST or target.device.startswith("gpu"):  # else it may come yet
                known.targets[key] = target
        return target

    def is_current(self, target: Target) -> bool:
        """Whether a server of this target would be started as it was, as configured now."""
        try:
            spill = self._configuration.current.catalogue.models[target.catalogue_name].spill
            if target.is_twin and spill != target.profile:
                return False
            return revision_of(self.resolved(target)) == target.revision
        except (KeyError, RequestRefused):
            return False  # the model or the profile is there no more

    def default_for(self, task: ModelTask) -> str:
        """Return the model that is meant where only a task is known.

        Raises RequestRefused: `model_not_named` where several could be, `model_type_mismatch`
        where none is able.
        """
        known = self._known_now()
        if task not in known.defaults:
            known.defaults[task] = self._choose_default(known, task)
        return known.defaults[task]

    def models_for(self, task: ModelTask) -> list[str]:
        """Return the names of the models that are able to do a task."""
        known = self._known_now()
        models = known.configuration.catalogue.models
        return sorted(
            name
            for name, entry in models.items()
            if entry.type is task.mode and task in known.tasks(name)
        )

    def is_able(self, model: str, task: ModelTask) -> bool:
        """Whether a model of the catalogue can do a task, with its own profile."""
        return task in self._known_now().tasks(model)

    def able(self, wanted: Target | None, task: ModelTask, path: str) -> Target:
        """Return the target of the model that is wanted (None: the default one for a task).

        It is on the device that it would have now. Raises RequestRefused as `default_for` and
        `require_able` do.
        """
        target = self.target(self.default_for(task) if wanted is None else wanted.model)
        self.require_able(target, task, path)
        return target

    def require_able(self, target: Target, task: ModelTask, path: str) -> None:
        """Raise RequestRefused where a model cannot do what a path asks of it.

        Its server's own error would help nobody, and would cost a switch.
        """
        if self.is_able(target.model, task):
            return
        able = self.models_for(task)
        lacking = what_is_lacking(self._configuration.current.resolve(target.model), task)
        raise RequestRefused(
            "model_type_mismatch",
            f"{path} is for {task}, and {lacking}; models for {task}: {', '.join(able) or 'none'}",
            {"models": able},
        )

    def require_device(self, target: Target) -> None:
        """Ask telemetry whether the target's devices can be used; to be called at each switch.

        Raises RequestRefused: `telemetry_lost` where a GPU's driver is here and does not work, for
        the host's memory does not stand in for what was made for a GPU; `target_cannot_start`
        where a GPU that the profile names is not here.
        """
        for each in (target, target.fallback):
            if each is not None:
                self._require_device(each)

    def usable(self, target: Target, *, may_spill: bool) -> Target:
        """Return a target whose devices can be used; its twin, where only those of that can.

        Raises RequestRefused as `require_device` where neither's can.
        """
        try:
            self.require_device(target)
        except RequestRefused:
            if not may_spill or target.spill is None:
                raise
            return target.spill
        return target

    def device(self, name: str) -> Device:
        """Return what the core must know of a device. Raises StopIteration for an unknown one."""
        info = next(info for info in self._devices.devices() if info.device == name)
        return configured_device(info, self._configuration.current.settings)

    def _known_now(self) -> "_Known":
        configuration = self._configuration.current
        if configuration is not self._known.configuration:
            self._known = _Known(configuration)
        return self._known

    def _choose_default(self, known: "_Known", task: ModelTask) -> str:
        chosen = known.configuration.catalogue.default_models.of(task.mode)
        if chosen is not None and task in known.tasks(chosen):
            return chosen
        able = self.models_for(task)
        if len(able) == 1:
            return able[0]
        if not able:
            raise RequestRefused(
                "model_type_mismatch",
                f"there is no model for {task}; add one to models.yaml",
                {"models": able},
            )
        raise RequestRefused(
            "model_not_named",
            f"no model is named, and several are for {task}: {', '.join(able)}; name one of "
            f"them, or have the operator set default_models.{task.mode} in models.yaml",
            {"models": able},
        )

    def _require_device(self, target: Target) -> None:
        profile = self.resolved(target).profile
        problems, here = self._devices.problems, self._devices.devices()
        is_here = target.device != HOST and any(info.device == target.device for info in here)
        may_proceed = profile.memory.on_unconfirmed is OnUnconfirmed.PROCEED
        if profile.device != "cpu" and not is_here and problems and not may_proceed:
            raise RequestRefused("telemetry_lost", "; ".join(problems))
        fault = unusable_together(target.devices, here)
        if fault is not None:
            raise RequestRefused(
                "target_cannot_start",
                f"'{target.model}' with profile '{target.profile}' cannot run here: {fault}",
            )
        for device in dict.fromkeys((*target.devices, *target.candidates)):
            self._on_device(self.device(device))

    def _build(self, configuration: Configuration, name: str, profile_name: str | None) -> Target:
        resolved = configuration.resolve(name, profile_name)
        target = replace(self._target_of(resolved), spill=self._twin_of(configuration, resolved))
        return replace(target, fallback=self._fallback_of(configuration, resolved))

    def _fallback_of(self, configuration: Configuration, resolved: ResolvedModel) -> Target | None:
        """Return what a model runs with where it has no room; None where there is nothing.

        A fallback that the model's overrides contradict, as `check` finds for its own profile only,
        is left out: the model itself can run.
        """
        fallback = resolved.profile.fallback_profile
        if fallback is None or fallback == resolved.profile_name:
            return None
        try:
            return self._target_of(configuration.resolve(resolved.name, fallback))
        except RequestRefused as refusal:
            log.warning("target.fallback_left_out", model=resolved.name, reason=refusal.message)
            return None

    def _twin_of(self, configuration: Configuration, resolved: ResolvedModel) -> Target | None:
        """Return the twin of a model that runs with a profile; None where it has none."""
        spill = configuration.catalogue.models[resolved.name].spill
        if spill is None or spill == resolved.profile_name:
            return None
        twin = self._target_of(configuration.resolve(resolved.name, spill))
        return replace(twin, model=f"{resolved.name}@{spill}", twin_of=resolved.name)

    def _target_of(self, resolved: ResolvedModel) -> Target:
        profile = resolved.profile
        gpus = self._devices.gpus()
        devices = devices_of(profile, gpus, self._devices.devices)
        return Target(
            model=resolved.name,
            mode=resolved.mode,
            profile=resolved.profile_name,
            device=devices[0],
            split_over=devices if len(devices) > 1 else (),
            candidates=candidates_of(profile, gpus),
            revision=revision_of(resolved),
            patience=Patience(
                start_timeout_s=profile.start_timeout_s,
                drain_timeout_s=profile.drain_timeout_s,
                stop_grace_s=profile.stop_grace_s,
                stall_timeout_s=profile.stall_timeout_s,
                restart_on_stall=profile.restart_on_stall,
            ),
            parallel=profile.parallel,
            parks=profile.give_up_memory == "park",
            parked_bytes=profile.memory.parked_bytes,
            memory=profile.memory.policy(),
        )


class _Known:
    """What follows from one configuration, computed as it is asked for."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.targets: dict[tuple[str, str | None, tuple[str, ...]], Target] = {}
        self.defaults: dict[ModelTask, str] = {}
        self._tasks: dict[str, frozenset[ModelTask]] = {}

    def tasks(self, model: str) -> frozenset[ModelTask]:
        """Return what a model can be asked, with its own profile."""
        found = self._tasks.get(model)
        if found is None:
            found = self._tasks[model] = tasks_of(self.configuration.resolve(model))
        return found


def revision_of(resolved: ResolvedModel) -> str:
    """Return what changes with all that decides how a model's server is started.

    What the controller alone goes by (time-outs, the proof of release) is not part of it.
    """
    profile = resolved.profile
    fields = {*SERVER_FIELDS, "command", "device", "engine", "env", "env_passthrough"}
    return identity_of(
        {
            "model": (resolved.reference, resolved.path, resolved.projector_path),
            "mode": resolved.mode,
            "fields": profile.model_dump(mode="json", include=fields),
            "aliases": resolved.aliases if profile.command else (),
        }
    )


def model_or_file(
    configuration: Configuration, name: str, profile_name: str | None = None
) -> ResolvedModel:
    """Return a model of the catalogue by name or alias, or a GGUF file by its path.

    A file runs with the profile named after its type unless another is chosen. Raises
    RequestRefused as `Targets.target()`, and ModelFileError.
    """
    if configuration.model_name(name) is not None:
        return configuration.resolve(name, profile_name)
    path = Path(name)
    if path.suffix != ".gguf" and not path.exists():
        known = ", ".join(sorted(configuration.catalogue.models)) or "none"
        raise RequestRefused(
            "model_not_found", f"there is no model '{name}' and no such file; there are: {known}"
        )
    header = inspect_model_file(path).header
    mode = Mode.EMBEDDING if is_embedding_model(header) else Mode.GENERATION
    chosen = profile_name or mode.value
    return ResolvedModel(
        name=safe_name(path),
        path=path.resolve(),
        reference=name,
        mode=mode,
        profile_name=chosen,
        profile=configuration.profile_for(mode, chosen),
    )
