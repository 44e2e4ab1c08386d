"""Looks through a folder for models: each GGUF becomes one, its type read from its header.

Nothing vanishes without a line: what is not used is part of the result, with the reason.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from supervisor.config.scanned import FoundModel, LeftOut, Scan
from supervisor.core.machine.values import Mode
from supervisor.core.sizing.estimate import is_embedding_model
from supervisor.core.sizing.gguf import GgufHeader
from supervisor.engine.models.model_file import FileIdentity, ModelFile, inspect_model_file
from supervisor.errors import ModelFileError

_SHARD = re.compile(r"-(\d{5})-of-\d{5}$")
_SAFE = re.compile(r"[A-Za-z0-9._-]")
_PROJECTOR = re.compile(r"^mmproj[-_.]?|[-_.]mmproj(?=[-_.]|$)", re.IGNORECASE)
_PRECISION = re.compile(
    r"(?:^|[-_.])(?:ud[-_.])?(?:b?f16|fp16|f32|i?q\d\w*|tq\d\w*|mxfp4\w*)$", re.IGNORECASE
)

_TOKENIZER = ".tokenizer.json"

POOLED_BY_RANK = 4
"""llama.cpp's LLAMA_POOLING_TYPE_RANK, as a header has it."""


def scan_models(folder: Path) -> Scan:
    """Look at the files under a folder, links followed, hidden ones (`.name`) ignored.

    A model in shards is found by its first shard. A multimodal projector is not a model of its
    own: it belongs to the generation models beside it that have its name (`belongs_to`), and a
    tokenizer's file to embedding models (`tokenizer_of`).
    """
    left_out: list[LeftOut] = []
    files: dict[Path, ModelFile] = {}
    first_of: dict[tuple[FileIdentity, ...], Path] = {}
    for path in _gguf_files(folder, left_out):
        shard = _SHARD.search(path.stem)
        if shard is not None and int(shard[1]) != 1:
            continue
        try:
            file = inspect_model_file(path)
        except ModelFileError as error:
            left_out.append(_left_out(path, str(error).removeprefix(f"{path}: ")))
            continue
        first = first_of.setdefault(file.identity, path)
        if first is path:
            files[path] = file
        else:
            left_out.append(_left_out(path, f"it is the same file as {first}"))
    projectors = {p: f for p, f in files.items() if is_projector(p, f.header)}
    models = {p: f for p, f in files.items() if p not in projectors}
    attached = _attach(projectors, models, left_out)
    return Scan(
        models=tuple(
            FoundModel(
                name=name,
                path=path,
                mode=_mode_of(models[path].header),
                is_reranker=models[path].header.count_parameter("pooling_type") == POOLED_BY_RANK,
                projector_path=attached.get(path),
                tokenizer_path=tokenizer_of(path, models[path].header, models),
            )
            for path, name in _name_all(folder, models, left_out)
        ),
        left_out=tuple(left_out),
    )


def safe_name(path: Path) -> str:
    """Name a model after its file, with what URLs and shells take as it is; `my-model.Q4_K_M`.

    Letters of all scripts stay, in their composed form.
    """
    return _safe(_SHARD.sub("", path.stem)) or "model"


def is_projector(path: Path, header: GgufHeader) -> bool:
    """Whether a file holds a multimodal projector (llama.cpp's `mmproj`), not a language model."""
    general_type = header.metadata.get("general.type")
    return (
        header.architecture == "clip" or general_type == "mmproj" or path.name.startswith("mmproj")
    )


def belongs_to(projector: Path, model: Path) -> bool:
    """Whether a projector is made for a model, by their names: shards and precision left out.

    `mmproj-gemma-3-4b-it-f16.gguf` and `gemma-3-4b-it-mmproj.gguf` are for
    `gemma-3-4b-it-Q4_K_M.gguf` in the same folder; `mmproj-f16.gguf` names no model.
    """
    stem = _bare_stem(projector)
    return bool(stem) and projector.parent == model.parent and stem == _bare_stem(model)


def tokenizer_of(path: Path, header: GgufHeader, models: Collection[Path]) -> Path | None:
    """Return the tokenizer's file beside an embedding model: that of its name, else the only one.

    `NAME.tokenizer.json`, for the file's own name or without its precision: that of `e5-Q8_0.gguf`
    may be `e5.tokenizer.json`. A `tokenizer.json` is taken where one model alone, in whatever
    precisions, is in its folder, as in a clone of a model's repository.
    """
    if _mode_of(header) is not Mode.EMBEDDING:
        return None
    whole = _SHARD.sub("", path.stem)
    named = [path.with_name(f"{stem}{_TOKENIZER}") for stem in (whole, _PRECISION.sub("", whole))]
    beside = {_bare_stem(each) for each in models if each.parent == path.parent}
    shared = [path.with_name(_TOKENIZER.removeprefix("."))] if len(beside) == 1 else []
    return next((each for each in (*named, *shared) if each.is_file()), None)


def printable(path: Path) -> str:
    """Write a path so that it can be printed and sent, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_utf8(path: Path) -> bool:
    """Whether a path can be printed and sent as it is."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _bare_stem(path: Path) -> str:
    stem = _PROJECTOR.sub("", _SHARD.sub("", path.stem))
    return unicodedata.normalize("NFC", _PRECISION.sub("", stem)).casefold()


def _mode_of(header: GgufHeader) -> Mode:
    return Mode.EMBEDDING if is_embedding_model(header) else Mode.GENERATION


def _left_out(path: Path, reason: str) -> LeftOut:
    return LeftOut(path=printable(path), reason=reason)


def _gguf_files(folder: Path, left_out: list[LeftOut]) -> Iterator[Path]:
    """Yield the files under a folder by path; each folder once, however many links lead to it."""
    seen: set[tuple[int, int]] = set()

    def walk(place: Path) -> Iterator[Path]:
        try:
            status = place.stat()
            paths = sorted(place.iterdir())
        except OSError as error:
            left_out.append(_left_out(place, f"it cannot be read: {error.strerror}"))
            return
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        for path in paths:
            if path.name.startswith("."):
                continue
            if os.path.isdir(path):  # noqa: PTH112 - a folder closed to us is not one, and no error
                found = list(walk(path))
                yield from found
                if not found and _is_gguf(path):  # as a mount makes of a file that is not there
                    left_out.append(_left_out(path, "it is a folder, and no model is in it"))
            elif _is_gguf(path):
                if is_utf8(path):
                    yield path
                else:
                    left_out.append(_left_out(path, "its name is not UTF-8; rename it"))

    yield from walk(folder)


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _attach(
    projectors: Mapping[Path, ModelFile],
    models: Mapping[Path, ModelFile],
    left_out: list[LeftOut],
) -> dict[Path, Path]:
    """Return the projector of each model that has one."""
    attached: dict[Path, Path] = {}
    for projector in projectors:
        named = [path for path in models if belongs_to(projector, path)]
        able = [path for path in named if _mode_of(models[path].header) is Mode.GENERATION]
        free = [path for path in able if path not in attached]
        attached |= dict.fromkeys(free, projector)
        if not free:
            left_out.append(_left_out(projector, _why_unattached(named, able, attached)))
    return attached


def _why_unattached(named: list[Path], able: list[Path], attached: Mapping[Path, Path]) -> str:
    if able:
        return f"{able[0].name} already has a projector, {attached[able[0]].name}"
    if named:
        return f"{named[0].name} is an embedding model, which takes no projector"
    return (
        "it is a projector, and no model beside it has its name; rename it mmproj-MODEL.gguf "
        "after its model's file, or write it as `mmproj` of its model in models.yaml"
    )


@dataclass(slots=True, kw_only=True)
class _Naming:
    """A file's name, and the folders above it (the nearest last) that may be put before it."""

    path: Path
    parents: tuple[str, ...]
    depth: int = 0

    @property
    def name(self) -> str:
        before = self.parents[len(self.parents) - self.depth :]
        return "-".join([*(_safe(part) for part in before), safe_name(self.path)])


def _name_all(
    folder: Path, models: Mapping[Path, ModelFile], left_out: list[LeftOut]
) -> Iterator[tuple[Path, str]]:
    """Yield each model's name; of those that have one name, with their folders' put before it."""
    namings = [_Naming(path=p, parents=p.relative_to(folder).parent.parts) for p in models]
    while clashing := _clashing(namings):
        for naming in clashing:
            naming.depth += 1
    owner: dict[str, Path] = {}
    for naming in namings:
        first = owner.setdefault(naming.name, naming.path)
        if first is naming.path:
            yield naming.path, naming.name
        else:
            reason = f"{printable(first)} is named '{naming.name}', too; rename one of them"
            left_out.append(_left_out(naming.path, reason))


def _clashing(namings: list[_Naming]) -> list[_Naming]:
    counts = Counter(naming.name for naming in namings)
    return [n for n in namings if counts[n.name] > 1 and n.depth < len(n.parents)]


def _safe(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    kept = [c if _SAFE.match(c) or (c > "\x7f" and c.isprintable()) else " " for c in composed]
    return re.sub(" +", "-", "".join(kept)).strip("-.")
