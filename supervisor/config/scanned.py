"""What a scan of the models folder found, and how it joins the catalogue that was written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from supervisor.config.catalogue import Catalogue, ModelEntry
from supervisor.core.machine.values import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A GGUF file that a scan found: its name here, and what its header says."""

    name: str
    path: Path
    mode: Mode
    is_reranker: bool = False
    projector_path: Path | None = None
    tokenizer_path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A file that a scan met and that is not used, and why. `path` is printable."""

    path: str
    reason: str

    def describe(self) -> str:
        """Say it in one line."""
        return f"{self.path}: left out: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The models under a folder, in order of their paths, and what is not used."""

    models: tuple[FoundModel, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


ModelScan = Callable[[Path], Scan]
"""Looks through a folder for models; injected, because reading headers is the engine's room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FullCatalogue:
    """The catalogue with the models of the scan, their projectors, and what is not used."""

    catalogue: Catalogue
    projectors: Mapping[str, Path]
    left_out: tuple[LeftOut, ...] = ()


def add_scanned(catalogue: Catalogue, models_dir: Path, scan: ModelScan | None) -> FullCatalogue:
    """Add the models that a scan of the catalogue's `models_dir` finds and that no entry names.

    What is written takes precedence: a found model whose name is taken is left out.
    """
    written = {
        name: models_dir / entry.mmproj
        for name, entry in catalogue.models.items()
        if entry.mmproj is not None
    }
    if catalogue.models_dir is None or scan is None:
        return FullCatalogue(catalogue=catalogue, projectors=written)
    scanned = scan(models_dir / catalogue.models_dir)
    owner = {(models_dir / entry.path).resolve(): name for name, entry in catalogue.models.items()}
    taken = {name: name for name in catalogue.models} | {
        alias: name for name, entry in catalogue.models.items() for alias in entry.aliases
    }
    full = FullCatalogue(catalogue=catalogue, projectors=written)
    for found in scanned.models:
        named_by = owner.get(found.path.resolve())
        full = _add_one(full, found, named_by=named_by, name_of=taken.get(found.name))
    named_projectors = {str(path) for path in full.projectors.values()} | {
        str(path.resolve()) for path in full.projectors.values()
    }
    left_out = [one for one in scanned.left_out if one.path not in named_projectors]
    return replace(full, left_out=(*left_out, *full.left_out))


def _add_one(
    full: FullCatalogue, found: FoundModel, *, named_by: str | None, name_of: str | None
) -> FullCatalogue:
    """Add one found model, unless an entry names its file, or its name is that of an entry."""
    projector = found.projector_path
    if named_by is not None:
        given = full.projectors.get(named_by)
        if projector is None or (given is not None and given.resolve() == projector.resolve()):
            return full
        reason = f"models.yaml names its model ('{named_by}'); write it there as `mmproj`"
        if given is not None:
            reason = f"models.yaml gives its model ('{named_by}') another projector, {given.name}"
        return replace(full, left_out=(*full.left_out, LeftOut(path=str(projector), reason=reason)))
    if name_of is not None:
        reason = (
            f"its name '{found.name}' already stands for '{name_of}'; give it an entry of its own "
            "in models.yaml"
        )
        one = LeftOut(path=str(found.path), reason=reason)
        return replace(full, left_out=(*full.left_out, one))
    overrides = {"pooling": "rank"} if found.is_reranker else {}
    tokenizer = str(found.tokenizer_path) if found.tokenizer_path else None
    entry = ModelEntry(
        path=str(found.path), type=found.mode, tokenizer=tokenizer, overrides=overrides
    )
    models = full.catalogue.models | {found.name: entry}
    projectors = dict(full.projectors)
    if projector is not None:
        projectors[found.name] = projector
    return replace(
        full,
        catalogue=full.catalogue.model_copy(update={"models": models}),
        projectors=projectors,
    )
