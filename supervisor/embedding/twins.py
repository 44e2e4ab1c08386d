"""Compares twins with their models, by the vectors that both make of the same texts.

What a model makes of them is asked whenever it becomes live, and kept in the data folder; what its
twin makes of them, at each of its starts.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from supervisor.config.holder import ConfigurationHolder
from supervisor.core.machine.commands import Command, FinishSwitch
from supervisor.core.machine.events import BackendUnfit, Event
from supervisor.core.machine.snapshot import Snapshot
from supervisor.core.machine.values import Refusal, Target
from supervisor.embedding.batching.exchange import read_vectors
from supervisor.embedding.vectors import cosine
from supervisor.engine.models.model_file import identify
from supervisor.engine.servers.backend import Backend
from supervisor.engine.servers.framing import post_json
from supervisor.engine.targets import Targets
from supervisor.errors import BackendUnreachable, RequestRefused
from supervisor.observability.impairments import Impairments
from supervisor.observability.kept_file import KeptFile

log = structlog.get_logger()

FILE_NAME = "twins.json"

LEAST_COSINE = 0.9999
"""Of a twin's vector with its model's: what F16 keeps of float32, and half-precision kernels of two
devices of each other. Below, results of a search change places."""

_DEATH_S = 30.0
"""In which a twin that does not answer must have died; else it is one that must not serve."""

PROBES = (
    "query: how long does a parcel take to arrive?",
    "passage: Parcels are delivered on working days between nine and six.",
    "A twin serves what is small while its model is away.",
    "답변을 기다리는 짧은 질문",
    "def add(first: int, second: int) -> int: return first + second",
    "3.14159 26535 89793 23846 26433 83279 50288",
    "word",
    " ".join(["It rained all night, and in the morning the river had left its bed."] * 4),
)
"""Short and long, in several scripts: one server makes vectors of all of them at once."""


class _Vectors(msgspec.Struct, frozen=True, kw_only=True):
    """What a target made of the probes, and of which file."""

    revision: str
    file: tuple[int, ...]
    vectors: list[bytes]


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the file: by the model's name and its profile."""

    format: Literal[1] = 1
    vectors: dict[str, _Vectors] = msgspec.field(default_factory=dict)


class Twins:
    """Knows the vectors of models with twins, and which twins may serve (`TwinComparison`).

    An observer of the arbiter, too: it says why a twin is not used.
    """

    def __init__(
        self,
        *,
        path: Path,
        targets: Targets,
        configuration: ConfigurationHolder,
        impairments: Impairments,
    ) -> None:
        self._kept_file = KeptFile(path, _Kept, "vectors of twins", impairments)
        self._targets = targets
        self._configuration = configuration
        self._impairments = impairments
        self._kept = (self._kept_file.read() or _Kept()).vectors
        self._running: dict[str, tuple[int, list[bytes]]] = {}
        """The epoch of each twin that runs, and what it made of the probes."""
        self._cosines: dict[str, float] = {}
        """The least of a twin's cosines, where it was compared."""
        self._unused: dict[str, str] = {}
        """Why a twin is not used."""

    def comparable(self) -> list[Target]:
        """Return the targets, as configured now, whose vectors are known."""
        return [target for target in self._mains() if self._vectors_of(target) is not None]

    def _mains(self) -> list[Target]:
        """Return the models that have a twin, as configured now."""
        models = self._configuration.current.catalogue.models
        return [self._targets.target(name) for name, entry in models.items() if entry.spill]

    async def fault_of(self, backend: Backend, target: Target) -> str | None:
        """See `TwinComparison`."""
        name = target.catalogue_name
        try:
            vectors = await _ask(backend)
        except (RequestRefused, ValueError) as error:
            if isinstance(error, BackendUnreachable) and await backend.is_found_dead(_DEATH_S):
                raise
            return f"'{target.model}' does not answer the texts that it is compared by: {error}"
        self._running[name] = backend.epoch, vectors
        wanted = self._vectors_of(self._targets.target(name))
        if wanted is None:
            reason = f"'{name}' was not live yet, so that its vectors are not known"
            log.warning("twin.not_compared", model=name, profile=target.profile, reason=reason)
            return None
        return self._difference(target.model, vectors, wanted)

    async def learn(self, backend: Backend, target: Target) -> Mapping[int, str] | None:
        """See `TwinComparison`."""
        try:
            vectors = await _ask(backend)
        except (RequestRefused, ValueError) as error:
            log.warning("twin.vectors_unknown", model=target.model, reason=str(error))
            return None
        file = self._file_of(target)
        known = _Vectors(revision=target.revision, file=file, vectors=vectors)
        self._kept[_key(target)] = known
        self._kept_file.write(_Kept(vectors=self._kept))
        if target.spill is None or target.model not in self._running:
            return {}
        epoch, made = self._running[target.model]
        fault = self._difference(target.spill.model, made, vectors)
        return {} if fault is None else {epoch: fault}

    def observe(
        self, event: Event, before: Snapshot, after: Snapshot, commands: tuple[Command, ...]
    ) -> None:
        """Say why a twin is not used, once it is known; take that back once it serves."""
        if isinstance(event, BackendUnfit):
            backend = before.backend(event.epoch)
            if backend is not None and after.backend(event.epoch) != backend:
                self._note(backend.target, event.reason)
        switch = before.switch
        if switch is None or switch.target is None or not switch.target.is_twin:
            return
        for command in commands:  # among which another switch may end
            if isinstance(command, FinishSwitch) and command.report.switch_id == switch.switch_id:
                self._note_end(switch.target, command.report.refusal)

    def describe(self, snapshot: Snapshot) -> list[dict[str, Any]]:
        """Write how each twin stands as JSON."""
        return [self._describe(snapshot, main, main.spill) for main in self._mains() if main.spill]

    def _describe(self, snapshot: Snapshot, main: Target, twin: Target) -> dict[str, Any]:
        name = main.model
        there = next((b for b in snapshot.backends if b.target.model == twin.model), None)
        is_comparable = main.identity in snapshot.scheduling.comparable
        reason = self._unused.get(twin.model)
        if reason is None and not is_comparable:
            reason = f"'{name}' has to be live once, so that the two can be compared"
        return {
            "model": name,
            "profile": twin.profile,
            "state": "available" if there is None else there.state.value,
            "cosine": self._cosines.get(twin.model),
            "reason": reason,
        }

    def _note_end(self, target: Target, refusal: Refusal | None) -> None:
        if refusal is not None:
            self._note(target, refusal.message)
        else:
            self._unused.pop(target.model, None)
            self._impairments.clear(_part(target))

    def _note(self, target: Target, reason: str) -> None:
        if self._unused.get(target.model) != reason:
            self._unused[target.model] = reason
            log.warning(
                "twin.unused", model=target.catalogue_name, profile=target.profile, reason=reason
            )
        self._impairments.note(_part(target), f"not used: {reason}")

    def _difference(self, twin: str, made: Sequence[bytes], wanted: Sequence[bytes]) -> str | None:
        """Return how the vectors of a twin differ from its model's; None: they do not."""
        pairs = list(zip(made, wanted, strict=True))
        if any(len(one) != len(other) for one, other in pairs):
            return f"'{twin}' makes vectors of another length than its model"
        least = min(cosine(one, other) for one, other in pairs)
        self._cosines[twin] = round(least, 6)
        if math.isfinite(least) and least >= LEAST_COSINE:
            return None
        return (
            f"the vectors of '{twin}' differ from its model's: the least cosine of "
            f"{len(PROBES)} is {least:.6f}, and {LEAST_COSINE} is wanted"
        )

    def _vectors_of(self, target: Target) -> list[bytes] | None:
        known = self._kept.get(_key(target))
        if known is None or known.revision != target.revision:
            return None
        return known.vectors if known.file == self._file_of(target) else None

    def _file_of(self, target: Target) -> tuple[int, ...]:
        """Return what shows whether its file is the same; empty for what is no file."""
        try:
            return tuple(identify(self._targets.resolved(target).path.stat()))
        except OSError:
            return ()


def _key(target: Target) -> str:
    return f"{target.model} {target.profile}"


def _part(target: Target) -> str:
    return f"twin of {target.catalogue_name}"


async def _ask(backend: Backend) -> list[bytes]:
    """Return what a server makes of the probes. Raises BackendUnreachable and ValueError."""
    body = {"model": backend.model, "input": PROBES}
    async with backend.exchange(post_json("/v1/embeddings", body)) as answer:
        status, content = answer.status, await answer.read()
    if status != 200:
        raise ValueError(f"it answers {status}: {content[:200].decode(errors='replace')}")
    return read_vectors(content, len(PROBES))[0]
